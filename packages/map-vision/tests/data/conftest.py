"""Small generated images, in the folder layouts that users have."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write ``counts[class]`` noisy images per class below ``tmp_path/split`` and return ``tmp_path``."""

    def make(
        split: str, counts: dict[str, int], *, size: tuple[int, int] = (12, 10), suffix: str = ".png"
    ) -> Path:
        generator = np.random.default_rng(len(split))
        for name, count in counts.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03}{suffix}")
        return tmp_path

    return make


@pytest.fixture
def labelled(make_folder: MakeFolder) -> Path:
    """A folder with train (12 cats, 8 dogs) and val (3 and 2)."""
    make_folder("train", {"dog": 8, "cat": 12})
    return make_folder("val", {"dog": 2, "cat": 3})


@pytest.fixture
def break_images() -> Callable[[Sequence[Path]], None]:
    """Truncate files in the middle, so that they open but do not decode."""

    def cut(paths: Sequence[Path]) -> None:
        for path in paths:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return cut
