"""ScanObjectNN: 15 classes of scanned objects, in three sets of growing difficulty."""

from pathlib import Path

from map_points.data.clouds import ArrayClouds, Clouds, check_labels
from map_points.data.config import ScanObjectNNVariant
from map_points.data.files import require_root
from map_points.data.hdf5 import read_h5

CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow",
    "sink", "sofa", "toilet",
)  # fmt: skip
FILES: dict[str, tuple[str, str]] = {
    "obj_bg": ("main_split", "objectdataset"),
    "obj_only": ("main_split_nobg", "objectdataset"),
    "pb_t50_rs": ("main_split", "objectdataset_augmentedrot_scale75"),
}


def read_scanobjectnn(root: Path, split: str, variant: ScanObjectNNVariant) -> Clouds:
    """Read ``<folder>/{training,test}_<name>.h5``; y points up."""
    require_root(root, "the folder with main_split and main_split_nobg", "main_split", "main_split_nobg")
    folder, name = FILES[variant]
    file = root / folder / f"{'training' if split == 'train' else 'test'}_{name}.h5"
    points, labels = read_h5(file, root)
    labels = check_labels(labels, CLASSES, str(file), count=len(points))
    return ArrayClouds(labels, CLASSES, points, str(file))
