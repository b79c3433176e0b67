"""How an image is prepared for a model, in a form that is stored with the model's weights."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from map_core.errors import UserError
from map_core.json_values import is_finite
from map_vision.data import digits
from map_vision.data.bands import bands_mode
from map_vision.data.config import DataConfig, Interpolation, PixelKind
from map_vision.data.statistics_file import Statistics, read_statistics

Values = tuple[float, ...]
# For one channel: the average of the three, as in timm.
IMAGENET_GRAY_MEAN = (sum(IMAGENET_DEFAULT_MEAN) / 3,)
IMAGENET_GRAY_STD = (sum(IMAGENET_DEFAULT_STD) / 3,)


@dataclass(frozen=True)
class Preprocessing:
    """Resizing, centre crop and normalisation of a model's images: everything but their size.

    Args:
        channels: 3 for RGB, 1 for gray; any number of stored values.
        mean: Mean of every channel, of pixels in 0..1 or of stored values.
        std: Standard deviation of every channel.
        interpolation: "bicubic", "bilinear", "nearest" or "lanczos".
        crop_pct: Share of the shorter side that the centre crop keeps, for images larger than the model's.
        crop_pct_small: The same for all other images.
        pixels: "scaled" for 8-bit pictures scaled to 0..1, or "stored" for values as stored.
    """

    channels: int
    mean: Values
    std: Values
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_pct_small: float = 1.0
    pixels: PixelKind = "scaled"

    @property
    def mode(self) -> str:
        """Pillow's name for the channels, or :func:`~map_vision.data.bands.bands_mode` of stored values."""
        if self.pixels == "stored":
            return bands_mode(self.channels)
        return "RGB" if self.channels == 3 else "L"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; :meth:`from_dict` reads them. Scaled pixels, the default, are left out."""
        values = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        return {name: value for name, value in values.items() if (name, value) != ("pixels", "scaled")}

    @classmethod
    def from_dict(cls, values: Any) -> "Preprocessing":
        """Read what :meth:`to_dict` wrote.

        Raises:
            UserError: missing or unknown keys, or values of the wrong type or out of range.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"preprocessing must be a mapping; got {values!r}")
        values = {"pixels": "scaled", **values}
        names = {field.name for field in fields(cls)}
        if names != values.keys():
            mismatches = ", ".join(sorted(map(str, names ^ values.keys())))
            raise UserError(
                f"preprocessing must have the keys {', '.join(sorted(names))}; absent or unknown: {mismatches}"
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
            pixels=values["pixels"],
        )


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    channels, interpolation = values["channels"], values["interpolation"]
    if values["pixels"] not in get_args(PixelKind):
        yield f"pixels must be one of {', '.join(get_args(PixelKind))}; got {values['pixels']!r}"
    elif values["pixels"] == "stored":
        if type(channels) is not int or channels < 1:
            yield f"channels must be 1 or more; got {channels!r}"
    elif channels not in (1, 3):
        yield f"channels must be 1 (gray) or 3 (RGB); got {channels!r}"
    for name in ("mean", "std"):
        value = values[name]
        if not (isinstance(value, list | tuple) and len(value) == channels and all(map(is_finite, value))):
            yield f"{name} must be {channels!r} finite numbers; got {value!r}"
        elif name == "std" and min(value) <= 0:
            yield f"std must be positive in every channel; got {value!r}"
    if interpolation not in get_args(Interpolation):
        yield f"interpolation must be one of {', '.join(get_args(Interpolation))}; got {interpolation!r}"
    for name in ("crop_pct", "crop_pct_small"):
        if not (is_finite(values[name]) and 0 < values[name] <= 1):
            yield f"{name} must lie in (0, 1]; got {values[name]!r}"


def resolve_preprocessing(
    config: DataConfig, *, in_chans: int, trained: Preprocessing | None = None
) -> Preprocessing:
    """Return the settings of ``config``, else those that the model was trained with, else the defaults.

    Args:
        config: A validated configuration.
        in_chans: Channels of the model's input.
        trained: Preprocessing stored with the model's weights; None for an untrained model.

    Raises:
        UserError: channels that differ from those of ``trained`` or do not fit mean or std, or stored values whose mean
            and deviation are unknown.
    """
    measured = None if config.statistics is None else read_statistics(config.statistics)
    if trained is not None and trained.channels != in_chans:
        raise UserError(
            f"the model takes {count_channels(in_chans)}, but its preprocessing is for "
            f"{count_channels(trained.channels)}: "
            "take weights and description from one run"
        )
    if measured is not None and len(measured.mean) != in_chans:
        raise UserError(
            f"{config.statistics} is of {count_channels(len(measured.mean))}, the model takes {in_chans}: measure "
            f"these images with map-vision statistics --channels {in_chans}, or change --model.in_chans"
        )
    pixels = _pixels(config, in_chans, measured, trained)
    matching = trained if trained is not None and trained.pixels == pixels else None
    default = matching or (
        _default(config, in_chans) if pixels == "scaled" else _stored_default(config, measured, in_chans)
    )
    mean, std = (config.mean, config.std) if measured is None else (measured.mean, measured.std)
    return Preprocessing(
        channels=in_chans,
        mean=_per_channel("mean", mean or default.mean, in_chans),
        std=_per_channel("std", std or default.std, in_chans),
        pixels=pixels,
        interpolation=config.interpolation or default.interpolation,
        crop_pct=config.crop_pct or default.crop_pct,
        crop_pct_small=config.crop_pct or default.crop_pct_small,
    )


def _pixels(
    config: DataConfig, in_chans: int, measured: Statistics | None, trained: Preprocessing | None
) -> PixelKind:
    """The kind of pixels: as configured, as in the statistics, as trained, else "scaled" for 1 or 3 channels."""
    measured_pixels = None if measured is None else measured.pixels
    if config.pixels is not None and measured_pixels not in (None, config.pixels):
        raise UserError(
            f"{config.statistics} is of {measured_pixels} pixels, data.pixels is '{config.pixels}': measure these with "
            f"map-vision statistics --data.pixels {config.pixels}, or leave data.pixels out"
        )
    kind = config.pixels or measured_pixels or (trained.pixels if trained else None)
    kind = kind or ("scaled" if in_chans in (1, 3) else "stored")
    if kind == "scaled" and in_chans not in (1, 3):
        raise UserError(
            f"data.pixels 'scaled' is for pictures of 1 or 3 channels, the model takes {in_chans}: leave it out"
        )
    if kind == "stored":
        _check_stored(config)
    return kind


def stored_from_elsewhere(source: str) -> str:
    """The message that stored values need files."""
    return (
        f"stored values are read from files in a folder, not from data.source '{source}': give --data.source folder "
        "and --data.root"
    )


def _check_stored(config: DataConfig) -> None:
    """Refuse a source, cache or interpolation that stored values do not work with."""
    if config.source not in ("auto", "folder", "shards"):
        raise UserError(stored_from_elsewhere(config.source))
    if config.cache == "memory":
        raise UserError(
            "data.cache 'memory' keeps pictures of 8 bits, not stored values: pass --data.cache none"
        )
    if config.interpolation == "lanczos":
        raise UserError(
            "data.interpolation 'lanczos' is for pictures of 8 bits, not for stored values: choose bicubic"
        )


def _stored_default(config: DataConfig, measured: Statistics | None, in_chans: int) -> Preprocessing:
    """Defaults for stored values; mean and deviation must be configured."""
    if measured is None and (config.mean is None or config.std is None):
        raise UserError(
            f"stored values of {count_channels(in_chans)} have no mean and deviation that are known: measure them with "
            f"map-vision statistics --data.pixels stored --channels {in_chans} and pass its file, --data.statistics "
            "FILE"
        )
    return Preprocessing(in_chans, (0.0,) * in_chans, (1.0,) * in_chans, pixels="stored")


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
            f"data.{name} has {len(values)} values, but the model takes {count_channels(in_chans)}: "
            + (cure if in_chans == 1 else f"give 1 or {in_chans}")
        )
    return tuple(values)


def count_channels(count: int) -> str:
    """``"3 channels"``."""
    return f"{count} channel{'s' if count > 1 else ''}"
