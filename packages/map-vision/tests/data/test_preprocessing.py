"""The preprocessing stored with a model's weights prepares images exactly as in the training run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from map_core.errors import UserError
from map_vision.data import DataConfig, Preprocessing, load_image_data, load_images
from map_vision.data.preprocessing import resolve_preprocessing
from map_vision.domain import data_defaults

RGB = Preprocessing(3, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", 0.7, 0.9)


@pytest.mark.parametrize(
    "preprocessing", [RGB, Preprocessing(1, (0.5,), (1.0,)), resolve_preprocessing(DataConfig(), in_chans=1)]
)
def test_json_gives_it_back(preprocessing: Preprocessing) -> None:
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"crop_pct": 0.5, "interpolation": "nearest"},
        {"mean": (0.2,), "std": (0.3,), "interpolation": "bilinear"},
        {"crop_pct": 1.0},
    ],
)
def test_a_copied_description_prepares_images_as_the_run_did(
    labelled: Path, in_chans: int, settings: dict[str, Any]
) -> None:
    config = DataConfig(root=str(labelled), **settings)
    run = load_image_data(config, img_size=(7, 5), in_chans=in_chans, purpose="finetune")
    stored = json.loads(json.dumps(run.preprocessing.to_dict()))
    trained = Preprocessing.from_dict(stored)
    bare = DataConfig(root=str(labelled))  # nothing of the run but its description
    again = load_image_data(bare, img_size=(7, 5), in_chans=in_chans, purpose="evaluate", trained=trained)
    images = load_images(labelled / "val", DataConfig(), img_size=(7, 5), in_chans=in_chans, trained=trained)
    assert run.evaluation is not None
    assert again.evaluation is not None
    assert again.preprocessing == run.preprocessing
    for index in range(5):
        assert torch.equal(again.evaluation[index][0], run.evaluation[index][0])
        assert torch.equal(images[index][0], run.evaluation[index][0])


def test_the_users_settings_override_those_of_the_run() -> None:
    config = DataConfig(mean=(0.5,), crop_pct=1.0)
    expected = replace(RGB, mean=(0.5, 0.5, 0.5), crop_pct=1.0, crop_pct_small=1.0)
    assert resolve_preprocessing(config, in_chans=3, trained=RGB) == expected
    assert resolve_preprocessing(DataConfig(), in_chans=3, trained=RGB) == RGB


def test_a_run_says_nothing_of_values_in_another_unit() -> None:
    """The settings that remain of a run if --data.pixels differs from the run's."""
    settings = data_defaults({"mean": [0.1]}, RGB.to_dict(), {"data.pixels": "stored"})
    with pytest.raises(
        UserError, match=r"no mean and deviation .* --data.pixels stored --channels 3 and pass"
    ):
        resolve_preprocessing(DataConfig(**settings, pixels="stored"), in_chans=3, trained=RGB)
    stored = Preprocessing(3, (5000.0,) * 3, (2000.0,) * 3, pixels="stored")
    settings = data_defaults({}, stored.to_dict(), {"data.pixels": "scaled"})
    scaled = resolve_preprocessing(DataConfig(**settings, pixels="scaled"), in_chans=3, trained=stored)
    assert scaled == resolve_preprocessing(DataConfig(), in_chans=3)


def test_the_default_crop_depends_on_the_images_size_only() -> None:
    default = resolve_preprocessing(DataConfig(source="folder"), in_chans=3)
    assert (default.interpolation, default.crop_pct, default.crop_pct_small) == ("bicubic", 0.875, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 2}, r"channels must be 1 \(gray\) or 3 \(RGB\); got 2"),
        ({"channels": "3"}, "channels must be 1"),
        ({"channels": None}, "channels must be 1"),
        ({"mean": [0.5]}, r"mean must be 3 finite numbers; got \[0.5\]"),
        ({"mean": 0.5}, "mean must be 3 finite numbers"),
        ({"mean": ["a", "b", "c"]}, "mean must be 3 finite numbers"),
        ({"std": [0.5, 0.5, 0.0]}, "std must be positive in every channel"),
        ({"std": [0.5, 0.5, float("nan")]}, "std must be 3 finite numbers"),
        (
            {"interpolation": "cubic"},
            "interpolation must be one of bicubic, bilinear, nearest, lanczos; got 'cubic'",
        ),
        ({"interpolation": ["bicubic"]}, "interpolation must be one of"),
        ({"crop_pct": 0}, r"crop_pct must lie in \(0, 1\]; got 0"),
        ({"crop_pct": None}, "crop_pct must lie in"),
        ({"crop_pct_small": True}, "crop_pct_small must lie in"),
        ({"size": 224}, "absent or unknown: size"),
    ],
)
def test_wrong_descriptions_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"preprocessing.*{message}"):
        Preprocessing.from_dict(RGB.to_dict() | change)


@pytest.mark.parametrize("values", [None, [], "bicubic", 3])
def test_a_description_that_is_no_mapping(values: Any) -> None:
    with pytest.raises(UserError, match="preprocessing must be a mapping"):
        Preprocessing.from_dict(values)


def test_absent_keys_are_named() -> None:
    values = RGB.to_dict()
    del values["std"], values["crop_pct"]
    with pytest.raises(UserError, match="absent or unknown: crop_pct, std"):
        Preprocessing.from_dict(values)


@pytest.mark.parametrize(
    ("in_chans", "settings", "message"),
    [
        (2, {}, r"stored values of 2 channels have no mean and deviation that are known: measure them"),
        (
            1,
            {"mean": (0.4, 0.5, 0.6)},
            r"data.mean has 3 values, but the model takes 1 channel: give 1 value, for example their average, "
            r"--data.mean \[0.5\]",
        ),
        (1, {"std": (0.1, 0.2, 0.3)}, r"data.std has 3 values.*--data.std \[0.2\]"),
    ],
)
def test_values_that_do_not_fit_the_channels(in_chans: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_preprocessing(DataConfig(**settings), in_chans=in_chans)


def test_a_description_of_other_channels_than_the_models() -> None:
    with pytest.raises(UserError, match="the model takes 1 channel, but its preprocessing is for 3 channels"):
        resolve_preprocessing(DataConfig(), in_chans=1, trained=RGB)
