"""The data settings: where the clouds are, how many points to take, and how to augment them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from map_core.errors import UserError
from map_core.paths import expand_user
from map_core.ranges import check, check_choices, refuse_without_effect
from map_points.data.columns import AXES, check_channels

PointSourceName = Literal[
    "shapes",
    "folder",
    "modelnet40_npz",
    "hdf5",
    "normal_resampled",
    "modelnet_dat",
    "scanobjectnn",
    "shapenet55",
    "shapenetpart",
    "fewshot_pkl",
]
PointAugmentation = Literal["none", "rotate", "scale_translate", "rotate_scale_translate"]
TrainSampling = Literal["fps_random", "random"]
ScanObjectNNVariant = Literal["obj_bg", "obj_only", "pb_t50_rs"]
Axis = Literal["x", "y", "z"]
Z_UP = ("shapes", "folder", "modelnet40_npz")  # sources whose clouds have z up; the others have y up


@dataclass
class PointDataConfig:
    """Clouds, how many of their points are used, and augmentation.

    Args:
        source: "shapes", parametric shapes made on the spot; "folder", your own .npy, .npz, .ply, .pcd, .off, .txt,
            .xyz, .pts, .csv, .las or .laz files (docs/your_own_data.md), in train, val and test with class subfolders,
            in train.txt and test.txt, or in any layout without labels; "modelnet40_npz", one npz file with train_x,
            train_y, test_x, test_y and classes; "hdf5", the ply_data_*.h5 files with their lists; "normal_resampled",
            a tree of txt files; "modelnet_dat", Point-BERT's pickles; "scanobjectnn" h5 files; "shapenet55", npy files
            with their lists; "shapenetpart", txt files with parts and their lists; "fewshot_pkl", the published
            few-shot folds of ModelNet40.
        root: Folder of the data (for "modelnet40_npz" the file), ~ being the home folder; none for "shapes".
        labels: CSV file that lists the clouds below root, their labels and, if any, their splits (train, val,
            validation or test) in the columns path, label and split, for "folder"; then root needs no class
            subfolders. Classes are the labels sorted, whole numbers by value. Pretraining needs no labels.
        variant: Which of ScanObjectNN's three sets, for "scanobjectnn".
        channels: Names of what points have beside x, y and z, such as [normal_x, normal_y, normal_z] or [intensity];
            read by "folder" from .ply, .pcd, .las, .npz and files with a line of names. Normals and velocities turn
            with their cloud. The model then takes 3 values and one per channel (model.in_chans).
        columns: Names of all columns, x, y and z among them, for files that do not name theirs.
        statistics: File of ``map-points statistics``, whose mean and std override those here.
        channel_mean: Mean of every channel, to subtract; channels stay unchanged when not given.
        channel_std: Standard deviation of every channel, to divide by.
        channel_dropout: Probability that a training cloud is shown without its channels (zeros in their place).
        num_points: Points of a cloud that the model sees.
        augmentation: "rotate" about the up axis; "scale_translate" by one factor and one shift per axis;
            "rotate_scale_translate", both in this order.
        scale: Range of the factors of "scale_translate".
        translate: Largest shift of "scale_translate".
        up_axis: Axis that points up; when not given, z for shapes, folder and modelnet40_npz, y for the others.
        unit_sphere: Shift every cloud to its centroid and scale it into the unit sphere; when not given, all
            sets but ScanObjectNN, as its users do.
        train_sampling: How training takes num_points of a larger cloud: "fps_random", at random from 17 %
            more farthest points than needed (1200 for 1024); "random", at random from all. Evaluation takes
            farthest points.
        eval_split: Evaluation split. For a folder, a subfolder of root; for lists or a CSV file, one of their splits;
            default the first of val, validation, test. Other sources have "test" alone.
        holdout: Fraction of the training split to set aside, the same share of every class. Above 0,
            evaluation runs on this part instead of the evaluation split: for choosing settings. Training with
            holdout and eval_split is refused; a later evaluation that names eval_split uses that.
        holdout_seed: Seed of the choice of the held-out part.
        subset: Train on this many clouds, a fixed choice with the same share of every class.
        subset_seed: Seed of the choice of the subset.
        shapes_per_class: Training clouds of each embedded shape, for "shapes".
        ignore_label: Part label of points that are neither trained nor measured on, of "shapenetpart".
    """

    source: PointSourceName = "shapes"
    root: str | None = None
    labels: str | None = None
    variant: ScanObjectNNVariant = "pb_t50_rs"
    channels: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    statistics: str | None = None
    channel_mean: tuple[float, ...] | None = None
    channel_std: tuple[float, ...] | None = None
    channel_dropout: float = 0.0
    num_points: int = 1024
    augmentation: PointAugmentation = "none"
    scale: tuple[float, float] = (2 / 3, 3 / 2)
    translate: float = 0.2
    up_axis: Axis | None = None
    unit_sphere: bool | None = None
    train_sampling: TrainSampling = "fps_random"
    eval_split: str | None = None
    holdout: float = 0.0
    holdout_seed: int = 0
    subset: int | None = None
    subset_seed: int = 0
    shapes_per_class: int = 100
    ignore_label: int | None = None

    def validate(self) -> None:
        """Check what can be checked before any data are read.

        Raises:
            UserError: a setting is wrong; the message names it, its value and the values allowed.
        """
        self.check_values()
        if self.root is not None and not self.root.strip():
            raise UserError("data.root is empty: give the path of the data, or leave the setting out")
        if self.source == "shapes" and self.root is not None:
            raise UserError(
                f"data.root is {self.root}, but the embedded shapes have no folder: say with --data.source what is "
                "read there, or leave it out"
            )
        if self.source != "shapes" and self.root is None:
            raise UserError(f"data.source {self.source!r} is read from a path: give --data.root")

        if self.labels is not None and self.source != "folder":
            raise UserError(
                f"data.labels {self.labels} lists the files of data.source 'folder', not of {self.source!r}: "
                "leave it out"
            )
        if self.labels is not None and not self.labels.strip():
            raise UserError("data.labels is empty: name a CSV file, or leave the setting out")
        self._check_eval_split()
        self._check_source_settings()

    def _check_eval_split(self) -> None:
        if self.eval_split is None:
            return
        if not self.eval_split.strip():
            raise UserError("data.eval_split is empty: name a split, or leave the setting out")
        if self.source == "fewshot_pkl":
            raise UserError(
                "data.eval_split is for splits, and data.source 'fewshot_pkl' has folds: leave it out"
            )
        if self.source != "folder" and self.eval_split != "test":
            raise UserError(
                f"data.eval_split {self.eval_split} names a split of data.source 'folder'; {self.source!r} has only "
                "the test split to evaluate on: give --data.eval_split test, or leave it out"
            )

    def _check_source_settings(self) -> None:
        for name, source in SOURCE_OF_SETTING.items():
            if self.source != source:
                because = f"data.source {self.source}, only with {source}"
                refuse_without_effect("data", self, name, because=because)

    def check_values(self) -> None:
        """Check every setting except where the data are.

        Raises:
            UserError: a setting is wrong; the message names it, its value and the values allowed.
        """
        check_choices("data", self)
        check("data", self, seeds=("holdout_seed", "subset_seed"))
        for name, (least, most) in WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if value is None and name in ("subset", "ignore_label"):
                continue
            if type(value) is not int or not least <= value <= most:
                limit = f"of at least {least}" if most == LARGEST else f"from {least} to {most}"
                raise UserError(f"data.{name} must be a whole number {limit}; got {value!r}")
        self._check_augmentation()
        self._check_channels()
        if not 0 <= self.holdout < 1:
            raise UserError(
                f"data.holdout ({self.holdout}) must lie in [0, 1): it is a fraction of the training split"
            )
        if self.ignore_label is not None and self.source != "shapenetpart":
            raise UserError(
                f"data.ignore_label is for parts, which data.source {self.source!r} does not have: leave it out"
            )

    def _check_channels(self) -> None:
        check_channels(self.channels or ())
        for name in ("channels", "columns"):
            if getattr(self, name) and self.source != "folder":
                raise UserError(
                    f"data.{name} is for data.source 'folder', not {self.source!r}: read these files as a folder, or "
                    "leave it out"
                )
        if self.columns is not None and not (
            {*AXES} <= {*self.columns} and len({*self.columns}) == len(self.columns)
        ):
            raise UserError(
                f"data.columns must name every column once, x, y and z among them; got {', '.join(self.columns)}"
            )
        self._check_scaling()
        if not 0 <= self.channel_dropout < 1:
            raise UserError(f"data.channel_dropout must lie in [0, 1); got {self.channel_dropout}")
        if self.channel_dropout and not self.channels:
            raise UserError(
                "data.channel_dropout leaves out data.channels, of which there are none: leave it out"
            )

    def _check_scaling(self) -> None:
        count = len(self.channels or ())
        if self.statistics is not None and not self.statistics.strip():
            raise UserError("data.statistics is empty: name a file of map-points statistics, or leave it out")
        if (self.channel_mean is None) != (self.channel_std is None):
            raise UserError(
                "data.channel_mean and data.channel_std belong together: give both, or data.statistics"
            )
        for name in ("channel_mean", "channel_std"):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != count or not all(map(math.isfinite, values)):
                raise UserError(
                    f"data.{name} must be one finite number per channel, of which data.channels names {count}; got "
                    f"{', '.join(map(str, values))}"
                )
            if name == "channel_std" and min(values, default=1) <= 0:
                raise UserError(f"data.channel_std must be above 0; got {', '.join(map(str, values))}")
        if self.statistics is not None and not count:
            raise UserError("data.statistics is of data.channels, of which there are none: leave it out")

    def _check_augmentation(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            values = ", ".join(map(str, self.scale))
            raise UserError(f"data.scale must satisfy 0 < low <= high; got {values}")
        if not 0 <= self.translate < math.inf:
            raise UserError(f"data.translate must be 0 or more; got {self.translate}")

    @property
    def fits_unit_sphere(self) -> bool:
        """Whether clouds are fitted into the unit sphere: as set, else as is usual for the source."""
        return self.source != "scanobjectnn" if self.unit_sphere is None else self.unit_sphere

    @property
    def preparation(self) -> dict[str, Any]:
        """How clouds are prepared, with every default resolved, and their source: an entry of a model's description."""
        return {
            "source": self.source,
            "num_points": self.num_points,
            "unit_sphere": self.fits_unit_sphere,
            "up_axis": self.upward,
        }

    @property
    def upward(self) -> Axis:
        """The axis that points up: as set, else that of the source."""
        return self.up_axis or ("z" if self.source in Z_UP else "y")

    @property
    def root_path(self) -> Path:
        """``root`` as a path.

        Raises:
            UserError: there is none.
        """
        if self.root is None:
            raise UserError(f"data.source {self.source!r} is read from a path: give --data.root")
        return expand_user(self.root)


SOURCE_OF_SETTING = {  # the only one that reads it
    "variant": "scanobjectnn",
    "shapes_per_class": "shapes",
    "labels": "folder",
    "columns": "folder",
    "ignore_label": "shapenetpart",
}
LARGEST = 2**63 - 1
WHOLE_NUMBERS = {
    "num_points": (1, LARGEST),
    "subset": (1, LARGEST),
    "shapes_per_class": (1, LARGEST),
    "ignore_label": (-(2**31), 2**31 - 1),
}
