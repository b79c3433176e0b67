"""Mean and deviation of every channel of a set of images, in one pass."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms import functional as tvf

from map_core.data.statistics import Moments, deviations
from map_core.errors import UserError
from map_core.runs.notes import note
from map_core.training.loading import batches_in_order
from map_vision.data.bands import bands_mode
from map_vision.data.config import DataConfig, PixelKind
from map_vision.data.decoding import Pixels, stored_values
from map_vision.data.image_files import is_array, is_tiff
from map_vision.data.preprocessing import reads_digits, stored_from_elsewhere
from map_vision.data.samples import ImageSamples
from map_vision.data.shard_images import ShardImages
from map_vision.data.sources import FileImages
from map_vision.data.splits import choose_splits
from map_vision.data.statistics_file import Statistics

BATCH = 32  # images between two steps of the progress bar


def moments_of(image: Pixels) -> Float[Tensor, "c 1 3"]:
    """Count, mean and sum of squared differences of every channel of an image; pictures are scaled to 0..1."""
    values = image.double() if isinstance(image, Tensor) else tvf.pil_to_tensor(image).double() / 255
    values = values.flatten(1)
    mean = values.mean(1)
    squares = (values - mean[:, None]).square().sum(1)
    return torch.stack([torch.full_like(mean, values.shape[1]), mean, squares], dim=1).unsqueeze(1)


def combine(images: Iterable[Float[Tensor, "c 1 3"]]) -> Moments:
    """Moments of all images together, with equal weight for every pixel."""
    total: Moments | None = None
    for image in images:
        moments = Moments(float(image[0, 0, 0]), image[:, 0, 1], image[:, 0, 2])
        total = moments if total is None else total.merged(moments)
    assert total is not None, "there is at least one image"
    return total


def measure(
    config: DataConfig, *, channels: int | None = None, workers: int = 0, progress: bool = False
) -> Statistics:
    """Measure the images that ``config`` trains on, as they are stored, without resizing.

    Args:
        config: Source, splits, subset, and how files are read (``pixels``).
        channels: Channels of the images; those of the first one when None.
        workers: Loading processes.
        progress: Show a progress bar.

    Raises:
        UserError: anything missing or inconsistent.
    """
    config = replace(config, statistics=None, cache="none")
    config.validate()
    train = choose_splits(config, "RGB", "pretrain").train
    assert train is not None
    if channels is None:
        channels = first_channels(train.source, config.pixels)
    pixels: PixelKind = config.pixels or ("scaled" if channels in (1, 3) else "stored")
    if pixels == "scaled" and channels not in (1, 3):
        raise UserError(f"data.pixels 'scaled' is for 1 or 3 channels, not {channels}: leave it out")
    if pixels == "stored" and not isinstance(train.source, FileImages | ShardImages):
        raise UserError(stored_from_elsewhere("digits" if reads_digits(config) else config.source))
    mode = bands_mode(channels) if pixels == "stored" else "RGB" if channels == 3 else "L"
    samples = ImageSamples(
        train.source, moments_of, mode=mode, indices=train.indices, on_error=config.on_error
    ).without_unreadable()
    batches = batches_in_order(
        samples,
        batch_size=BATCH,
        workers=workers,
        device=torch.device("cpu"),
        progress="statistics" if progress else None,
    )
    total = combine(image for batch, _ in batches for image in batch)
    return Statistics(pixels, tuple(total.mean.tolist()), deviations(total, note), len(samples))


def first_channels(source: object, pixels: PixelKind | None) -> int:
    """Channels of the first file if it is read at stored values or is an array or TIFF; 3 for other pictures."""
    if isinstance(source, FileImages | ShardImages):
        first = source.paths[0] if isinstance(source, FileImages) else source.file(0)
        if pixels == "stored" or is_array(first) or is_tiff(first):
            return len(stored_values(first, None, name=source.name(0)))
    return 3
