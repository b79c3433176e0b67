"""Mean and standard deviation of the pixels, by number of channels."""

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from map_core.errors import UserError

from . import digits
from .config import DataConfig

Values = tuple[float, ...]
# Of one channel: the average of the three, as timm does.
IMAGENET_GRAY_MEAN = (sum(IMAGENET_DEFAULT_MEAN) / 3,)
IMAGENET_GRAY_STD = (sum(IMAGENET_DEFAULT_STD) / 3,)


def pixel_mean(config: DataConfig, in_chans: int) -> Values:
    """Return the mean of each channel: the one that ``config`` gives, else the digits' or ImageNet's."""
    imagenet = IMAGENET_DEFAULT_MEAN if in_chans == 3 else IMAGENET_GRAY_MEAN
    return _per_channel(
        "mean", config.mean or ((digits.MEAN,) if reads_digits(config) else imagenet), in_chans
    )


def pixel_std(config: DataConfig, in_chans: int) -> Values:
    """Return the standard deviation of each channel, as :func:`pixel_mean` does."""
    imagenet = IMAGENET_DEFAULT_STD if in_chans == 3 else IMAGENET_GRAY_STD
    std = _per_channel("std", config.std or ((digits.STD,) if reads_digits(config) else imagenet), in_chans)
    if min(std) <= 0:
        raise UserError(f"std {std} must be positive in every channel")
    return std


def reads_digits(config: DataConfig) -> bool:
    """Whether the source is the digits."""
    return config.source == "digits" or (config.source == "auto" and config.root is None)


def _per_channel(name: str, values: Values, in_chans: int) -> Values:
    if in_chans not in (1, 3):
        raise UserError(f"in_chans ({in_chans}) must be 1 (gray) or 3 (RGB) to read images")
    if len(values) not in (1, in_chans):
        raise UserError(
            f"{name} has {len(values)} values, but the model takes {in_chans} channels: give 1 or {in_chans}"
        )
    return tuple(values) * in_chans if len(values) == 1 else tuple(values)
