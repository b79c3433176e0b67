import math
from pathlib import Path
from typing import Any

import pytest

from map_core.errors import UserError
from map_vision.data import DataConfig, load_image_data, load_images


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": ""}, r"data.source must name a source; got ''"),
        ({"source": None}, r"data.source must name a source; got None"),
        ({"root": ""}, r"data.root must not be empty .*; got ''; change --data.root"),
        ({"root": "  "}, r"data.root must not be empty"),
        ({"root": 3}, r"data.root must not be empty .*; got 3"),
        ({"train_split": ""}, r"data.train_split must not be empty"),
        ({"eval_split": ""}, r"data.eval_split must not be empty"),
        ({"holdout": 1.0}, r"data.holdout must lie in \[0, 1\): it is a fraction; got 1.0"),
        ({"holdout": -0.1}, r"data.holdout must lie in"),
        ({"holdout": math.nan}, r"data.holdout must lie in"),
        ({"holdout": None}, r"data.holdout must lie in"),
        (
            {"holdout_seed": -1},
            r"data.holdout_seed must be a whole number from 0 to 9223372036854775807; got -1",
        ),
        ({"holdout_seed": 2**63}, r"data.holdout_seed must be a whole number"),
        ({"subset_seed": 0.5}, r"data.subset_seed must be a whole number"),
        ({"subset": 0}, r"data.subset must be at least 1; got 0"),
        ({"subset": -5}, r"data.subset must be at least 1"),
        ({"on_error": "ignore"}, r"data.on_error 'ignore' is unknown; known names: raise, skip"),
        ({"cache": "ram"}, r"data.cache 'ram' is unknown"),
        ({"cache": None}, r"data.cache None is unknown"),
        (
            {"augmentation": "crop_flop"},
            r"data.augmentation 'crop_flop' is unknown; did you mean crop_flip\?",
        ),
        ({"interpolation": "cubic"}, r"data.interpolation 'cubic' is unknown; did you mean bicubic"),
        ({"crop_scale": (0.9, 0.5)}, r"crop_scale must be two increasing numbers in .*; got \(0.9, 0.5\)"),
        ({"crop_scale": (0.0, 1.0)}, r"crop_scale must be two increasing numbers"),
        ({"crop_scale": (0.5, 1.5)}, r"crop_scale must be two increasing numbers"),
        ({"crop_scale": (0.5,)}, r"crop_scale must be two increasing numbers"),
        ({"horizontal_flip": 1.5}, r"horizontal_flip is a probability.*; got 1.5"),
        ({"random_erasing": -0.1}, r"random_erasing is a probability"),
        ({"random_erasing": "often"}, r"random_erasing is a probability.*; got 'often'"),
        ({"color_jitter": -0.4, "augmentation": "timm"}, r"color_jitter must be 0 or more; got -0.4"),
        (
            {"auto_augment": "rand-m9"},
            r"data.auto_augment 'rand-m9' needs .*: pass --data '{auto_augment: null}'",
        ),
        (
            {"color_jitter": 0.3},
            r"data.color_jitter \(0.3\) needs .*: pass --data '{color_jitter: null}'",
        ),
        ({"crop_pct": 1.5}, r"crop_pct must lie in \(0, 1\]; got 1.5"),
        ({"crop_pct": 0.0}, r"crop_pct must lie in"),
        ({"crop_pct": math.nan}, r"crop_pct must lie in"),
        ({"mean": ()}, r"data.mean must be 1 number, or one per channel; got \(\)"),
        ({"pixels": "raw"}, r"data.pixels 'raw' is unknown; known names: scaled, stored"),
        ({"statistics": ""}, r"data.statistics must not be empty"),
        ({"mean": (math.inf,)}, r"data.mean must be finite"),
        ({"std": (0.2, 0.2, 0.0)}, r"data.std must be positive in every channel; got \(0.2, 0.2, 0.0\)"),
        ({"std": (-0.1,)}, r"data.std must be positive"),
    ],
)
def test_every_field_has_a_range(settings: dict[str, Any], message: str, labelled: Path) -> None:
    config = DataConfig(root=str(labelled))
    for name, value in settings.items():
        setattr(config, name, value)  # unlike the constructor, takes wrong types too
    for check in (
        config.validate,
        lambda: load_image_data(config, img_size=(8, 8), in_chans=3, purpose="finetune"),
        lambda: load_images(labelled, config, img_size=(8, 8), in_chans=3),
    ):
        with pytest.raises(UserError, match=message):
            check()


@pytest.mark.parametrize("name", list(DataConfig.__dataclass_fields__))
def test_defaults_and_the_ends_of_ranges_are_allowed(name: str) -> None:
    ends: dict[str, list[Any]] = {
        "horizontal_flip": [0.0, 1.0],
        "random_erasing": [0.0, 1.0],
        "crop_pct": [1.0],
        "crop_scale": [(1.0, 1.0), [0.1, 1.0]],
        "holdout": [0.0, 0.999],
        "subset": [1],
        "root": ["#x", "null", "~", Path("photos")],
        "std": [(0.1,), [0.1, 0.2, 0.3]],
    }
    for value in [getattr(DataConfig(), name), *ends.get(name, [])]:
        config = DataConfig()
        setattr(config, name, value)
        config.validate()


@pytest.mark.parametrize("name", ["#x", "null", "1e3", "true"])
def test_a_root_is_a_path_whatever_its_name(
    name: str, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(labelled)
    (labelled / "train").rename(labelled / name)
    data = load_image_data(DataConfig(root=name), img_size=(8, 8), in_chans=3, purpose="pretrain")
    assert len(data.train) == 20


def test_a_tilde_is_the_home_folder(labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(labelled))
    for root in ("~", "~/train"):
        data = load_image_data(DataConfig(root=root), img_size=(8, 8), in_chans=3, purpose="pretrain")
        assert len(data.train) == 20
    assert len(load_images("~/val", DataConfig(), img_size=(8, 8), in_chans=3)) == 5
    timm = DataConfig("torch/image_folder", root="~")
    assert len(load_image_data(timm, img_size=(8, 8), in_chans=3, purpose="finetune").train) == 20
