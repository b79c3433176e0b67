"""From a ``DataConfig`` to the data sets of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from map_core.errors import UserError

from .config import DataConfig, Purpose
from .folders import list_images
from .memory import cache_images
from .normalization import pixel_mean, pixel_std
from .samples import ImageSamples, SkippedImages, Transform
from .sources import FileImages
from .splits import Split, Splits, choose_splits
from .timm_sources import StreamedImages
from .transforms import evaluation_transform, training_transform


@dataclass(frozen=True)
class ImageData:
    """The data sets of a run: samples are (image [c h w] float32, normalised, label int).

    ``classes`` are the class names in the order of the labels, () for images without labels. ``mean`` and
    ``std`` have one value a channel, for pixels in 0..1.
    """

    training: ImageSamples | None
    evaluation: ImageSamples | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    evaluation_transform: Transform
    description: str

    @property
    def train(self) -> ImageSamples:
        """Training images, augmented unless the purpose is "features".

        Raises:
            UserError: when there is an evaluation split only (purpose "evaluate" or "features").
        """
        if self.training is None:
            raise UserError(
                f"no training split, which this needs, in {self.description}: pass --data.train_split"
            )
        return self.training

    def train_unaugmented(self) -> ImageSamples:
        """Return the training images under the evaluation transform, as features and kNN need them."""
        return self.train.with_transform(self.evaluation_transform)

    def skipped(self, show: int = 5) -> SkippedImages:
        """Report the unreadable images met so far, in training and evaluation, by all worker processes."""
        parts = [samples for samples in (self.training, self.evaluation) if samples is not None]
        if len(parts) == 2 and parts[0].source is parts[1].source:
            parts.pop()  # parts of one source count together
        reports = [samples.skipped(show) for samples in parts]
        names = tuple(name for report in reports for name in report.names)
        return SkippedImages(sum(report.count for report in reports), names[:show])


def load_image_data(
    config: DataConfig, *, img_size: tuple[int, int], in_chans: int, purpose: Purpose
) -> ImageData:
    """Open the data that ``config`` names; ``img_size`` is (height, width).

    "pretrain" needs no labels and has no evaluation part; "finetune" augments the training part; "features"
    does not, and does not insist on a training part; "evaluate" has the evaluation part only and reads no other.

    Raises:
        UserError: for anything that is missing, does not exist or does not fit.
    """
    mean, std = pixel_mean(config, in_chans), pixel_std(config, in_chans)
    plain = evaluation_transform(config, img_size=img_size, mean=mean, std=std)
    augmented = training_transform(config, img_size=img_size, mean=mean, std=std)
    splits = choose_splits(config, _mode(in_chans), purpose)
    training, evaluation = _samples(splits, config, _mode(in_chans), plain)
    if training is not None and purpose != "features":
        training = training.with_transform(augmented)
    if evaluation is not None and config.on_error == "skip":
        evaluation = evaluation.without_unreadable()
    opened = training or evaluation
    assert opened is not None
    return ImageData(
        training=training,
        evaluation=evaluation,
        classes=opened.classes,
        mean=mean,
        std=std,
        evaluation_transform=plain,
        description=_describe(config, training, evaluation),
    )


def load_images(
    paths: str | Path | Sequence[str | Path], config: DataConfig, *, img_size: tuple[int, int], in_chans: int
) -> ImageSamples:
    """Open image files and folders (searched, sorted) as samples without labels; ``names`` are their paths.

    Where ``config.on_error`` is "skip", unreadable images are left out, and ``skipped()`` tells which.

    Raises:
        UserError: for a path that does not exist or a folder without images.
    """
    files = list_images([paths] if isinstance(paths, str | Path) else paths)
    source = FileImages(np.zeros(len(files), dtype=np.int64), (), tuple(files))
    plain = evaluation_transform(
        config, img_size=img_size, mean=pixel_mean(config, in_chans), std=pixel_std(config, in_chans)
    )
    samples = ImageSamples(source, plain, mode=_mode(in_chans), on_error=config.on_error)
    return samples.without_unreadable() if config.on_error == "skip" else samples


def _mode(in_chans: int) -> Literal["RGB", "L"]:
    return "RGB" if in_chans == 3 else "L"


def _samples(
    splits: Splits, config: DataConfig, mode: Literal["RGB", "L"], plain: Transform
) -> tuple[ImageSamples | None, ImageSamples | None]:
    """Make the samples of both splits; of one source, they share cache and count of unreadable images."""
    train, evaluation = splits.train, splits.evaluation

    def make(split: Split, also: Split | None = None) -> ImageSamples:
        used = split.indices if also is None else np.union1d(split.indices, also.indices)
        source = split.source
        if config.cache == "memory" and not isinstance(source, StreamedImages):
            source = cache_images(source, used, mode, skip_unreadable=config.on_error == "skip")
        return ImageSamples(source, plain, mode=mode, indices=split.indices, on_error=config.on_error)

    if train is not None and evaluation is not None and train.source is evaluation.source:
        together = make(train, evaluation)
        return together, together.select(evaluation.indices)
    return (None if train is None else make(train)), (None if evaluation is None else make(evaluation))


def _describe(config: DataConfig, training: ImageSamples | None, evaluation: ImageSamples | None) -> str:
    where = config.root or ("digits" if config.source == "auto" else config.source)
    parts = [
        f"{len(samples)} {name} images"
        for name, samples in (("training", training), ("evaluation", evaluation))
        if samples is not None
    ]
    return f"{where}: {', '.join(parts)}"
