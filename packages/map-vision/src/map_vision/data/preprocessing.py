"""What a stored image goes through before a model sees it, in a form that is stored with the model's weights."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from map_core.errors import UserError

from . import digits
from .config import INTERPOLATIONS, DataConfig

Values = tuple[float, ...]
# Of one channel: the average of the three, as timm does.
IMAGENET_GRAY_MEAN = (sum(IMAGENET_DEFAULT_MEAN) / 3,)
IMAGENET_GRAY_STD = (sum(IMAGENET_DEFAULT_STD) / 3,)


@dataclass(frozen=True)
class Preprocessing:
    """Resizing, centre crop and normalisation of a model's images; all that its size does not say.

    Args:
        channels: 3 for RGB, 1 for gray.
        mean: Of every channel, for pixels in 0..1.
        std: Standard deviation of every channel.
        interpolation: "bicubic", "bilinear", "nearest" or "lanczos".
        crop_pct: Share of the shorter side that the centre crop keeps, of images larger than the model's.
        crop_pct_small: The same for all other images.
    """

    channels: int
    mean: Values
    std: Values
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_pct_small: float = 1.0

    @property
    def mode(self) -> Literal["RGB", "L"]:
        """Pillow's name for the channels."""
        return "RGB" if self.channels == 3 else "L"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; :meth:`from_dict` reads them."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Any) -> "Preprocessing":
        """Read what :meth:`to_dict` wrote.

        Raises:
            UserError: for absent or unknown keys, and for values of another type or out of range.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"preprocessing must be a mapping; got {values!r}")
        names = {field.name for field in fields(cls)}
        if names != values.keys():
            odd = ", ".join(sorted(map(str, names ^ values.keys())))
            raise UserError(
                f"preprocessing must have the keys {', '.join(sorted(names))}; absent or unknown: {odd}"
            )
        for problem in _problems(values):
            raise UserError(f"preprocessing: {problem}")
        return cls(
            channels=values["channels"],
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
            interpolation=values["interpolation"],
            crop_pct=float(values["crop_pct"]),
            crop_pct_small=float(values["crop_pct_small"]),
        )


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    channels, interpolation = values["channels"], values["interpolation"]
    if channels not in (1, 3):
        yield f"channels must be 1 (gray) or 3 (RGB); got {channels!r}"
    for name in ("mean", "std"):
        value = values[name]
        if not (isinstance(value, list | tuple) and len(value) == channels and all(map(_is_number, value))):
            yield f"{name} must be {channels!r} finite numbers; got {value!r}"
        elif name == "std" and min(value) <= 0:
            yield f"std must be positive in every channel; got {value!r}"
    if interpolation not in INTERPOLATIONS:
        yield f"interpolation must be one of {', '.join(INTERPOLATIONS)}; got {interpolation!r}"
    for name in ("crop_pct", "crop_pct_small"):
        if not (_is_number(values[name]) and 0 < values[name] <= 1):
            yield f"{name} must lie in (0, 1]; got {values[name]!r}"


def resolve_preprocessing(
    config: DataConfig, *, in_chans: int, trained: Preprocessing | None = None
) -> Preprocessing:
    """Return what ``config`` says, for the rest what the model was trained with, for the rest the defaults.

    Args:
        config: Validated.
        in_chans: Channels that the model takes.
        trained: As stored with the model's weights; None for a model that is yet to be trained.

    Raises:
        UserError: for channels that are not 1 or 3, are not those of ``trained``, or do not fit mean or std.
    """
    if in_chans not in (1, 3):
        raise UserError(f"in_chans ({in_chans}) must be 1 (gray) or 3 (RGB) to read images")
    if trained is not None and trained.channels != in_chans:
        raise UserError(
            f"the model takes {_channels(in_chans)}, but its preprocessing is for {_channels(trained.channels)}: "
            "take weights and description from one run"
        )
    default = trained or _default(config, in_chans)
    return Preprocessing(
        channels=in_chans,
        mean=_per_channel("mean", config.mean or default.mean, in_chans),
        std=_per_channel("std", config.std or default.std, in_chans),
        interpolation=config.interpolation or default.interpolation,
        crop_pct=config.crop_pct or default.crop_pct,
        crop_pct_small=config.crop_pct or default.crop_pct_small,
    )


def reads_digits(config: DataConfig) -> bool:
    """Whether the source is the digits."""
    return config.source == "digits" or (config.source == "auto" and config.root is None)


def _default(config: DataConfig, in_chans: int) -> Preprocessing:
    if reads_digits(config):
        return Preprocessing(in_chans, (digits.MEAN,) * in_chans, (digits.STD,) * in_chans)
    if in_chans == 1:
        return Preprocessing(1, IMAGENET_GRAY_MEAN, IMAGENET_GRAY_STD)
    return Preprocessing(3, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)


def _per_channel(name: str, values: Values, in_chans: int) -> Values:
    if len(values) == 1:
        return tuple(values) * in_chans
    if len(values) != in_chans:
        average = round(sum(values) / len(values), 4)
        cure = f"give 1 value, for example their average, --data.{name} [{average}]"
        raise UserError(
            f"data.{name} has {len(values)} values, but the model takes {_channels(in_chans)}: "
            + (cure if in_chans == 1 else f"give 1 or {in_chans}")
        )
    return tuple(values)


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count > 1 else ''}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
