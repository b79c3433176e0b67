"""The pixel settings of a run, as passed to the commands that start from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from map_core.errors import UserError
from map_vision.data import DataConfig
from map_vision.data.statistics_file import Statistics, save_statistics
from map_vision.domain import data_defaults, open_data
from map_vision.factory import ModelConfig

TRAINED = {"mean": [1.0] * 4, "std": [2.0] * 4, "pixels": "stored"}


def test_a_run_continues_with_its_own_statistics_not_with_their_file() -> None:
    values = data_defaults({"root": "scenes", "statistics": "gone.json"}, TRAINED, {})
    assert values == {"root": "scenes", **TRAINED}


def test_other_statistics_take_the_place_of_the_runs() -> None:
    overrides = {"data.statistics": "new.json"}
    assert data_defaults({"root": "scenes", "statistics": "old.json"}, TRAINED, overrides) == {
        "root": "scenes",
        "statistics": "old.json",  # the command line overrides it
    }


@pytest.mark.parametrize(
    ("trained", "pixels"), [({**TRAINED}, "scaled"), ({"mean": [0.5] * 3, "std": [0.2] * 3}, "stored")]
)
def test_values_in_another_unit_have_not_the_mean_of_the_run(trained: dict[str, Any], pixels: str) -> None:
    values = {"root": "scenes", "statistics": "old.json", "mean": [1.0], "std": [2.0]}
    assert data_defaults(values, trained, {"data.pixels": pixels}) == {"root": "scenes"}
    same = {"data.pixels": trained.get("pixels", "scaled")}
    assert data_defaults(values, trained, same) == {"root": "scenes", **trained}


@pytest.mark.parametrize("purpose", ["pretrain", "finetune", "evaluate", "features"])
def test_what_is_opened_is_prepared_as_the_description_says(tmp_path: Path, purpose: Any) -> None:
    for number in range(4):
        for split in ("train", "val"):
            path = tmp_path / "scenes" / split / "ab"[number % 2] / f"{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.full((8, 8, 4), number, np.uint16))
    model = ModelConfig(img_size=8, in_chans=4)
    root = str(tmp_path / "scenes")
    save_statistics(tmp_path / "s.json", Statistics("stored", (1.0,) * 4, (2.0,) * 4, 4))
    config = DataConfig(root=root, statistics=str(tmp_path / "s.json"), augmentation="none")
    first = open_data(config, model, purpose)
    later = open_data(DataConfig(root=root, augmentation="none"), model, purpose, first.preprocessing)
    assert later.preprocessing == first.preprocessing
    for opened in (first, later):
        samples = opened.train or opened.evaluation
        assert samples is not None
        assert samples[1][0].unique().tolist() == [0.5]  # the second of class a, whose values are 2
    with pytest.raises(UserError, match=r"s.json is of 4 channels, the model takes 13"):
        open_data(config, ModelConfig(img_size=8, in_chans=13), purpose)
