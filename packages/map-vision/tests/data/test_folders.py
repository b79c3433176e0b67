import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from map_core.errors import UserError
from map_core.tasks.domain import Purpose
from map_vision.data import DataConfig, ImageData, load_image_data, load_images

MakeFolder = Callable[..., Path]


def load(root: Path | str, purpose: Purpose = "finetune", **settings: object) -> ImageData:
    config = DataConfig(root=str(root), **settings)  # type: ignore[arg-type]
    return load_image_data(config, img_size=(8, 8), in_chans=3, purpose=purpose)


def test_classes_are_sorted_and_labels_follow_them(labelled: Path) -> None:
    data = load(labelled)
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0] * 12 + [1] * 8
    assert data.evaluation is not None
    assert [Path(name).parent.name for name in data.evaluation.names] == ["cat"] * 3 + ["dog"] * 2
    assert data.evaluation[4][1] == 1
    assert "20 training images, 5 evaluation images" in data.description


def test_pretraining_takes_a_flat_folder(make_folder: MakeFolder) -> None:
    root = make_folder("", {"": 6})
    data = load(root, "pretrain")
    assert (len(data.train), data.classes, data.evaluation, data.train[3][1]) == (6, (), None, 0)


def test_pretraining_takes_a_nested_folder_and_prefers_train(make_folder: MakeFolder) -> None:
    root = make_folder("train/2024", {"may": 2, "june": 3})
    make_folder("test", {"": 4})
    assert len(load(root, "pretrain").train) == 5
    assert len(load(root, "pretrain", train_split=".").train) == 9


def test_hidden_and_other_files_are_left_out(labelled: Path) -> None:
    (labelled / "train" / "cat" / "._000.png").write_bytes(b"resource fork")
    (labelled / "train" / "cat" / "notes.txt").write_text("no image")
    assert len(load(labelled).train) == 20


def test_holdout_replaces_the_evaluation_split_and_is_never_trained_on(labelled: Path) -> None:
    data = load(labelled, holdout=0.25)
    assert data.evaluation is not None
    assert np.bincount(data.evaluation.labels).tolist() == [3, 2]
    assert not set(data.evaluation.names) & set(data.train.names)
    pretraining = load(labelled, "pretrain", holdout=0.25)
    assert pretraining.train.names == data.train.names
    small = load(labelled, holdout=0.25, subset=5)
    assert small.evaluation is not None
    assert small.evaluation.names == data.evaluation.names
    assert set(small.train.names) < set(data.train.names)


def test_evaluation_does_without_a_training_split(labelled: Path) -> None:
    shutil.rmtree(labelled / "train")
    for purpose in ("evaluate", "features"):
        data = load(labelled, purpose)
        assert (data.classes, len(data.evaluation or ())) == (("cat", "dog"), 5)
        with pytest.raises(UserError, match="no training split, which this needs"):
            _ = data.train


def test_evaluation_knows_the_training_splits_classes(labelled: Path) -> None:
    (labelled / "train" / "emu").mkdir()
    with pytest.raises(UserError, match=r"the classes in .*val differ from .*; without a folder here: emu"):
        load(labelled, "evaluate")
    (labelled / "val" / "emu").mkdir()  # may be empty: an evaluation split need not have every class
    assert load(labelled, "evaluate").classes == ("cat", "dog", "emu")


def test_load_images_expands_folders_in_sorted_order(labelled: Path) -> None:
    single = labelled / "train" / "dog" / "001.png"
    samples = load_images([single, labelled / "val"], DataConfig(), img_size=(6, 9), in_chans=1)
    expected = [single, *sorted((labelled / "val").rglob("*.png"))]
    assert samples.names == [str(path) for path in expected]
    assert samples[0][0].shape == (1, 6, 9)
    with pytest.raises(UserError, match=r"nowhere.jpg does not exist"):
        load_images("nowhere.jpg", DataConfig(), img_size=(8, 8), in_chans=3)


def test_missing_root_names_the_folder_that_exists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"a/b/c does not exist \({tmp_path} does\): correct --data.root"):
        load(tmp_path / "a" / "b" / "c")


def test_root_that_is_a_file_or_not_given(labelled: Path) -> None:
    with pytest.raises(UserError, match="is a file: give the folder"):
        load(labelled / "train" / "cat" / "000.png")
    with pytest.raises(UserError, match=r"needs the folder of the images: pass --data.root"):
        load_image_data(DataConfig(source="folder"), img_size=(8, 8), in_chans=3, purpose="pretrain")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no images in {tmp_path}: looked in all subfolders for .*jpg"):
        load(tmp_path, "pretrain")


def test_folder_without_class_subfolders(make_folder: MakeFolder) -> None:
    root = make_folder("train", {"": 3})
    make_folder("val", {"": 3})
    with pytest.raises(UserError, match=r"train holds images but no class subfolders: .*<class>.<image>"):
        load(root)


def test_class_without_images(labelled: Path) -> None:
    (labelled / "train" / "emu").mkdir()
    with pytest.raises(UserError, match=r"class folders without images in .*train: emu"):
        load(labelled)


def test_splits_with_different_classes(labelled: Path) -> None:
    (labelled / "val" / "dog").rename(labelled / "val" / "eel")
    with pytest.raises(UserError, match=r"not among the 2 training classes: eel; without a folder here: dog"):
        load(labelled)


def test_split_that_does_not_exist(labelled: Path) -> None:
    with pytest.raises(UserError, match=r"eval_split 'vall' is not a folder in .*: did you mean val\?"):
        load(labelled, eval_split="vall")
    with pytest.raises(UserError, match=r"train_split 'x' is not a folder in .*: known names: train, val"):
        load(labelled, train_split="x")


def test_no_evaluation_split(labelled: Path) -> None:
    (labelled / "val").rename(labelled / "held")
    with pytest.raises(
        UserError, match=r"found held, train; name it with --data.eval_split .* --data.holdout"
    ):
        load(labelled)
    assert len(load(labelled, eval_split="held").evaluation or ()) == 5


def test_no_training_on_evaluation_splits(labelled: Path) -> None:
    (labelled / "train").rename(labelled / "learn")
    for purpose in ("pretrain", "finetune"):
        with pytest.raises(UserError, match=r"no training split in .*: looked for train, found learn, val"):
            load(labelled, purpose)
    assert len(load(labelled, train_split="learn").train) == 20


def test_holdout_and_subset_out_of_range(labelled: Path) -> None:
    with pytest.raises(UserError, match=r"data.holdout must lie in \[0, 1\).*; got 1.5"):
        load(labelled, holdout=1.5)
    with pytest.raises(UserError, match=r"subset \(21\) must lie in 1..20"):
        load(labelled, subset=21)


def test_nothing_is_unpickled(labelled: Path, tmp_path: Path) -> None:
    """A pickle under an image's name is an unreadable image and never runs."""
    marker = tmp_path / "ran"
    attack = f"cos\nsystem\n(S'touch {marker}'\ntR."
    (labelled / "train" / "cat" / "000.png").write_text(attack)
    with pytest.raises(UserError, match=r"cannot read image .*000.png"):
        _ = load(labelled).train[0]
    assert not marker.exists()
