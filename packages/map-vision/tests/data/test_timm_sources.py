from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import IterableDataset

from map_core.errors import UserError
from map_core.tasks.domain import Purpose
from map_vision.data import DataConfig, ImageData, load_image_data, timm_sources


def load(source: str, root: Path | None = None, purpose: Purpose = "finetune", **settings: Any) -> ImageData:
    config = DataConfig(source=source, root=root and str(root), augmentation="none", **settings)
    return load_image_data(config, img_size=(8, 8), in_chans=3, purpose=purpose)


def test_torchvision_folder_equals_our_own(labelled: Path) -> None:
    ours, theirs = load("folder", labelled), load("torch/image_folder", labelled)
    assert theirs.classes == ours.classes
    assert theirs.train.names == ours.train.names
    assert theirs.train.labels.tolist() == ours.train.labels.tolist()
    assert theirs.evaluation is not None
    assert ours.evaluation is not None
    assert torch.equal(theirs.evaluation[3][0], ours.evaluation[3][0])
    assert len(load("torch/image_folder", labelled, holdout=0.5, subset=4).train) == 4


def test_timm_reader(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own data sets are read through their reader: we handle unreadable images ourselves."""

    def create(name: str, root: str, split: str, **_: Any) -> ImageDataset:
        return ImageDataset(f"{root}/{'val' if split == 'validation' else split}")

    monkeypatch.setattr(timm_sources, "create_dataset", create)
    data = load("hfds/x", labelled)
    assert data.classes == ("cat", "dog")
    assert torch.equal(data.train[13][0], load("folder", labelled).train[13][0])
    (labelled / "train" / "dog" / "001.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read image .*dog/001.png"):
        _ = data.train[13]
    skipping = load("hfds/x", labelled, on_error="skip")
    assert skipping.train[13][1] == 1
    assert skipping.skipped().count == 1


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        for label in (0, 1, 2, 1):
            yield Image.fromarray(np.full((9, 9), 50 * label, dtype=np.uint8)), label


def test_data_in_order_only_is_read_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_sources, "create_dataset", lambda *_, **__: Stream())
    with pytest.raises(UserError, match=r"'tfds/x' can only be read in order.*--data.cache memory"):
        load("tfds/x")
    data = load("tfds/x", cache="memory")
    assert (data.classes, data.train.labels.tolist()) == (("0", "1", "2"), [0, 1, 2, 1])
    assert data.train[0][0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("digit", r"data source 'digit' is unknown; did you mean digits\?.*names of timm begin with torch/"),
        ("torch/cifar11", r"source 'torch/cifar11', split 'train'.* cannot be opened: Unknown torchvision"),
        (
            "torch/cifar10",
            r"source 'torch/cifar10'.*cannot be opened: its files are not there or damaged; fetch them once",
        ),
    ],
)
def test_what_cannot_be_opened(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load(source, tmp_path)


@pytest.mark.parametrize("settings", [{"train_split": "nosuch"}, {"eval_split": "nosuch"}])
@pytest.mark.parametrize("source", ["torch/cifar10", "torch/qmnist"])
def test_split_that_timm_would_take_for_the_test_split(source: str, settings: dict, tmp_path: Path) -> None:
    purpose: Purpose = "evaluate" if "eval_split" in settings else "pretrain"
    with pytest.raises(
        UserError, match=f"split 'nosuch' does not exist: {source} has 'train' and 'test' only"
    ):
        load(source, tmp_path, purpose, **settings)


def test_evaluation_split_for_which_timm_would_take_the_root(labelled: Path) -> None:
    (labelled / "val").rename(labelled / "held")
    with pytest.raises(
        UserError, match=r"split 'validation' is not a folder in .*: known names: held, train"
    ):
        load("torch/image_folder", labelled, "evaluate")
    assert len(load("torch/image_folder", labelled, "evaluate", eval_split="held").evaluation or ()) == 5


def test_torchvision_folders_read_no_other_formats_and_turn_images(labelled: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (12, 8)).save(labelled / "train" / "cat" / "000.png", exif=exif)
    (labelled / "train" / "cat" / "001.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    samples = load("torch/image_folder", labelled).train
    assert samples.image(0).size == (8, 12)
    with pytest.raises(UserError, match=r"cannot read image .*001.png \(its content is none of"):
        samples.image(1)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*_: Any, **__: Any) -> None:
        raise ImportError("No module named 'datasets'")

    monkeypatch.setattr(timm_sources, "create_dataset", create)
    with pytest.raises(UserError, match=r"source 'hfds/x' needs a package .*\(No module named 'datasets'\)"):
        load("hfds/x")


def test_cifar_with_a_foreign_pickle_is_refused(tmp_path: Path) -> None:
    """torchvision unpickles CIFAR, after checking the files' published checksums."""
    marker, folder = tmp_path / "ran", tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_text(f"cos\nsystem\n(S'touch {marker}'\ntR.")
    with pytest.raises(UserError, match="files are not there or damaged"):
        load("torch/cifar10", tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"image": []}, "'label'"),
        ({"label": ["cat", "dog"]}, "invalid literal"),
        ({"label": [None]}, "NoneType"),
    ],
)
def test_a_column_that_is_none_of_labels(
    monkeypatch: pytest.MonkeyPatch, columns: dict[str, list], reason: str
) -> None:
    reader = SimpleNamespace(label_key="label", dataset=columns)
    monkeypatch.setattr(timm_sources, "create_dataset", lambda *_, **__: SimpleNamespace(reader=reader))
    with pytest.raises(
        UserError,
        match=rf"'hfds/x', split 'train' has no column 'label' of whole numbers \(.*{reason}.*ClassLabel",
    ):
        load("hfds/x")


def test_labels_that_a_benchmark_keeps_to_itself_are_no_class(
    labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hidden(ImageDataset):
        def __init__(self, folder: str) -> None:
            super().__init__(folder)
            self.reader.samples = [(path, -1) for path, _ in self.reader.samples]

    def create(name: str, root: str, split: str, **_: Any) -> ImageDataset:
        return (ImageDataset if split == "train" else Hidden)(
            f"{root}/{'train' if split == 'train' else 'val'}"
        )

    monkeypatch.setattr(timm_sources, "create_dataset", create)
    with pytest.raises(UserError, match=r"the evaluation split of 'hfds/x' has other classes \(0\)"):
        load("hfds/x", labelled)
    assert load("hfds/x", labelled, "pretrain", train_split="test").classes == ()
