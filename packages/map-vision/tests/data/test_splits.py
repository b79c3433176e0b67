"""Which images are used for training and evaluation, and what each purpose does without."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from map_core.errors import UserError
from map_core.shards import write_shards
from map_core.tasks.domain import Purpose
from map_vision.data import DataConfig, ImageData, load_image_data, load_images
from map_vision.data.sharding import files_by_split

MakeFolder = Callable[..., Path]


def load(root: Path, purpose: Purpose = "finetune", **settings: object) -> ImageData:
    config = DataConfig(root=str(root), **settings)  # type: ignore[arg-type]
    return load_image_data(config, img_size=(8, 8), in_chans=3, purpose=purpose)


@pytest.mark.parametrize("source", ["folder", "torch/image_folder"])
@pytest.mark.parametrize("purpose", ["evaluate", "features"])
def test_a_named_split_is_evaluated_on_in_spite_of_a_holdout(
    labelled: Path, purpose: Purpose, source: str
) -> None:
    """A run that was trained with a held-out part is later evaluated on its validation split."""
    trained = load(labelled, source=source, holdout=0.25)
    later = load(labelled, purpose, source=source, holdout=0.25, eval_split="val")
    assert later.evaluation is not None
    assert {Path(name).parts[-3] for name in later.evaluation.names} == {"val"}
    assert (len(later.evaluation), later.evaluated_on) == (5, "val")
    assert "5 evaluation images (val)" in later.description
    if purpose == "features":  # the training images stay those of the run
        assert later.train.names == trained.train.names


@pytest.mark.parametrize("source", ["folder", "torch/image_folder"])
@pytest.mark.parametrize("purpose", ["evaluate", "features", "finetune"])
def test_a_holdout_alone_is_evaluated_on(labelled: Path, purpose: Purpose, source: str) -> None:
    data = load(labelled, purpose, source=source, holdout=0.25)
    assert data.evaluation is not None
    assert {Path(name).parts[-3] for name in data.evaluation.names} == {"train"}
    assert (len(data.evaluation), data.evaluated_on) == (5, "0.25 held out of train")


@pytest.mark.parametrize("layout", ["folder", "table", "shards"])
@pytest.mark.parametrize("purpose", ["finetune", "evaluate"])
def test_a_split_that_a_held_out_part_replaces_is_named(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], purpose: Purpose, layout: str
) -> None:
    root, settings, split = labelled, dict[str, object](), str(labelled / "val")
    if layout == "table":
        file = tmp_path / "labels.csv"
        paths = sorted(path.relative_to(labelled) for path in labelled.rglob("*.png"))
        rows = [f"{path},{path.parts[1]},{path.parts[0]}" for path in paths]
        file.write_text("\n".join(["path,label,split", *rows]))
        settings, split = {"labels": str(file)}, f"split val of {file}"
    elif layout == "shards":
        root = tmp_path / "in_shards"
        write_shards(files_by_split(DataConfig(root=str(labelled))), root, size=12_000)
        split = f"split val of {root}"
    load(root, purpose, holdout=0.25, **settings)
    assert capsys.readouterr().err == (
        f"{split} is not evaluated on, because data.holdout is 0.25; data.holdout 0 would evaluate on it\n"
    )
    load(root, purpose, **settings)
    load(root, "pretrain", holdout=0.25, **settings)
    if purpose == "evaluate":
        load(root, purpose, holdout=0.25, eval_split="val", **settings)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("holdout", [0.0, 0.25])
def test_a_run_is_scored_on_the_whole_of_another_folder(make_folder: MakeFolder, holdout: float) -> None:
    root = make_folder("other", {"cat": 3, "dog": 4}) / "other"
    data = load(root, "evaluate", holdout=holdout, eval_split=".")
    assert (len(data.evaluation or ()), data.classes, data.evaluated_on) == (7, ("cat", "dog"), "other")


@pytest.mark.parametrize("source", ["folder", "torch/image_folder", "digits"])
def test_training_with_two_evaluation_splits_is_refused(labelled: Path, source: str) -> None:
    root = None if source == "digits" else str(labelled)
    config = DataConfig(source, root=root, holdout=0.25, eval_split="val")
    with pytest.raises(
        UserError, match=r"eval_split 'val' and data.holdout \(0.25\) each name what .*: drop one"
    ):
        load_image_data(config, img_size=(8, 8), in_chans=3, purpose="finetune")


@pytest.mark.parametrize("holdout", [0.0, 0.25])
@pytest.mark.parametrize("purpose", ["pretrain", "finetune", "evaluate", "features"])
@pytest.mark.parametrize("source", ["folder", "torch/image_folder", "digits"])
def test_a_split_that_does_not_exist_never_passes(
    labelled: Path, purpose: Purpose, holdout: float, source: str
) -> None:
    root = None if source == "digits" else str(labelled)
    config = DataConfig(source, root=root, holdout=holdout, eval_split="nosuch")
    with pytest.raises(UserError, match="nosuch"):
        load_image_data(config, img_size=(8, 8), in_chans=3, purpose=purpose)


def test_digits_are_evaluated_on_their_test_split_when_it_is_named() -> None:
    def evaluation(**settings: object) -> int:
        config = DataConfig(holdout=0.25, **settings)  # type: ignore[arg-type]
        data = load_image_data(config, img_size=(8, 8), in_chans=1, purpose="evaluate")
        return len(data.evaluation or ())

    assert (evaluation(), evaluation(eval_split="test")) == (round(0.25 * 1438), 359)


def test_features_of_a_flat_folder_are_of_all_images(make_folder: MakeFolder) -> None:
    root = make_folder("", {"": 6})
    data = load(root, "features")
    assert (len(data.train), data.classes, data.evaluation, data.evaluated_on) == (6, (), None, None)
    assert torch.equal(data.train[2][0], load(root, "pretrain").train_unaugmented()[2][0])


def test_features_of_a_flat_folder_of_which_pretraining_held_a_part_out(make_folder: MakeFolder) -> None:
    root = make_folder("", {"": 10})
    data, pretrained = (load(root, purpose, holdout=0.2) for purpose in ("features", "pretrain"))
    assert data.evaluation is not None
    assert (len(data.train), len(data.evaluation), data.classes) == (8, 2, ())
    assert data.train.names == pretrained.train.names
    with pytest.raises(UserError, match=r"holds images but no class subfolders"):
        load(root, "finetune", holdout=0.2)


def test_features_of_class_folders_without_an_evaluation_split_have_labels(make_folder: MakeFolder) -> None:
    data = load(make_folder("", {"cat": 2, "dog": 3}), "features")
    assert (data.train.labels.tolist(), data.classes, data.evaluation) == (
        [0, 0, 1, 1, 1],
        ("cat", "dog"),
        None,
    )


def test_features_of_two_flat_splits_have_no_labels(make_folder: MakeFolder) -> None:
    make_folder("train", {"": 3})
    data = load(make_folder("val", {"": 2}), "features")
    assert (len(data.train), len(data.evaluation or ()), data.classes) == (3, 2, ())


def test_features_of_a_flat_evaluation_split_alone(make_folder: MakeFolder) -> None:
    data = load(make_folder("val", {"": 2}), "features")
    assert (data.training, len(data.evaluation or ()), data.classes) == (None, 2, ())


@pytest.mark.parametrize("cache", ["none", "memory"])
@pytest.mark.parametrize("holdout", [0.0, 0.4])
def test_names_labels_and_images_agree_without_the_unreadable(
    labelled: Path, cache: str, holdout: float
) -> None:
    """Every image has a unique gray level, so it can be identified by its pixels."""
    level = {str(path): 10 * n for n, path in enumerate(sorted(labelled.rglob("*.png")))}
    for path, value in level.items():
        Image.new("L", (8, 8), value).save(path)
    broken = [labelled / split for split in ("train/cat/007.png", "train/dog/000.png", "val/cat/000.png")]
    for path in broken:
        path.write_bytes(b"")
    data = load(
        labelled, "features", on_error="skip", cache=cache, holdout=holdout, mean=(0.0,), std=(1 / 255,)
    )
    assert data.evaluation is not None
    assert len(data.train) + len(data.evaluation) == (18 if holdout else 22)
    for samples in (data.train, data.evaluation, data.train_unaugmented()):
        assert not set(samples.names) & set(map(str, broken))
        for name, label, (image, own_label) in zip(samples.names, samples.labels, samples, strict=True):
            assert image.mean().item() == pytest.approx(level[name], abs=0.01)
            assert label == own_label == ["cat", "dog"].index(Path(name).parent.name)


@pytest.mark.parametrize("purpose", ["pretrain", "finetune", "evaluate", "features"])
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_no_readable_image_is_reported_at_the_start(labelled: Path, purpose: Purpose, cache: str) -> None:
    for path in labelled.rglob("*.png"):
        path.write_bytes(b"")
    count, split = (5, "val") if purpose == "evaluate" else (20, "train")
    message = (
        rf"none of the {count} images is readable; the first: cannot read image .*{split}/cat/000.png \("
    )
    with pytest.raises(UserError, match=message) as caught:
        load(labelled, purpose, on_error="skip", cache=cache)
    assert "on_error" not in str(caught.value)  # the user already follows that advice


def test_no_readable_image_in_the_evaluation_split(labelled: Path) -> None:
    for path in (labelled / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 5 images is readable; the first: .*val/cat/000.png"):
        load(labelled, on_error="skip")


def test_no_readable_image_among_those_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"none of the 1 images is readable; the first: .*x.png \(the file is empty\)"
    ):
        load_images(tmp_path, DataConfig(on_error="skip"), img_size=(8, 8), in_chans=3)


def test_the_first_images_may_be_unreadable(labelled: Path) -> None:
    for number in range(12):
        (labelled / "train" / "cat" / f"{number:03}.png").write_bytes(b"")
    data = load(labelled, on_error="skip", augmentation="none")
    assert np.array_equal([label for _, label in data.train], [1] * 20)
    assert data.skipped().count == 12


def test_images_beside_class_folders_do_not_change_what_is_held_out(labelled: Path) -> None:
    """Else pretraining would see images that finetuning is evaluated on."""
    for name in ("AAA.png", "zebra.png"):
        Image.new("RGB", (4, 4)).save(labelled / "train" / name)
    pretraining, finetuning = (load(labelled, purpose, holdout=0.25) for purpose in ("pretrain", "finetune"))
    assert finetuning.evaluation is not None
    assert not {*finetuning.evaluation.names} & {*pretraining.train.names}
    beside = {str(labelled / "train" / name) for name in ("AAA.png", "zebra.png")}
    assert {*pretraining.train.names} == {*finetuning.train.names} | beside


def test_folders_of_single_images_are_held_out_of_in_pretraining_only(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"event{number}").mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / f"event{number}" / "photo.png")
    assert len(load(tmp_path, "pretrain", holdout=0.25).train) == 6
    with pytest.raises(
        UserError, match=r"can hold out none of 8 training samples: add samples; each class needs one"
    ):
        load(tmp_path, holdout=0.25)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_colours_that_a_model_of_one_channel_does_not_read_are_noted(
    labelled: Path, capsys: pytest.CaptureFixture[str], cache: str
) -> None:
    def load_gray(purpose: Purpose, *, channels: int = 1) -> str:
        config = DataConfig(root=str(labelled), cache=cache)  # type: ignore[arg-type]
        load_image_data(config, img_size=(8, 8), in_chans=channels, purpose=purpose)
        return capsys.readouterr().err

    colours = (
        f"{labelled}: images in colour are read in grey, as model.in_chans is 1 (with --init, the run's); to read "
        "colours, pretrain, or train from scratch, with --model.in_chans 3\n"
    )
    assert load_gray("finetune") == load_gray("pretrain") == colours
    assert load_gray("finetune", channels=3) == load_gray("evaluate") == ""
    for path in labelled.rglob("*.png"):
        Image.open(path).convert("L").convert("RGB").save(path)
    assert load_gray("finetune") == ""


def test_an_unreadable_first_image_says_nothing_about_colours(
    labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (labelled / "train/cat/000.png").write_bytes(b"")
    config = DataConfig(root=str(labelled), on_error="skip")
    assert load_image_data(config, img_size=(8, 8), in_chans=1, purpose="finetune").train
    assert "in colour" not in capsys.readouterr().err
