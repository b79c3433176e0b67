"""The clouds that are trained on and evaluated on."""

import numpy as np
import pytest

from map_core.errors import UserError
from map_points.data import PointDataConfig
from map_points.domain import open_data
from map_points.factory import PointModelConfig


def open_clouds(purpose, **settings):
    return open_data(PointDataConfig(**settings), PointModelConfig(), purpose)


@pytest.fixture
def labelled(tmp_path):
    """40 training clouds of four classes, 4 test clouds; the first coordinate tells them apart."""
    points = np.zeros((40, 64, 3), dtype=np.float32)
    points[:, 0, 0] = np.arange(40)
    file = tmp_path / "d.npz"
    labels = np.arange(40) % 4
    np.savez(
        file,
        train_x=points,
        train_y=labels,
        test_x=points[:4],
        test_y=labels[:4],
        classes=np.array(list("abcd")),
    )
    return {"source": "modelnet40_npz", "root": str(file), "num_points": 64, "unit_sphere": False}


def numbers(data):
    return {float(data.clouds.points(i)[0, 0]) for i in range(len(data))}


def test_a_subset_is_fixed_and_stratified(labelled):
    data = open_clouds("finetune", **labelled, subset=8)
    assert np.bincount(data.train.clouds.labels).tolist() == [2, 2, 2, 2]
    assert len(data.evaluation) == 4
    assert data.evaluated_on == "test split"
    again = open_clouds("pretrain", **labelled, subset=8)
    assert numbers(again.train) == numbers(data.train)
    other = open_clouds("pretrain", **labelled, subset=8, subset_seed=1)
    assert numbers(other.train) != numbers(data.train)
    assert data.train.clouds.name(0).endswith(f"cloud {int(data.train.clouds.points(0)[0, 0])}")


def test_a_held_out_part_takes_the_place_of_the_test_split(labelled):
    data = open_clouds("finetune", **labelled, holdout=0.2)
    assert np.bincount(data.evaluation.clouds.labels).tolist() == [2, 2, 2, 2]
    assert not numbers(data.evaluation) & numbers(data.train)
    assert numbers(data.evaluation) | numbers(data.train) == set(range(40))
    assert data.evaluated_on == "held-out 0.2 of the training split (seed 0)"
    assert "8 for evaluation (held-out" in data.description
    pretrain = open_clouds("pretrain", **labelled, holdout=0.2)
    assert numbers(pretrain.train) == numbers(data.train)
    for changes, message in (
        ({"holdout": 1.0}, r"data.holdout \(1.0\) must lie in \[0, 1\)"),
        ({"subset": 41}, r"subset \(41\) must lie in 1..40"),
    ):
        with pytest.raises(UserError, match=message):
            open_clouds("pretrain", **labelled, **changes)


@pytest.mark.parametrize("purpose", ["evaluate", "features"])
def test_a_run_with_a_held_out_part_is_later_evaluated_on_the_test_split(labelled, purpose):
    later = open_clouds(purpose, **labelled, holdout=0.2, eval_split="test")
    assert (len(later.evaluation), later.evaluated_on) == (4, "test split")
    with pytest.raises(UserError, match=r"data.eval_split 'test' and data.holdout \(0.2\) each name what"):
        open_clouds("finetune", **labelled, holdout=0.2, eval_split="test")
    with pytest.raises(UserError, match=r"data.eval_split val names a split .*: give --data.eval_split test"):
        open_clouds(purpose, **labelled, eval_split="val")
