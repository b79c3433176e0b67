"""What a user says about data: where the images are, which of them to use, and how to augment them."""

from dataclasses import dataclass
from typing import Literal

Augmentation = Literal["none", "crop_flip", "pad_crop", "shift", "timm", "three_augment"]
Purpose = Literal["pretrain", "finetune", "evaluate", "features"]


@dataclass
class DataConfig:
    """Images, splits, augmentation and normalisation.

    Args:
        source: "folder" for a folder of images, "digits" for the 8 x 8 digits that come with scikit-learn, a
            name that timm's create_dataset reads (torch/cifar10, hfds/<owner>/<name>, tfds/<name>, ...), or
            "auto": a folder when root is given, the digits otherwise.
        root: Folder of the images; for a timm name, the folder it is stored in.
        train_split: Training split. For a folder, a subfolder of root ("." is root itself); default "train"
            if it exists, else root itself.
        eval_split: Evaluation split. For a folder, a subfolder of root; default the first of val, validation,
            test.
        holdout: Fraction of the training set to set aside, the same share of every class. Above 0, evaluation
            runs on this part instead of the evaluation split: for choosing learning rates.
        holdout_seed: Seed of the choice of the held-out part.
        subset: Train on this many images, a fixed choice with the same share of every class.
        subset_seed: Seed of the choice of the subset.
        on_error: What an unreadable image does: "raise" stops with its path; "skip" counts and reports it,
            trains on the next readable image in its place, and leaves it out of evaluation.
        cache: "memory" decodes every image once and keeps it, at its own size, in memory that loader workers
            share; for data sets of small images.
        augmentation: "crop_flip" random resized crop and flip; "pad_crop" random crop from a border of an
            eighth of the size (4 pixels at 32) and flip; "shift" by at most one pixel, no flip; "timm" random
            resized crop and flip, then auto_augment or color_jitter; "three_augment" DeiT III's: crop, flip,
            one of gray, solarize and blur, color jitter (0.3 unless color_jitter is given); "none" as in
            evaluation.
        crop_scale: Range of the area of a random resized crop; default 0.2 to 1 for "crop_flip", 0.08 to 1
            for "timm" and "three_augment".
        horizontal_flip: Probability of a flip, where the augmentation flips.
        auto_augment: timm's policy string, such as "rand-m9-mstd0.5-inc1"; for "timm".
        color_jitter: Strength of brightness, contrast and saturation jitter; for "timm" (without
            auto_augment) and "three_augment".
        random_erasing: Probability of erasing a random rectangle with noise, after any augmentation but
            "none".
        interpolation: "bicubic", "bilinear", "nearest" or "lanczos".
        crop_pct: Evaluation resizes the shorter side to size / crop_pct and takes the centre. Default 0.875
            for images larger than the model's, 1 for others, so that small images are not blurred.
        mean: Mean of every channel of pixels in 0..1; default ImageNet's, or the digits' own.
        std: Standard deviation of every channel; default as for mean.
    """

    source: str = "auto"
    root: str | None = None
    train_split: str | None = None
    eval_split: str | None = None
    holdout: float = 0.0
    holdout_seed: int = 0
    subset: int | None = None
    subset_seed: int = 0
    on_error: Literal["raise", "skip"] = "raise"
    cache: Literal["none", "memory"] = "none"
    augmentation: Augmentation = "crop_flip"
    crop_scale: tuple[float, float] | None = None
    horizontal_flip: float = 0.5
    auto_augment: str | None = None
    color_jitter: float | None = None
    random_erasing: float = 0.0
    interpolation: str = "bicubic"
    crop_pct: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
