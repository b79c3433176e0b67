"""Images: where they come from, how they are split, augmented and normalised."""

from map_vision.data.config import DataConfig
from map_vision.data.decoding import UnreadableImageError
from map_vision.data.loading import ImageData, load_image_data, load_images
from map_vision.data.preprocessing import Preprocessing
from map_vision.data.samples import ImageSamples, SkippedImages

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
