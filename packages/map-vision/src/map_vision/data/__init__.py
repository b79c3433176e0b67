"""Images: where they come from, how they are split, augmented and normalised."""

from .config import DataConfig
from .decoding import UnreadableImageError
from .loading import ImageData, load_image_data, load_images
from .preprocessing import Preprocessing
from .samples import ImageSamples, SkippedImages

__all__ = [
    "DataConfig",
    "ImageData",
    "ImageSamples",
    "Preprocessing",
    "SkippedImages",
    "UnreadableImageError",
    "load_image_data",
    "load_images",
]
