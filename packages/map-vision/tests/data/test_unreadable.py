import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from map_vision.data import DataConfig, ImageData, UnreadableImageError, load_image_data, load_images

Break = Callable[[Sequence[Path]], None]


def load(root: Path, **settings: object) -> ImageData:
    config = DataConfig(root=str(root), augmentation="none", **settings)  # type: ignore[arg-type]
    return load_image_data(config, img_size=(8, 8), in_chans=3, purpose="finetune")


@pytest.fixture
def broken(labelled: Path, break_images: Break) -> Path:
    train, val = labelled / "train", labelled / "val"
    break_images([train / "cat" / "001.png", train / "cat" / "002.png", train / "dog" / "007.png"])
    (val / "dog" / "000.png").write_bytes(b"")
    return labelled


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_reported_in_one_sentence_with_path_and_cure(broken: Path, workers: int) -> None:
    loader = DataLoader(load(broken).train, batch_size=4, num_workers=workers)
    with pytest.raises(UnreadableImageError) as caught:
        list(loader)
    message = str(caught.value)
    assert message.startswith(f"cannot read image {broken / 'train' / 'cat' / '001.png'} (")
    assert message.endswith("replace or remove it, or pass --data.on_error skip")
    assert "\n" not in message


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_skipped_images_are_counted_across_workers(broken: Path, cache: str) -> None:
    data = load(broken, on_error="skip", cache=cache)
    loader = DataLoader(data.train, batch_size=4, num_workers=2)
    first, second = (torch.cat([images for images, _ in loader]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first[1], first[3])  # 001 and 002 are replaced by 003
    assert torch.equal(first[19], first[0])  # the last one by the first
    report = data.skipped()
    assert report.count == 4
    assert {Path(name).name for name in report.names} == {"000.png", "001.png", "002.png", "007.png"}
    assert str(report).startswith("skipped 4 unreadable images: ")
    assert str(data.skipped(show=1)).endswith(", ...")


def test_evaluation_leaves_unreadable_images_out(broken: Path) -> None:
    evaluation = load(broken, on_error="skip").evaluation
    assert evaluation is not None
    assert evaluation.labels.tolist() == [0, 0, 0, 1]


def test_each_path_is_logged_once(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = load(broken, on_error="skip")
        for _ in range(2):
            list(data.train)
    assert sum("001.png" in record.message for record in caplog.records) == 1


def test_held_out_parts_count_together(broken: Path) -> None:
    data = load(broken, on_error="skip", holdout=0.3)
    list(data.train)
    assert data.skipped().count == 3


def test_prediction_lists_only_readable_images(broken: Path) -> None:
    config = DataConfig(on_error="skip")
    samples = load_images(broken / "val", config, img_size=(8, 8), in_chans=3)
    assert len(samples) == 4
    assert samples.skipped().names == (str(broken / "val" / "dog" / "000.png"),)
