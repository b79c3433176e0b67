"""The command that images have beyond those of every domain."""

from typing import Any

from map_core.commands.options import Option, config_class
from map_core.paths import expanded
from map_core.ranges import check
from map_core.runs.files import require_file
from map_core.runs.notes import tell
from map_vision.data import DataConfig
from map_vision.data.statistics import measure
from map_vision.data.statistics_file import save_statistics

StatisticsConfig = config_class(
    "StatisticsConfig",
    "Mean and deviation of every channel of the images that training would read, for --data.statistics.",
    data=Option(DataConfig, "Images; --data.subset 1000 measures so many of them."),
    channels=Option(int | None, "Channels of the images; those of the first one when not given.", None),
    workers=Option(int, "Loading processes.", 2),
    progress=Option(bool, "Show a progress bar.", True),
    out=Option(str, "JSON file to write.", "statistics.json"),
)


def statistics(config: Any) -> None:
    """Measure images and write the file that recipes name."""
    check("", config, at_least_one=("channels",), not_negative=("workers",))
    out = expanded(config.out)
    require_file(out)
    measured = measure(
        config.data, channels=config.channels, workers=config.workers, progress=config.progress
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_statistics(out, measured)
    for name in ("mean", "std"):
        tell(f"{name:5} {' '.join(f'{value:.6g}' for value in getattr(measured, name))}")
    channels = len(measured.mean)
    tell(
        f"{measured.images} images of {channels} channel{'s' if channels > 1 else ''}, {measured.pixels} -> {out} "
        f"(--model.in_chans {channels} --data.statistics {out})"
    )
