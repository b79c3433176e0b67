"""The user's data settings: where the images are, which of them to use, and how to augment them."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from map_core.errors import UserError
from map_core.json_values import is_whole
from map_core.ranges import check, check_choices
from map_core.shards.sizes import parse_size
from map_core.shards.stores import is_address

Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos"]
Augmentation = Literal["none", "crop_flip", "pad_crop", "shift", "timm", "three_augment"]
PixelKind = Literal["scaled", "stored"]
Shuffle = Literal["all", "shards"]


@dataclass
class DataConfig:
    """Images, splits, augmentation and normalisation.

    Images with as many channels as the model takes are read at the values that their files hold (pixels "stored") from
    arrays (.npy, height x width x channels), TIFF (needs tifffile) and other files. For the usual pictures of 1 or 3
    channels:

    Files are JPEG, PNG, TIFF, WebP, BMP, GIF (its first picture), PPM, and AVIF or HEIF where Pillow reads
    them. Images are turned upright as their EXIF orientation says, as viewers do. Gray samples of 16 bits are
    scaled to 0..255, floating-point samples from 0..1; what has no known white (32-bit or signed integers,
    floating-point samples outside 0..1) is unreadable.

    Args:
        source: "folder" for a folder of images, or of shards where it has their index; "shards" for nothing but shards,
            tar files with an index (see the command shard); "digits" for the 8 x 8 digits that come with scikit-learn;
            a name that timm's create_dataset reads (torch/cifar10, hfds/<owner>/<name>, tfds/<name>, ...); or "auto":
            a folder when root is given, the digits otherwise.
        root: Folder of the images, ``~`` expanded, or for shards the address of one (https://..., s3://..., hf://...);
            for a timm name, the folder where it is stored.
        labels: CSV file that names the images below root, their labels and, if any, their splits (train, val,
            validation or test) in the columns path, label and split; then root needs no class subfolders. Classes
            are the sorted labels, whole numbers by value. Pretraining needs no labels.
        train_split: Training split. For a folder, a subfolder of root ("." is root itself); default "train"
            if it exists, else root itself.
        eval_split: Evaluation split. For a folder, a subfolder of root; default the first of val, validation,
            test.
        holdout: Fraction of the training set to set aside, the same share of every class. Above 0, evaluation
            runs on this part instead of the evaluation split: for choosing learning rates. Training with
            holdout and eval_split is refused; a later evaluation that names eval_split uses that.
        holdout_seed: Seed for choosing the held-out part.
        subset: Train on this many images, a fixed choice with the same share of every class.
        subset_seed: Seed for choosing the subset.
        shuffle: The order of an epoch over shards: "all" draws from all samples at once; "shards" takes the shards in a
            random order and draws from shuffle_shards of them at a time, for shards that are fetched or lie on a disk
            that seeks slowly. Default: "shards" for an address, "all" for a folder.
        shuffle_shards: Number of shards from which samples are drawn at a time.
        shard_cache: Folder in which downloaded shards are kept; default ~/.cache/map/shards.
        shard_cache_size: Most that the shards in it may take, such as 500GB; the least recently read make room.
        on_error: What to do about an unreadable image: "raise" stops with its path; "skip" counts and reports it,
            trains on the next readable image in its place, and leaves it out of everything else.
        cache: "memory" decodes every image once and keeps it, at its own size, in memory that loader workers
            share; for data sets of small images.
        augmentation: "crop_flip" random resized crop and flip; "pad_crop" random crop from a border of an
            eighth of the size (4 pixels at 32) and flip; "shift" by at most one pixel, no flip (these two do not
            enlarge what they crop: set crop_pct to 1 with them, for images larger than the model's); "timm" random
            resized crop and flip, then auto_augment or color_jitter; "three_augment" DeiT III's: crop, flip,
            one of gray, solarize and blur, color jitter (0.3 unless color_jitter is given); "none" as in
            evaluation.
        crop_scale: Range of the area of a random resized crop; default 0.2 to 1 for "crop_flip", 0.08 to 1
            for "timm" and "three_augment".
        horizontal_flip: Probability of a flip, where the augmentation flips.
        auto_augment: timm's policy string, such as "rand-m9-mstd0.5-inc1"; for "timm".
        color_jitter: Strength of brightness, contrast and saturation jitter; for "timm" (without
            auto_augment, or with a policy of 3a) and "three_augment".
        random_erasing: Probability of erasing a random rectangle with noise, after any augmentation but
            "none".
        interpolation: How images are resized; default "bicubic".
        crop_pct: Evaluation resizes the shorter side to size / crop_pct and takes the centre. Default 0.875
            for images larger than the model's, 1 for others, so that small images are not blurred.
        pixels: "scaled" for pictures, brought to 8 bits and 0..1; "stored" for values as files hold them, of any number
            of channels and 8 to 32 bits. Default: as the model was trained, or as in the statistics file; else "scaled"
            for 1 or 3 channels.
        statistics: File of ``map-vision statistics``, whose mean, std and pixels override those here.
        mean: Mean of every channel of pixels in 0..1 or of stored values; default ImageNet's, or the digits' own.
        std: Standard deviation of every channel; default as for mean.
    """

    source: str = "auto"
    root: str | None = None
    labels: str | None = None
    train_split: str | None = None
    eval_split: str | None = None
    holdout: float = 0.0
    holdout_seed: int = 0
    subset: int | None = None
    subset_seed: int = 0
    shuffle: Shuffle | None = None
    shuffle_shards: int = 16
    shard_cache: str | None = None
    shard_cache_size: str = "100GB"
    on_error: Literal["raise", "skip"] = "raise"
    cache: Literal["none", "memory"] = "none"
    augmentation: Augmentation = "crop_flip"
    crop_scale: tuple[float, float] | None = None
    horizontal_flip: float = 0.5
    auto_augment: str | None = None
    color_jitter: float | None = None
    random_erasing: float = 0.0
    interpolation: Interpolation | None = None
    crop_pct: float | None = None
    pixels: PixelKind | None = None
    statistics: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def validate(self) -> None:
        """Raise a :class:`UserError` for the first field that is out of range for any data set or augmentation."""
        _require(self, "source", lambda value: bool(value.strip()), "must name a source")
        for name in ("root", "labels", "train_split", "eval_split", "shard_cache", "statistics"):
            _require(
                self,
                name,
                lambda value: bool(os.fspath(value).strip()),
                "must not be empty (left out: the default)",
            )
        if self.labels is not None and (
            self.root is None or self.source not in ("auto", "folder") or is_address(os.fspath(self.root))
        ):
            raise UserError(
                f"data.labels {self.labels} lists the files of a folder: name that folder with --data.root, of source "
                "'folder'; shards have their labels in them"
            )
        _require(self, "holdout", lambda value: 0 <= value < 1, "must lie in [0, 1): it is a fraction")
        check("data", self, seeds=("holdout_seed", "subset_seed"))
        for name in ("subset", "shuffle_shards"):
            _require(self, name, lambda value: is_whole(value) and value >= 1, "must be at least 1")
        check_choices("data", self)
        parse_size(self.shard_cache_size, "data.shard_cache_size")
        self._validate_augmentation()
        _require(self, "crop_pct", lambda value: 0 < value <= 1, "must lie in (0, 1]")
        for name in ("mean", "std"):
            _require(self, name, lambda value: len(value) > 0, "must be 1 number, or one per channel")
            _require(self, name, lambda value: all(map(math.isfinite, value)), "must be finite")
        _require(self, "std", lambda value: min(value) > 0, "must be positive in every channel")

    def _validate_augmentation(self) -> None:
        _require(
            self,
            "crop_scale",
            lambda value: len(value) == 2 and 0 < value[0] <= value[1] <= 1,
            "must be two increasing numbers in (0, 1]",
        )
        for name in ("horizontal_flip", "random_erasing"):
            _require(self, name, lambda value: 0 <= value <= 1, "is a probability: it must lie in [0, 1]")
        _require(self, "color_jitter", lambda value: 0 <= value < math.inf, "must be 0 or more")
        if self.auto_augment and self.augmentation != "timm":
            raise UserError(
                f"data.auto_augment '{self.auto_augment}' needs data.augmentation 'timm', not '{self.augmentation}': "
                "pass --data '{auto_augment: null}', or --data.augmentation timm"
            )
        if self.color_jitter and self.augmentation not in ("timm", "three_augment"):
            raise UserError(
                f"data.color_jitter ({self.color_jitter}) needs data.augmentation 'timm' or 'three_augment', not "
                f"'{self.augmentation}': pass --data '{{color_jitter: null}}', or one of these augmentations"
            )


def _require(config: DataConfig, name: str, rule_holds: Callable[[Any], bool], rule: str) -> None:
    value = getattr(config, name)
    try:
        is_valid = getattr(DataConfig, name) is None if value is None else rule_holds(value)
    except (TypeError, AttributeError):  # of another type than the field's
        is_valid = False
    if not is_valid:
        raise UserError(f"data.{name} {rule}; got {value!r}; change --data.{name}")
