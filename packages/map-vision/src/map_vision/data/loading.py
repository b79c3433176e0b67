"""Open the data sets of a run from a ``DataConfig``."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from map_core.errors import UserError
from map_core.runs.notes import note
from map_core.tasks.domain import Purpose
from map_vision.data.config import DataConfig
from map_vision.data.decoding import UnreadableImageError
from map_vision.data.image_paths import read_image_paths
from map_vision.data.listing import count_by_kind
from map_vision.data.memory import cache_images
from map_vision.data.preprocessing import (
    Preprocessing,
    reads_digits,
    resolve_preprocessing,
    stored_from_elsewhere,
)
from map_vision.data.samples import ImageSamples, SkippedImages, Transform
from map_vision.data.splits import Split, Splits, choose_splits
from map_vision.data.timm_sources import StreamedImages
from map_vision.data.transforms import evaluation_transform, training_transform

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageData:
    """The data sets of a run: samples are (image [c h w] float32, normalised, label int).

    Args:
        training: Images to train on, augmented unless the purpose is "features".
        evaluation: Images to evaluate on, with the evaluation transform.
        evaluated_on: Name of the evaluation split, such as "val".
        classes: Class names in the order of the labels, () for images without labels.
        preprocessing: How images are prepared for the model; to be stored with its weights.
        evaluation_transform: The preprocessing as a function of an image.
        description: Where the images are, how many, and what was left out.
    """

    training: ImageSamples | None
    evaluation: ImageSamples | None
    evaluated_on: str | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    evaluation_transform: Transform
    description: str

    @property
    def train(self) -> ImageSamples:
        """Training images, augmented unless the purpose is "features".

        Raises:
            UserError: there is only an evaluation split (purpose "evaluate" or "features").
        """
        if self.training is None:
            raise UserError(
                f"no training split, which this needs, in {self.description}: pass --data.train_split"
            )
        return self.training

    def train_unaugmented(self) -> ImageSamples:
        """Return the training images with the evaluation transform, as features and kNN need them."""
        return self.train.with_transform(self.evaluation_transform)

    def skipped(self, show: int = 5) -> SkippedImages:
        """Report the unreadable images that this process and those that load for it have met."""
        sample_sets = [samples for samples in (self.training, self.evaluation) if samples is not None]
        if len(sample_sets) == 2 and sample_sets[0].source is sample_sets[1].source:
            sample_sets.pop()  # samples of one source share their count
        reports = [samples.skipped(show) for samples in sample_sets]
        names = tuple(name for report in reports for name in report.names)
        return SkippedImages(sum(report.count for report in reports), names[:show])


def load_image_data(
    config: DataConfig,
    *,
    img_size: tuple[int, int],
    in_chans: int,
    purpose: Purpose,
    trained: Preprocessing | None = None,
) -> ImageData:
    """Open the data that ``config`` names; ``img_size`` is (height, width).

    "pretrain" needs no labels and has no evaluation images; "finetune" augments the training images; "features" does
    not, and needs neither labels nor both splits; "evaluate" reads only the evaluation images. ``trained`` is how the
    images of a trained model were prepared: it is used for what ``config`` leaves open.

    Raises:
        UserError: anything missing or inconsistent.
    """
    config.validate()
    preprocessing = resolve_preprocessing(config, in_chans=in_chans, trained=trained)
    if preprocessing.pixels == "stored" and reads_digits(config):
        raise UserError(stored_from_elsewhere("digits"))
    plain = evaluation_transform(preprocessing, img_size=img_size)
    augmented = training_transform(config, preprocessing, img_size=img_size)
    splits = choose_splits(config, preprocessing.mode, purpose)
    if preprocessing.mode == "L" and purpose in ("pretrain", "finetune") and _has_colours(splits.train):
        note(
            f"{_where(config)}: images in colour are read in grey, as model.in_chans is 1 (with --init, the run's); to "
            "read colours, pretrain, or train from scratch, with --model.in_chans 3"
        )
    training, evaluation = _samples(splits, config, preprocessing.mode, plain)
    if training is not None:
        training = (
            training.without_unreadable() if purpose == "features" else training.with_transform(augmented)
        )
        training.require_readable()
    if evaluation is not None:
        evaluation = evaluation.without_unreadable()
    samples = evaluation if training is None else training
    assert samples is not None
    description = _describe(config, splits, training, evaluation)
    if splits.ignored and purpose in ("features", "evaluate"):  # training reports its data anyway
        log.warning("%s", description)
    return ImageData(
        training=training,
        evaluation=evaluation,
        evaluated_on=None if splits.evaluation is None else splits.evaluation.name,
        classes=samples.classes,
        preprocessing=preprocessing,
        evaluation_transform=plain,
        description=description,
    )


def load_images(
    paths: str | Path | Sequence[str | Path],
    config: DataConfig,
    *,
    img_size: tuple[int, int],
    in_chans: int,
    trained: Preprocessing | None = None,
) -> ImageSamples:
    """Open image files, folders (searched, sorted) and patterns as samples without labels, named by path.

    If ``config.on_error`` is "skip", unreadable images are left out, and ``skipped()`` lists them.

    Raises:
        UserError: no paths, a path that does not exist, or a folder or pattern without images.
    """
    config.validate()
    preprocessing = resolve_preprocessing(config, in_chans=in_chans, trained=trained)
    source = read_image_paths(paths)
    if source.ignored:
        log.warning("%d images to read (%s)", len(source), count_by_kind(source.ignored))
    plain = evaluation_transform(preprocessing, img_size=img_size)
    return ImageSamples(source, plain, mode=preprocessing.mode, on_error=config.on_error).without_unreadable()


def _has_colours(split: Split | None) -> bool:
    """Whether the first image of a split is in colour; False if it cannot be read, which loading it reports."""
    if split is None:
        return False
    try:
        image = split.source.image(int(split.indices[0]), "RGB")
    except UnreadableImageError:
        return False
    pixels = np.asarray(image)
    return bool((pixels != pixels[..., :1]).any())


def _where(config: DataConfig) -> str:
    return config.root or ("digits" if config.source == "auto" else config.source)


def _samples(
    splits: Splits, config: DataConfig, mode: str, plain: Transform
) -> tuple[ImageSamples | None, ImageSamples | None]:
    """Make the samples of both splits; splits of one source share the cache and the count of unreadable images."""
    train, evaluation = splits.train, splits.evaluation

    def make(split: Split, other: Split | None = None) -> ImageSamples:
        indices = split.indices if other is None else np.union1d(split.indices, other.indices)
        source = split.source
        if config.cache == "memory" and not isinstance(source, StreamedImages):
            source = cache_images(source, indices, mode, skip_unreadable=config.on_error == "skip")
        return ImageSamples(source, plain, mode=mode, indices=split.indices, on_error=config.on_error)

    if train is not None and evaluation is not None and train.source is evaluation.source:
        shared = make(train, evaluation)
        return shared, shared.select(evaluation.indices)
    return (None if train is None else make(train)), (None if evaluation is None else make(evaluation))


def _describe(
    config: DataConfig, splits: Splits, training: ImageSamples | None, evaluation: ImageSamples | None
) -> str:
    parts = []
    if training is not None:
        parts.append(f"{len(training)} training images")
    if evaluation is not None and splits.evaluation is not None:
        parts.append(f"{len(evaluation)} evaluation images ({splits.evaluation.name})")
    ignored = count_by_kind(splits.ignored)
    return f"{_where(config)}: {', '.join(parts)}" + (f" ({ignored})" if ignored else "")
