"""The commands that clouds have beyond those of every domain."""

from map_core.commands.options import Option, config_class
from map_core.commands.standard import train_task
from map_core.paths import expanded
from map_core.runs.files import require_folder
from map_points.data import write_part_shapes
from map_points.fewshot import FewShotConfig, run_folds
from map_points.segmentation.task import SegmentConfig, SegmentTask

PartShapesConfig = config_class(
    "PartShapesConfig",
    "Shapes of two parts in ShapeNetPart's layout, to try segmentation on.",
    train=Option(int, "Training shapes of each of the five categories.", 60),
    val=Option(int, "Validation shapes of each (trained on as well, as the field does).", 6),
    test=Option(int, "Test shapes of each.", 20),
    points=Option(int, "Points of each shape.", 1500),
    seed=Option(int, "Of everything random.", 0),
    out=Option(str, "Folder to make.", "part_shapes"),
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
    out = expanded(settings.pop("out"))
    require_folder(out)
    write_part_shapes(out, **settings)
    print(f"two-part shapes -> {out} (--data.root {out})")
