"""What a user says about data: where the clouds are, how many points to take, and how to augment them."""

from dataclasses import dataclass
from typing import Literal

from map_core.errors import UserError

PointSourceName = Literal[
    "shapes",
    "modelnet40_npz",
    "hdf5",
    "normal_resampled",
    "modelnet_dat",
    "scanobjectnn",
    "shapenet55",
    "shapenetpart",
    "fewshot_pkl",
]
PointAugmentation = Literal["none", "rotate", "scale_translate"]
ScanObjectNNVariant = Literal["obj_bg", "obj_only", "pb_t50_rs"]
Axis = Literal["x", "y", "z"]


@dataclass
class PointDataConfig:
    """Clouds, how many of their points are used, and augmentation.

    Args:
        source: "shapes", parametric shapes made on the spot; "modelnet40_npz", one npz file with train_x,
            train_y, test_x, test_y and classes; "hdf5", the ply_data_*.h5 files with their lists;
            "normal_resampled", a tree of txt files; "modelnet_dat", Point-BERT's pickles; "scanobjectnn" h5
            files; "shapenet55", npy files with their lists; "shapenetpart", txt files with parts and their
            lists; "fewshot_pkl", the published few-shot folds of ModelNet40.
        root: Folder of the data (for "modelnet40_npz" the file); none for "shapes".
        variant: Which of ScanObjectNN's three sets.
        num_points: Points of a cloud that the model sees.
        augmentation: "rotate" about the up axis; "scale_translate" by one factor and one shift an axis.
        scale: Range of the factors of "scale_translate".
        translate: Largest shift of "scale_translate".
        up_axis: Axis that points up; what the data set declares when not given.
        unit_sphere: Shift every cloud to its centroid and scale it into the unit sphere; when not given, all
            sets but ScanObjectNN, as its users do.
        train_sampling: How training takes num_points of a larger cloud: "fps_random", at random from 17 %
            more farthest points than needed (1200 for 1024); "random", at random from all. Evaluation takes
            farthest points.
        holdout: Fraction of the training split to set aside, the same share of every class. Above 0,
            evaluation runs on this part instead of the test split: for choosing settings.
        holdout_seed: Seed of the choice of the held-out part.
        subset: Train on this many clouds, a fixed choice with the same share of every class.
        subset_seed: Seed of the choice of the subset.
        shapes_per_class: Training clouds of each embedded shape.
    """

    source: PointSourceName = "shapes"
    root: str | None = None
    variant: ScanObjectNNVariant = "pb_t50_rs"
    num_points: int = 1024
    augmentation: PointAugmentation = "none"
    scale: tuple[float, float] = (2 / 3, 3 / 2)
    translate: float = 0.2
    up_axis: Axis | None = None
    unit_sphere: bool | None = None
    train_sampling: Literal["fps_random", "random"] = "fps_random"
    holdout: float = 0.0
    holdout_seed: int = 0
    subset: int | None = None
    subset_seed: int = 0
    shapes_per_class: int = 100

    def validate(self) -> None:
        """Check what can be checked before any data is read."""
        if self.num_points < 1:
            raise UserError(f"data.num_points must be at least 1; got {self.num_points}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"data.scale must satisfy 0 < low <= high; got {self.scale[0]}, {self.scale[1]}")
        if self.translate < 0:
            raise UserError(f"data.translate must be 0 or more; got {self.translate}")
        if self.shapes_per_class < 1:
            raise UserError(f"data.shapes_per_class must be at least 1; got {self.shapes_per_class}")
        if not 0 <= self.holdout < 1:
            raise UserError(
                f"data.holdout ({self.holdout}) must lie in [0, 1): it is a fraction of the training split"
            )
        if self.source != "shapes" and self.root is None:
            raise UserError(f"data.source {self.source!r} is read from a path: give --data.root")
