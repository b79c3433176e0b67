"""Images: where they come from, how they are split, augmented and normalised."""

from .config import DataConfig
from .loading import ImageData, load_image_data, load_images
from .samples import ImageSamples, SkippedImages
from .sources import UnreadableImageError

__all__ = [
    "DataConfig",
    "ImageData",
    "ImageSamples",
    "SkippedImages",
    "UnreadableImageError",
    "load_image_data",
    "load_images",
]
