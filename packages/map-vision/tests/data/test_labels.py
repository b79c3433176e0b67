"""Folders of images whose labels are in a CSV file, for every purpose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from map_core.errors import UserError
from map_core.tasks.domain import Purpose
from map_vision.data import DataConfig, ImageData, load_image_data

ROWS = [(f"{i:03}.png", "odd" if i % 2 else "even", "val" if i >= 6 else "train") for i in range(9)]


@pytest.fixture
def flat(make_folder: Callable[..., Path]) -> Path:
    """Ten images without class folders."""
    return make_folder("", {"": 10})


def load(root: Path, purpose: Purpose, columns: int = 3, **settings: Any) -> ImageData:
    file = root / "labels.csv"
    lines = [("path", "label", "split"), *ROWS]
    file.write_text("".join(",".join(line[:columns]) + "\n" for line in lines))
    config = DataConfig(root=str(root), labels=str(file), **settings)
    return load_image_data(config, img_size=(8, 8), in_chans=3, purpose=purpose)


def names(samples: Any) -> list[str]:
    return [Path(name).name for name in samples.names]


def test_finetuning_takes_the_rows_of_each_split(flat: Path) -> None:
    data = load(flat, "finetune")
    assert data.evaluation is not None
    assert (data.classes, data.evaluated_on) == (("even", "odd"), "val")
    assert names(data.train) == [name for name, _, split in ROWS if split == "train"]
    assert data.train.labels.tolist() == [0, 1] * 3
    assert names(data.evaluation) == ["006.png", "007.png", "008.png"]
    assert "ignored: 1 images without a row in labels.csv" in data.description


def test_without_a_column_of_splits_a_part_is_held_out(flat: Path) -> None:
    data = load(flat, "finetune", columns=2, holdout=0.4)
    assert data.evaluation is not None
    assert len(data.train) + len(data.evaluation) == 9
    assert not set(data.train.names) & set(data.evaluation.names)
    with pytest.raises(UserError, match=r"no rows of split val, .* to evaluate on"):
        load(flat, "finetune", columns=2)


def test_pretraining_needs_no_labels_and_reads_the_training_rows(flat: Path) -> None:
    assert load(flat, "pretrain").train.classes == ("even", "odd")
    unlabelled = load(flat, "pretrain", columns=1)
    assert (len(unlabelled.train), unlabelled.classes, unlabelled.evaluation) == (9, (), None)
    with pytest.raises(UserError, match="has no column label"):
        load(flat, "finetune", columns=1, holdout=0.2)


def test_evaluation_and_features_read_what_they_need(flat: Path) -> None:
    evaluated = load(flat, "evaluate")
    assert (len(evaluated.evaluation or ()), evaluated.training) == (3, None)
    assert load(flat, "evaluate", eval_split=".").evaluated_on == "labels.csv"
    both = load(flat, "features")
    assert (len(both.train), len(both.evaluation or ())) == (6, 3)
    assert load(flat, "features", columns=2).evaluation is None


def test_labels_go_with_a_folder(flat: Path) -> None:
    for settings in ({"labels": "x.csv"}, {"labels": "x.csv", "source": "digits"}):
        with pytest.raises(
            UserError, match=r"data.labels x.csv lists the files of a folder: name that folder"
        ):
            DataConfig(**settings).validate()  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data.labels must not be empty"):
        DataConfig(root=str(flat), labels=" ").validate()
