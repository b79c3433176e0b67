"""scikit-learn's 1,797 handwritten digits (8 x 8, 17 gray levels): data that need no download."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from map_core.data.subsets import stratified_choice
from map_core.errors import UserError
from map_vision.data.sources import ImageSource

MEAN, STD = 0.305, 0.376  # of the training split, pixels in 0..1
TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Digits(ImageSource):
    """Digits as gray images, bright ink on black; ``pixels`` [n 8 8] are uint8."""

    pixels: np.ndarray

    def name(self, index: int) -> str:
        return f"digit {index}"

    def image(self, index: int, mode: str) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert(mode)


def load_digits() -> Digits:
    """Read the digits.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as read
    except ImportError as error:
        raise UserError(
            "the digits need scikit-learn: pip install scikit-learn, or give a folder with --data.root"
        ) from error
    digits = read()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return Digits(digits.target.astype(np.int64), tuple("0123456789"), pixels)


def split_digits(digits: Digits) -> dict[str, np.ndarray]:
    """Return the indices of the fixed stratified 80/20 split, "train" and "test"."""
    count = round(TEST_FRACTION * len(digits))
    test = stratified_choice(digits.labels, count, seed=0, what="digits test split")
    return {"train": np.setdiff1d(np.arange(len(digits)), test), "test": test}
