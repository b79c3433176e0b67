"""The small file with mean and deviation of every channel that ``map-vision statistics`` writes and recipes name."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from map_core.data.statistics import no_statistics, read_statistics_file
from map_core.runs.files import save_json
from map_vision.data.config import PixelKind


@dataclass(frozen=True)
class Statistics:
    """Statistics of a set of images.

    Attributes:
        pixels: Whether pictures were scaled to 0..1 or values measured as stored.
        mean, std: One value per channel.
        images: Number of images read.
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
        UserError: the file cannot be read, or holds something else.
    """
    values = read_statistics_file(path, ("pixels", "mean", "std", "images"), "map-vision")
    if values["pixels"] not in get_args(PixelKind):
        choices = ", ".join(get_args(PixelKind))
        raise no_statistics(
            path, "map-vision", f"has pixels {values['pixels']!r} (pixels must be one of {choices})"
        )
    return Statistics(values["pixels"], values["mean"], values["std"], values["images"])
