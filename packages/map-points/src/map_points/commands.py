"""The commands for clouds, beyond those of every domain."""

from typing import Any

from map_core.commands.options import Option, config_class
from map_core.commands.standard import train_task
from map_core.paths import expand_user
from map_core.ranges import refuse_without_effect
from map_core.runs.files import explaining_disk_errors, require_file, require_folder
from map_core.runs.notes import tell
from map_points.data import PointDataConfig, measure, write_part_shapes
from map_points.fewshot import FewShotConfig, run_folds
from map_points.segmentation.task import SegmentConfig, SegmentTask

PartShapesConfig = config_class(
    "PartShapesConfig",
    "Shapes of two parts in ShapeNetPart's layout, to try segmentation on.",
    train=Option(int, "Training shapes of each of the five categories.", 60),
    val=Option(int, "Validation shapes of each (trained on as well, as the field does).", 6),
    test=Option(int, "Test shapes of each.", 20),
    points=Option(int, "Points of each shape.", 1500),
    seed=Option(int, "Seed of everything random.", 0),
    out=Option(str, "Folder to create.", "part_shapes"),
)

StatisticsConfig = config_class(
    "StatisticsConfig",
    "Mean and deviation of the channels of the clouds that training would read, for --data.statistics.",
    data=Option(PointDataConfig, "Clouds and their channels; --data.subset 1000 measures that many of them."),
    progress=Option(bool, "Show a progress bar.", True),
    out=Option(str, "JSON file to write.", "statistics.json"),
)


def statistics(config: Any) -> None:
    """Measure channels and write the file that recipes name."""
    scaling = ("statistics", "channel_mean", "channel_std")
    refuse_without_effect(
        "data", config.data, *scaling, because="statistics, which are of channels as in the files"
    )
    out = expand_user(config.out)
    require_file(out)
    channel_statistics = measure(config.data, progress=config.progress)
    with explaining_disk_errors(f"write {out}", then="repeat the command"):
        out.parent.mkdir(parents=True, exist_ok=True)
        channel_statistics.save(out)
    for name, mean, std in zip(
        channel_statistics.channels, channel_statistics.mean, channel_statistics.std, strict=True
    ):
        tell(f"{name}: mean {mean:.6g}, deviation {std:.6g}")
    channels, count = ", ".join(channel_statistics.channels), 3 + len(channel_statistics.channels)
    tell(
        f"{channel_statistics.clouds} clouds -> {out} (--data.channels '[{channels}]' --model.in_chans {count} "
        f"--data.statistics {out})"
    )


def segment(config: SegmentConfig) -> None:
    """Train a part segmenter."""
    train_task(SegmentTask, config)


def fewshot(config: FewShotConfig) -> None:
    """Train a classifier on every few-shot fold and write the mean over them."""
    run_folds(config)


def part_shapes(config: PartShapesConfig) -> None:  # type: ignore[valid-type]
    """Write two-part shapes as txt files with their lists."""
    settings = vars(config).copy()
    out = expand_user(settings.pop("out"))
    require_folder(out)
    write_part_shapes(out, **settings)
    tell(f"two-part shapes -> {out} (--data.root {out})")
