"""Mean and deviation of every channel as a small file, which ``map-vision statistics`` writes and recipes name."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from map_core.errors import UserError
from map_core.paths import expanded
from map_core.reading import read_small
from map_core.runs.account import is_count, is_number
from map_core.runs.files import save_json

from .config import PixelKind


@dataclass(frozen=True)
class Statistics:
    """What was measured of images.

    Attributes:
        pixels: Of pictures brought to 0..1, or of values as they are stored.
        mean, std: Of every channel.
        images: How many were read.
    """

    pixels: PixelKind
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics as JSON; :func:`read_statistics` reads them."""
    save_json(path, asdict(statistics))


def read_statistics(path: str | Path) -> Statistics:
    """Read what :func:`save_statistics` wrote.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        values = json.loads(read_small(expanded(path)))
    except OSError as error:
        raise UserError(f"cannot read --data.statistics {path} ({error.strerror}): correct it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"--data.statistics {path} is no JSON: {CURE}") from error
    if problem := _problem(values):
        raise UserError(f"--data.statistics {path}: {problem}; {CURE}")
    mean, std = (tuple(map(float, values[name])) for name in ("mean", "std"))
    return Statistics(values["pixels"], mean, std, values["images"])


CURE = "name a file that map-vision statistics wrote"


def _problem(values: Any) -> str | None:
    if not isinstance(values, dict) or not {"pixels", "mean", "std", "images"} <= values.keys():
        return "it has no pixels, mean, std and images"
    if values["pixels"] not in get_args(PixelKind):
        return f"pixels must be one of {', '.join(get_args(PixelKind))}; it has {values['pixels']!r}"
    for name in ("mean", "std"):
        numbers = values[name]
        if not (isinstance(numbers, list) and numbers and all(map(_is_finite, numbers))):
            return f"{name} must be finite numbers, one a channel"
    if len(values["mean"]) != len(values["std"]) or min(values["std"]) <= 0:
        return "std must be one positive number a channel, as many as in mean"
    if not is_count(values["images"]):
        return f"images must be a number of images; it has {values['images']!r}"
    return None


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
