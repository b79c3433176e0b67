import hashlib
import sys

import numpy as np
import pytest

from map_core.errors import UserError
from map_vision.data import DataConfig, load_image_data
from map_vision.data.digits import MEAN, STD, load_digits, split_digits

pytest.importorskip("sklearn")


def test_split_is_fixed_disjoint_and_stratified() -> None:
    digits = load_digits()
    parts = split_digits(digits)
    assert sorted(np.concatenate([parts["train"], parts["test"]])) == list(range(1797))
    share = np.bincount(digits.labels[parts["test"]]) / np.bincount(digits.labels)
    assert np.all(np.abs(share - 0.2) < 0.01)
    # sha256 of the int64 test indices: the demo is measured on these.
    assert hashlib.sha256(parts["test"].astype("<i8").tobytes()).hexdigest()[:16] == "f84b7f78b496483c"


def test_statistics_are_those_of_the_training_split() -> None:
    digits = load_digits()
    pixels = digits.pixels[split_digits(digits)["train"]] / 255
    assert pixels.mean() == pytest.approx(MEAN, abs=1e-3)
    assert pixels.std() == pytest.approx(STD, abs=1e-3)


@pytest.mark.parametrize(("in_chans", "img_size"), [(1, (8, 8)), (3, (16, 16)), (1, (24, 16))])
def test_digits_come_in_any_size_and_one_or_three_channels(in_chans: int, img_size: tuple[int, int]) -> None:
    config = DataConfig(augmentation="shift")
    data = load_image_data(config, img_size=img_size, in_chans=in_chans, purpose="finetune")
    image, label = data.train[0]
    assert image.shape == (in_chans, *img_size)
    assert 0 <= label <= 9
    assert data.classes == tuple("0123456789")
    assert (len(data.train), len(data.evaluation or ())) == (1438, 359)
    assert data.preprocessing.mean == (MEAN,) * in_chans


def test_eight_pixel_digits_are_not_resized() -> None:
    data = load_image_data(DataConfig(), img_size=(8, 8), in_chans=1, purpose="features")
    image, _ = data.train[5]
    pixels = np.asarray(data.train.image(5)) / 255
    np.testing.assert_allclose(image[0] * STD + MEAN, pixels, atol=1e-6)


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="the digits need scikit-learn: pip install scikit-learn"):
        load_digits()


def test_unknown_split() -> None:
    with pytest.raises(
        UserError, match="eval_split 'val' does not exist: the digits have 'train' and 'test'"
    ):
        load_image_data(DataConfig(eval_split="val"), img_size=(8, 8), in_chans=1, purpose="finetune")


def test_digits_have_no_folder() -> None:
    config = DataConfig(source="digits", root="photos")
    with pytest.raises(
        UserError, match=r"data.root is photos, but data.source is the digits.*--data.source folder"
    ):
        load_image_data(config, img_size=(8, 8), in_chans=1, purpose="pretrain")
