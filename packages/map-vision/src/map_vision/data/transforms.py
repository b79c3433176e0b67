"""Pictures, or stored values with any number of channels, to normalised tensors, augmented or not.

Every random choice comes from the global generators, so seeding them by (seed, epoch, image) determines it.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms as tv
from torchvision.transforms import functional as tvf

from map_core.errors import UserError
from map_core.runs.notes import note
from map_vision.data.config import DataConfig
from map_vision.data.decoding import Pixels
from map_vision.data.preprocessing import Preprocessing, count_channels

INTERPOLATION_MODES = {
    "bicubic": tv.InterpolationMode.BICUBIC,
    "bilinear": tv.InterpolationMode.BILINEAR,
    "nearest": tv.InterpolationMode.NEAREST,
    "lanczos": tv.InterpolationMode.LANCZOS,
}
TRANSFORM_SETS = ("weights", "3a", "3aw")  # that timm's rand-...-tNAME chooses from
UNUSED_SETTINGS = {  # of an augmentation
    "none": ("crop_scale", "horizontal_flip", "random_erasing"),
    "pad_crop": ("crop_scale",),
    "shift": ("crop_scale", "horizontal_flip"),
}
MAX_AREA_RATIO = 64  # of a resized image to its crop; longer images are cropped before they are enlarged
Step = Callable[[Pixels], Pixels]


class ResizeToFill:
    """Resize the shorter side to size / crop_pct and crop the centre [h w].

    ``crop_pct_small`` is for images that are not larger than ``img_size`` in both directions.
    """

    def __init__(
        self, img_size: tuple[int, int], *, crop_pct: float, crop_pct_small: float, interpolation: str
    ) -> None:
        self.img_size = img_size
        self.crop_pct = crop_pct
        self.crop_pct_small = crop_pct_small
        self.interpolation = INTERPOLATION_MODES[interpolation]

    def __call__(self, image: Pixels) -> Pixels:
        height, width = self.img_size
        _, rows, columns = tvf.get_dimensions(image)
        larger = rows > height and columns > width
        crop_pct = self.crop_pct if larger else self.crop_pct_small
        scale = max(height / crop_pct / rows, width / crop_pct / columns)
        if rows * columns * scale**2 > MAX_AREA_RATIO * height * width:
            image = _middle(image, math.ceil(height / scale), math.ceil(width / scale))
            _, rows, columns = tvf.get_dimensions(image)
        resized = (max(height, round(rows * scale)), max(width, round(columns * scale)))
        if resized != (rows, columns):
            image = tvf.resize(image, list(resized), self.interpolation)
        return image if resized == self.img_size else tvf.center_crop(image, list(self.img_size))


def _middle(image: Pixels, rows: int, columns: int, margin: int = 8) -> Pixels:
    """Crop a very long image to what its centre crop needs, with a margin for interpolation.

    A file of a few bytes may hold 1 x 60,000 pixels, which would be enlarged to gigabytes.
    """
    _, height, width = tvf.get_dimensions(image)
    top, left = max(0, (height - rows) // 2 - margin), max(0, (width - columns) // 2 - margin)
    return tvf.crop(image, top, left, height - 2 * top, width - 2 * left)


class PadCrop:
    """Pad the image with a black border of an eighth of its size and crop back at a random position."""

    def __call__(self, image: Pixels) -> Pixels:
        _, height, width = tvf.get_dimensions(image)
        return random_offset(image, max(1, round(height / 8)), max(1, round(width / 8)))


class Shift:
    """Shift the image by at most ``pixels`` in each direction; what comes in is black."""

    def __init__(self, pixels: int = 1) -> None:
        self.pixels = pixels

    def __call__(self, image: Pixels) -> Pixels:
        return random_offset(image, self.pixels, self.pixels)


def random_offset(image: Pixels, rows: int, columns: int) -> Pixels:
    """Shift the image by at most ``rows`` and ``columns`` in each direction, at the same size, filling with black."""
    top = int(torch.randint(-rows, rows + 1, ()))
    left = int(torch.randint(-columns, columns + 1, ()))
    _, height, width = tvf.get_dimensions(image)
    return tvf.crop(image, top, left, height, width)


class ToNormalized:
    """Scale a picture's pixels to 0..1, subtract the mean and divide by the standard deviation of each channel.

    Stored values [c h w] are not scaled: mean and deviation are in the same units. numpy takes a third of torch's time.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.scale = np.array([1 / (255 * s) for s in std], np.float32)[:, None, None]
        self.offset = np.array([m / s for m, s in zip(mean, std, strict=True)], np.float32)[:, None, None]

    def __call__(self, image: Pixels) -> Float[Tensor, "c h w"]:
        if isinstance(image, Tensor):
            values, scale = image.numpy(), self.scale * 255
        else:
            pixels = np.atleast_3d(np.asarray(image))  # (h, w, c); a gray picture has no third axis
            values, scale = pixels.transpose(2, 0, 1), self.scale
        normalized = np.multiply(values, scale, order="C", dtype=np.float32)
        normalized -= self.offset
        return torch.from_numpy(normalized)


def evaluation_transform(preprocessing: Preprocessing, *, img_size: tuple[int, int]) -> tv.Compose:
    """Resize, crop the centre, normalise."""
    fill = ResizeToFill(
        img_size,
        crop_pct=preprocessing.crop_pct,
        crop_pct_small=preprocessing.crop_pct_small,
        interpolation=preprocessing.interpolation,
    )
    return tv.Compose([fill, ToNormalized(preprocessing.mean, preprocessing.std)])


def training_transform(
    config: DataConfig, preprocessing: Preprocessing, *, img_size: tuple[int, int]
) -> tv.Compose:
    """Augment as ``config.augmentation`` says, then normalise; ``config`` must be validated.

    Raises:
        UserError: a policy that timm does not know, one that rotates with "lanczos", or one that changes the colours of
            stored values.
    """
    if preprocessing.pixels == "stored" and config.augmentation in ("timm", "three_augment"):
        raise UserError(
            f"data.augmentation '{config.augmentation}' changes colours, which stored values of "
            f"{count_channels(preprocessing.channels)} do not have: choose crop_flip, pad_crop, shift or none"
        )
    for name in UNUSED_SETTINGS.get(config.augmentation, ()):
        if (value := getattr(config, name)) != getattr(DataConfig, name):
            note(f"data.{name} {value} has no effect with data.augmentation {config.augmentation}")
    if config.augmentation == "none":
        return evaluation_transform(preprocessing, img_size=img_size)
    normalize = ToNormalized(preprocessing.mean, preprocessing.std)
    steps: list[Callable] = [*_augmentations(config, preprocessing, img_size), normalize]
    if config.random_erasing:
        steps.append(RandomErasing(config.random_erasing, mode="pixel", device="cpu"))
    return tv.Compose(steps)


def _augmentations(config: DataConfig, preprocessing: Preprocessing, img_size: tuple[int, int]) -> list[Step]:
    interpolation, crop_pct = preprocessing.interpolation, config.crop_pct or 1.0
    fill = ResizeToFill(img_size, crop_pct=crop_pct, crop_pct_small=crop_pct, interpolation=interpolation)
    flip = tv.RandomHorizontalFlip(config.horizontal_flip)
    if config.augmentation == "pad_crop":
        return [fill, PadCrop(), flip]
    if config.augmentation == "shift":
        return [Shift(), fill]  # by a pixel of the stored image, before it is enlarged
    if config.augmentation == "crop_flip":
        crop = tv.RandomResizedCrop(
            img_size, config.crop_scale or (0.2, 1.0), interpolation=INTERPOLATION_MODES[interpolation]
        )
        return [crop, flip]
    return _timm_augmentations(config, preprocessing, img_size)


def check_policy(policy: str) -> None:
    """Refuse what timm ignores: a section of a policy without a number, or an unknown set of transforms.

    Raises:
        ValueError: names the section.
    """
    family, *sections = policy.split("-")
    for section in sections:
        if family == "rand" and section.startswith("t"):
            if section[1:] not in TRANSFORM_SETS:
                raise ValueError(
                    f"{section!r} does not name a set of transforms: {', '.join(TRANSFORM_SETS)}"
                )
        elif not any(letter.isdigit() for letter in section):
            raise ValueError(f"{section!r} has no number")


def turns_or_shears(policy: str) -> bool:
    """Whether a policy of timm's has geometric operations: all but 3a do, as a policy and as a set of transforms."""
    family, *sections = policy.split("-")
    return family != "3a" and not (family == "rand" and "t3a" in sections)


def _timm_augmentations(
    config: DataConfig, preprocessing: Preprocessing, img_size: tuple[int, int]
) -> list[Step]:
    mean = preprocessing.mean
    is_three_augment = config.augmentation == "three_augment"
    color_jitter = 0.3 if is_three_augment and config.color_jitter is None else config.color_jitter
    try:
        check_policy(config.auto_augment or "")
        geometry, color, _ = create_transform(
            input_size=img_size,
            is_training=True,
            separate=True,
            scale=config.crop_scale or (0.08, 1.0),
            hflip=config.horizontal_flip,
            auto_augment="3a" if is_three_augment else config.auto_augment,
            color_jitter=color_jitter,
            interpolation=preprocessing.interpolation,
            mean=mean if len(mean) == 3 else mean[:1] * 3,
        )
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"data.auto_augment '{config.auto_augment}' is not a policy that timm knows ({error}); "
            "for example rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, original, 3a"
        ) from error
    if config.color_jitter and config.auto_augment and "3a" not in config.auto_augment:  # timm's condition
        note(
            f"data.color_jitter {config.color_jitter} has no effect with data.auto_augment '{config.auto_augment}', "
            "which changes colours itself: --data.color_jitter null says so"
        )
    if preprocessing.interpolation == "lanczos" and turns_or_shears(config.auto_augment or "3a"):
        raise UserError(
            f"data.interpolation 'lanczos' cannot rotate or shear, as data.auto_augment '{config.auto_augment}' does: "
            "choose bicubic"
        )
    if len(mean) == 1:  # timm's policies expect three channels
        return [geometry, tv.Grayscale(3), color, tv.Grayscale(1)]
    return [geometry, color]
