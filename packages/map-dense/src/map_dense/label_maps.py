"""mmseg's loading of label maps, with checks that name a map whose labels would be misread."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image, UnidentifiedImageError

from map_core.errors import UserError

LABEL_MODES = ("L", "P", "1")


class LoadLabelMap(LoadAnnotations):
    """mmseg's ``LoadAnnotations`` for a known number of classes.

    Args:
        num_classes: Labels are 0 to ``num_classes`` - 1, after ``reduce_zero_label``.
        ignore_index: The label that is not learned.
        **options: See mmseg's ``LoadAnnotations``.

    Raises:
        UserError: a map of colours or of more than 8 bits, of another size than its image, or with a label that is out
            of range.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        path = results["seg_map_path"]
        self._check_mode(path)
        super()._load_seg_map(results)
        labels = results["gt_seg_map"]
        size = tuple(results.get("ori_shape", labels.shape)[:2])
        if labels.shape != size:
            raise UserError(
                f"label map {path} has {_format_size(labels.shape)} pixels, its image {_format_size(size)}; "
                "give one label to each pixel of the image"
            )
        invalid = np.setdiff1d(labels, [*range(self.num_classes), self.ignore_index])
        if invalid.size:
            suffix = " after reduce_zero_label" if self.reduce_zero_label else ""
            raise UserError(
                f"label map {path} has label {invalid[0]}{suffix}, but there are {self.num_classes} classes "
                f"(0 to {self.num_classes - 1}, and {self.ignore_index} to ignore); set num_classes, or correct the map"
            )

    def _check_mode(self, path: str) -> None:
        try:
            # decodes the header only
            mode = Image.open(io.BytesIO(fileio.get(path, backend_args=self.backend_args))).mode
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(
                f"label map {path} cannot be read ({error}); give an image of one label per pixel"
            ) from error
        if mode not in LABEL_MODES:
            raise UserError(
                f"label map {path} has pixels of kind {mode}, not one label of 8 bits each; convert colours to labels "
                "(0, 1, 2, ...) and save them as an image of one channel"
            )


def _format_size(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
