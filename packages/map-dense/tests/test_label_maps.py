"""Label maps: values are those of mmseg, and a map whose labels would be misread is refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.registry import TRANSFORMS, init_default_scope
from PIL import Image

import map_dense.mmseg
from map_core.errors import UserError


def load(
    folder: Path, labels: Any, *, mode: str | None = None, size: tuple[int, int] | None = None, **options: Any
) -> np.ndarray:
    path = folder / "map.png"
    image = labels if isinstance(labels, Image.Image) else Image.fromarray(np.asarray(labels))
    (image.convert(mode) if mode else image).save(path)
    init_default_scope("mmseg")
    transform = TRANSFORMS.build(dict(type="LoadLabelMap", **options))
    results = dict(
        seg_map_path=str(path),
        seg_fields=[],
        reduce_zero_label=options.get("reduce_zero_label"),
        label_map=None,
    )
    return transform({**results, "ori_shape": size or image.size[::-1]})["gt_seg_map"]


def test_labels_are_read_as_they_are(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2], [10, 11, 3]], dtype=np.uint8)
    assert (load(tmp_path, labels, num_classes=11, ignore_index=11) == labels).all()


def test_ade20ks_zero_is_ignored(tmp_path: Path) -> None:
    labels = load(
        tmp_path, np.array([[0, 1, 150], [2, 3, 4]], dtype=np.uint8), num_classes=150, reduce_zero_label=True
    )
    assert labels.tolist() == [[255, 0, 149], [1, 2, 3]]


def test_a_palette_is_read_by_its_numbers(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8), mode="P")
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    assert load(tmp_path, image, num_classes=3).tolist() == [[0, 1, 2], [2, 1, 0]]


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        (11, dict(num_classes=11), r"has label 11, but there are 11 classes \(0 to 10, and 255 to ignore\)"),
        (255, dict(num_classes=11, ignore_index=11), r"has label 255, but there are 11 classes"),
        (151, dict(num_classes=150, reduce_zero_label=True), r"has label 150 after reduce_zero_label"),
    ],
)
def test_a_label_above_the_classes_is_named(tmp_path: Path, label: int, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=r"label map .*map\.png " + message):
        load(tmp_path, np.full((2, 2), label, dtype=np.uint8), **options)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_colours_and_wide_numbers_are_refused(tmp_path: Path, mode: str) -> None:
    with pytest.raises(UserError, match=rf"map\.png has pixels of kind {mode}, not one label of 8 bits"):
        load(tmp_path, np.zeros((2, 2), dtype=np.uint8), mode=mode, num_classes=3)


def test_a_map_of_another_size_than_its_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"map\.png has 2x3 pixels, its image 2x4; give one label to each pixel"
    ):
        load(tmp_path, np.zeros((2, 3), dtype=np.uint8), size=(2, 4), num_classes=3)


def test_a_map_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "map.png").write_text("<html>")
    transform = map_dense.mmseg.LoadLabelMap(3)
    with pytest.raises(UserError, match=r"map\.png cannot be read .*; give an image of one label per pixel"):
        transform._load_seg_map(dict(seg_map_path=str(tmp_path / "map.png"), seg_fields=[]))
