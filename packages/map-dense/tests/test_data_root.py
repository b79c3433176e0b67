"""One option, data_root, moves the data sets and the annotations of the evaluator."""

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from torch.utils.data import DataLoader

from map_core import UserError
from map_dense.data_root import with_annotation_paths, with_data_root


def test_it_reaches_data_sets_within_wrappers(tmp_path: Path) -> None:
    config = Config(dict(data_root=str(tmp_path)))
    parts = [dict(type="CocoDataset"), dict(type="RepeatDataset", times=2, dataset=dict(type="CocoDataset"))]
    loader = dict(batch_size=2, dataset=dict(type="ConcatDataset", datasets=parts))
    filled = with_data_root(loader, config)
    first, second = filled["dataset"]["datasets"]
    assert first == dict(type="CocoDataset", data_root=str(tmp_path))
    assert second["dataset"] == dict(type="CocoDataset", data_root=str(tmp_path))
    assert filled["batch_size"] == 2
    assert "data_root" not in parts[0]  # the settings themselves stay


def test_a_data_set_with_its_own_root_keeps_it() -> None:
    loader = dict(dataset=dict(type="CocoDataset", data_root="elsewhere"))
    assert with_data_root(loader, Config(dict(data_root="nowhere"))) == loader


def test_relative_annotations_of_evaluators_lie_under_it(tmp_path: Path) -> None:
    config = Config(dict(data_root=str(tmp_path)))
    evaluators = [dict(type="CocoMetric", ann_file="a.json"), dict(type="CocoMetric", ann_file="/b.json")]
    relative, absolute = with_annotation_paths(evaluators, None, config)
    assert relative["ann_file"] == f"{tmp_path}/a.json"
    assert absolute["ann_file"] == "/b.json"
    assert with_annotation_paths(dict(type="IoUMetric"), None, config) == dict(type="IoUMetric")


@pytest.mark.parametrize("wrapper", [None, "RepeatDataset", "ConcatDataset"])
def test_annotations_of_an_evaluator_lie_beside_its_data(tmp_path: Path, wrapper: str | None) -> None:
    config, dataset = Config(dict(data_root=str(tmp_path))), dict(type="CocoDataset", data_root="/elsewhere")
    wrapped = {
        None: dataset,
        "RepeatDataset": dict(type=wrapper, times=2, dataset=dataset),
        "ConcatDataset": dict(type=wrapper, datasets=[dataset, dataset]),
    }
    evaluator = dict(type="CocoMetric", ann_file="a.json")
    loader = with_data_root(dict(dataset=wrapped[wrapper]), config)
    assert with_annotation_paths(evaluator, loader, config)["ann_file"] == "/elsewhere/a.json"


def test_annotations_of_data_in_several_directories_must_be_absolute(tmp_path: Path) -> None:
    config = Config(dict(data_root=str(tmp_path)))
    parts = [dict(type="CocoDataset"), dict(type="CocoDataset", data_root="/elsewhere")]
    loader = with_data_root(dict(dataset=dict(type="ConcatDataset", datasets=parts)), config)
    with pytest.raises(
        UserError, match=rf"ann_file \(a\.json\) .* data lie in /elsewhere and {tmp_path}: make it absolute"
    ):
        with_annotation_paths(dict(type="CocoMetric", ann_file="a.json"), loader, config)


def test_built_objects_are_returned_as_they_are() -> None:
    loader, evaluator = DataLoader([1, 2]), Evaluator([])  # type: ignore[arg-type]
    assert with_data_root(loader, Config()) is loader
    assert with_annotation_paths(evaluator, loader, Config()) is evaluator


@pytest.mark.parametrize("root", [None, "/there/is/none"])
def test_a_missing_root_names_the_option_that_sets_it(root: str | None) -> None:
    message = r"data_root is not set" if root is None else r"data_root \(/there/is/none\) is not a directory"
    with pytest.raises(UserError, match=message + ".*--cfg-options data_root=PATH"):
        with_data_root(dict(dataset=dict(type="CocoDataset")), Config(dict(data_root=root)))


@pytest.mark.parametrize(
    ("parts", "missing"),
    [
        (dict(data_prefix=dict(img_path="images", seg_map_path="labels")), "labels, .* seg_map_path"),
        (dict(data_prefix=dict(img="images/"), ann_file="annotations.json"), "annotations.json, .* ann_file"),
    ],
)
def test_a_root_that_lacks_a_part_of_the_data_set_is_reported(
    tmp_path: Path, parts: dict[str, Any], missing: str
) -> None:
    (tmp_path / "images").mkdir()
    loader, config = dict(dataset=dict(type="Some", **parts)), Config(dict(data_root=str(tmp_path)))
    with pytest.raises(UserError, match=rf"data_root \({tmp_path}\) has no {missing}: .* data_root=PATH"):
        with_data_root(loader, config)
    (tmp_path / "labels").mkdir()
    (tmp_path / "annotations.json").touch()
    assert with_data_root(loader, config)["dataset"]["data_root"] == str(tmp_path)
