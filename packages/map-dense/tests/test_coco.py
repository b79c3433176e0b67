"""COCO files: classes that would be swapped or dropped, and annotations that would fail later, are refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

import map_dense.mmdet
from map_core.errors import UserError
from map_dense.categories import check_categories
from map_dense.coco import CheckedCocoDataset
from map_dense.loops import check_evaluator

NAMES = ("date", "fig", "hazelnut")
BOX = dict(
    id=7, image_id=3, category_id=2, bbox=[1, 2, 8, 8], area=64, iscrowd=0, segmentation=[[1, 2, 9, 2, 9, 10]]
)
LOAD_MASKS = [dict(type="LoadAnnotations", with_bbox=True, with_mask=True)]


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmdet")


def coco_file(folder: Path, names: tuple[str, ...] = NAMES, **changes: Any) -> Path:
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(folder / "a.jpg")
    content = dict(
        images=[dict(id=3, file_name="a.jpg", width=16, height=16)],
        annotations=[BOX],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(names)],
    )
    file = folder / "instances.json"
    file.write_text(json.dumps({**content, **changes}))
    return file


def build_dataset(file: Path, classes: tuple[str, ...] = NAMES, pipeline: Any = ()) -> Any:
    settings = dict(
        type="CocoDataset", ann_file=str(file), metainfo=dict(classes=classes), pipeline=list(pipeline)
    )
    return DATASETS.build(dict(settings, data_prefix=dict(img=str(file.parent))))


def test_configs_that_name_mmdets_data_set_get_the_checked_one(tmp_path: Path) -> None:
    dataset = build_dataset(coco_file(tmp_path), pipeline=LOAD_MASKS)
    assert type(dataset) is CheckedCocoDataset
    settings = dict(ann_file=str(tmp_path / "instances.json"), data_prefix=dict(img=str(tmp_path)))
    reference = CocoDataset(metainfo=dict(classes=NAMES), **settings)
    assert dataset.get_data_info(0)["instances"] == reference.get_data_info(0)["instances"]
    assert dataset.get_data_info(0)["instances"][0]["bbox_label"] == 1


def test_a_class_is_learned_under_its_name_where_the_file_has_more(tmp_path: Path) -> None:
    file = coco_file(tmp_path, names=("apple", "fig", "kiwi", "hazelnut"))
    assert (
        build_dataset(file, classes=("fig", "hazelnut")).get_data_info(0)["instances"][0]["bbox_label"] == 0
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("fig", "date", "hazelnut"),
            r"number 1 is 'fig' in the file and 'date' in the config; "
            r"put the file's categories into the order \('date', 'fig', 'hazelnut'\)",
        ),
        (("date", "hazelnut", "fig"), r"number 2 is 'hazelnut' in the file and 'fig' in the config"),
        (
            ("date", "fig", "Hazelnut"),
            r"no category 'hazelnut', a class of the config \(did you mean Hazelnut\?.*\): set",
        ),
        (("date", "fig"), r"no category 'hazelnut', a class of the config \(known names: date, fig\): set"),
        (
            ("date", "fig", "hazelnut", "fig"),
            r"has category 'fig' twice; merge or rename one",
        ),
        ((), r"no category 'date'"),
    ],
)
def test_other_categories_than_the_configs_classes_are_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=r"instances\.json .*" + message):
        build_dataset(coco_file(tmp_path, names))


def test_an_evaluator_of_another_file_is_compared_too(tmp_path: Path) -> None:
    dataset = build_dataset(coco_file(tmp_path))
    (tmp_path / "other").mkdir()
    other = CocoMetric(ann_file=str(coco_file(tmp_path / "other", names=("fig", "date", "hazelnut"))))
    with pytest.raises(UserError, match=r"ann_file of the evaluator lists its categories in another order"):
        check_evaluator(EvaluatorStub([other]), dataset)
    check_evaluator(EvaluatorStub([CocoMetric(ann_file=str(tmp_path / "instances.json"))]), dataset)


class EvaluatorStub:
    """Stands for a loop's evaluator: a list of metrics."""

    def __init__(self, metrics: list[Any]) -> None:
        self.metrics = metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(area=None), r"annotation 7 of image 3 has no area; add it, or remove the annotation"),
        (dict(bbox=None), r"annotation 7 of image 3 has no bbox"),
        (
            dict(bbox=[1, 2, 3]),
            r"annotation 7 of image 3 has a bbox of 3 numbers; expected x, y, width, height",
        ),
        (dict(segmentation=None), r"annotation 7 of image 3 has no segmentation"),
        (dict(segmentation=[]), r"annotation 7 of image 3 has an empty segmentation; add its mask"),
    ],
)
def test_an_annotation_that_lacks_something_is_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    box = {key: value for key, value in {**BOX, **change}.items() if value is not None}
    with pytest.raises(UserError, match=r"instances\.json: " + message):
        build_dataset(coco_file(tmp_path, annotations=[box]), pipeline=LOAD_MASKS)


def test_boxes_alone_need_no_segmentation(tmp_path: Path) -> None:
    box = {key: value for key, value in BOX.items() if key != "segmentation"}
    dataset = build_dataset(
        coco_file(tmp_path, annotations=[box]), pipeline=[dict(type="LoadAnnotations", with_bbox=True)]
    )
    assert len(dataset.get_data_info(0)["instances"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html>", r"is not a COCO file \(JSONDecodeError"),
        ("[1]", r"is not a COCO file \(AssertionError"),
        ("{}", r"is not a COCO file: it has no images and no categories"),
        (
            '{"images": [], "annotations": [{}], "categories": []}',
            r"is not a COCO file \(KeyError: 'image_id'",
        ),
    ],
)
def test_another_file_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    file = coco_file(tmp_path)
    file.write_text(content)
    with pytest.raises(UserError, match=r"instances\.json " + message):
        build_dataset(file)


def test_an_image_without_its_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"instances\.json: image 3 has no width and no height"):
        build_dataset(coco_file(tmp_path, images=[dict(id=3, file_name="a.jpg")]))


def test_order_counts_among_the_configs_classes_alone() -> None:
    check_categories(["a", "x", "b", "y"], ["a", "b"], "file")
    with pytest.raises(UserError, match="another order"):
        check_categories(["b", "x", "a"], ["a", "b"], "file")


def test_a_class_that_the_config_lists_twice_is_named() -> None:
    with pytest.raises(UserError, match=r"metainfo.classes lists 'a' twice, .*: list each class once"):
        check_categories(["a", "b"], ["a", "b", "a"], "file")


@pytest.mark.parametrize("classes", [["a", "b"], ["a", "a", "b"]])
def test_a_category_twice_in_the_file_is_named_whatever_the_config_lists(classes: list[str]) -> None:
    with pytest.raises(UserError, match=r"file has category 'a' twice; merge or rename one"):
        check_categories(["a", "a", "b"], classes, "file")
    check_categories(["a", "x", "x", "b"], ["a", "b"], "file")  # not learned


def test_the_registered_name_is_that_of_this_package() -> None:
    assert map_dense.mmdet.DATASETS.get("CocoDataset") is CheckedCocoDataset
