"""mmdet's COCO data set, with checks for files that would silently swap or drop classes, or fail much later."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO

from map_core.errors import UserError
from map_dense.categories import check_categories

PARTS = ("images", "categories")  # not annotations, which files of test images lack


class CheckedCoco(COCO):
    """mmdet's index of a COCO file, which remembers the file's path."""

    def __init__(self, annotation_file: str) -> None:
        self.path = annotation_file
        try:
            super().__init__(annotation_file)
        except (ValueError, AssertionError, KeyError, TypeError) as error:
            raise UserError(
                f"{annotation_file} is not a COCO file ({type(error).__name__}: {error}); expected JSON with "
                "images, annotations and categories"
            ) from error
        missing = [part for part in PARTS if part not in self.dataset]
        if missing:
            raise UserError(f"{annotation_file} is not a COCO file: it has no {' and no '.join(missing)}")

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence[int] = ()
    ) -> list[int]:
        """Ids of the named categories, which must be in the file's order."""
        check_categories([category["name"] for category in self.dataset["categories"]], cat_names, self.path)
        return super().get_cat_ids(list(cat_names), list(sup_names), list(cat_ids))


class CheckedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset``, with errors that name the file and the annotation.

    Raises:
        UserError: not a COCO file; categories that are not the config's classes; an annotation without bbox, area or
            category, or without a segmentation where masks are loaded.
    """

    COCOAPI = CheckedCoco

    def parse_data_info(self, raw_data_info: dict[str, Any]) -> dict[str, Any]:
        """Parse the annotations of an image."""
        missing = [
            key for key in ("file_name", "width", "height") if key not in raw_data_info["raw_img_info"]
        ]
        if missing:
            image = raw_data_info["raw_img_info"]["img_id"]
            raise UserError(f"{self.ann_file}: image {image} has no {' and no '.join(missing)}; add it")
        required = ["bbox", "area", "category_id"] + ["segmentation"] * self._loads_masks()
        check_annotations(raw_data_info["raw_ann_info"], required, self.ann_file)
        return super().parse_data_info(raw_data_info)

    def _loads_masks(self) -> bool:
        return any(getattr(transform, "with_mask", False) for transform in self.pipeline.transforms)


def check_annotations(annotations: Iterable[Mapping[str, Any]], required: Sequence[str], source: str) -> None:
    """Refuse an annotation that lacks a field.

    Raises:
        UserError: a field is missing, a box does not have four numbers, or a segmentation is empty.
    """
    for annotation in annotations:
        where = f"{source}: annotation {annotation.get('id')} of image {annotation.get('image_id')}"
        for field in required:
            if field not in annotation:
                raise UserError(f"{where} has no {field}; add it, or remove the annotation")
        if len(annotation["bbox"]) != 4:
            raise UserError(
                f"{where} has a bbox of {len(annotation['bbox'])} numbers; expected x, y, width, height"
            )
        if "segmentation" in required and not annotation["segmentation"]:
            raise UserError(f"{where} has an empty segmentation; add its mask, or remove the annotation")
