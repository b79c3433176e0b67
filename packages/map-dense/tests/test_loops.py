"""Loops: a resumed model is validated after all, and what would be scored wrongly is refused before it starts."""

from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from map_core import UserError
from map_dense.loops import (
    DataRootEpochBasedTrainLoop,
    DataRootIterBasedTrainLoop,
    check_classes,
    check_patch_sizes,
)


@pytest.mark.parametrize("done", [2, 3])
@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (DataRootIterBasedTrainLoop, IterBasedTrainLoop),
        (DataRootEpochBasedTrainLoop, EpochBasedTrainLoop),
    ],
)
def test_a_loop_resumed_at_its_end_validates(
    monkeypatch: pytest.MonkeyPatch, kind: Any, base: Any, done: int
) -> None:
    validations = []
    loop = object.__new__(kind)
    loop._runner = SimpleNamespace(val_loop=SimpleNamespace(run=lambda: validations.append(done)))
    loop._iter = done

    def train(self: Any) -> str:
        self._iter = 3
        return "model"

    monkeypatch.setattr(base, "run", train)  # which validates after a last step of its own
    assert loop.run() == "model"
    assert validations == [3] * (done == 3)


@DATASETS.register_module()
class TwoClasses(BaseDataset):
    METAINFO = {"classes": ("a", "b")}  # noqa: RUF012, as mmengine has it


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("classes", [None, ["b", "a"]])
def test_classes_in_another_order_than_in_training_are_refused(
    wrapped: bool, classes: list[str] | None
) -> None:
    dataset = {"type": "TwoClasses", "metainfo": classes and {"classes": classes}}
    if wrapped:
        dataset = {"type": "RepeatDataset", "times": 2, "dataset": dataset}
    config = Config({"train_dataloader": {"dataset": dataset}})
    same, swapped = (("b", "a"), ("a", "b")) if classes else (("a", "b"), ("b", "a"))
    check_classes(SimpleNamespace(metainfo={"classes": same}), config, "test_dataloader")
    message = (
        rf"test_dataloader has other classes .* number 1 is '{swapped[0]}' and not '{same[0]}', .* metainfo"
    )
    with pytest.raises(UserError, match=message):
        check_classes(SimpleNamespace(metainfo={"classes": swapped}), config, "test_dataloader")


def test_data_are_scored_where_nothing_is_known_of_training() -> None:
    dataset = SimpleNamespace(metainfo={"classes": ("a", "b")})
    check_classes(dataset, Config({}), "test_dataloader")
    check_classes(
        SimpleNamespace(), Config({"train_dataloader": {"dataset": {"type": "TwoClasses"}}}), "test"
    )


def test_a_pyramid_for_other_patches_than_the_backbones_is_refused() -> None:
    model = SimpleNamespace(backbone=SimpleNamespace(patch_size=8), neck=SimpleNamespace(patch_size=16))
    with pytest.raises(
        UserError,
        match=r"model\.backbone\.patch_size \(8\) and model\.neck\.patch_size \(16\) must be equal, .*; set both",
    ):
        check_patch_sizes(model)
    model.neck.patch_size = 8
    check_patch_sizes(model)
    check_patch_sizes(SimpleNamespace(backbone=SimpleNamespace()))  # a pyramid of its own, without neck
