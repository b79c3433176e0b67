"""Every setting of the data section is checked before any data are read."""

import math
from pathlib import Path

import numpy as np
import pytest

from map_core.errors import UserError
from map_points.data import PointDataConfig, read_clouds


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        (
            "source",
            "modelnet",
            "data.source 'modelnet' is unknown; did you mean .*modelnet40_npz",
        ),
        ("variant", "pb", "data.variant 'pb' is unknown; known names: obj_bg, obj_only, pb_t50_rs"),
        ("augmentation", "flip", "data.augmentation 'flip' is unknown"),
        ("up_axis", "w", "data.up_axis 'w' is unknown; known names: x, y, z"),
        ("train_sampling", "fps", "data.train_sampling 'fps' is unknown; known names: fps_random, random"),
        ("num_points", 0, "data.num_points must be a whole number of at least 1; got 0"),
        ("num_points", 10.5, r"data.num_points must be a whole number of at least 1; got 10\.5"),
        ("num_points", True, "data.num_points must be a whole number of at least 1; got True"),
        ("scale", (1.0, 0.5), "data.scale must satisfy 0 < low <= high; got 1.0, 0.5"),
        ("scale", (1.0, math.inf), "data.scale must satisfy"),
        ("scale", (math.nan, 1.0), "data.scale must satisfy"),
        ("scale", (1.0,), "data.scale must satisfy"),
        ("translate", -0.1, "data.translate must be 0 or more"),
        ("translate", math.nan, "data.translate must be 0 or more"),
        ("holdout", 1.0, r"data.holdout \(1.0\) must lie in \[0, 1\)"),
        ("holdout", math.nan, r"data.holdout \(nan\) must lie in"),
        (
            "holdout_seed",
            -1,
            "data.holdout_seed must be a whole number from 0 to 9223372036854775807; got -1",
        ),
        ("subset_seed", 2**63, "data.subset_seed must be a whole number from 0"),
        ("subset", 0, "data.subset must be a whole number of at least 1; got 0"),
        ("shapes_per_class", 0, "data.shapes_per_class must be a whole number of at least 1; got 0"),
        ("ignore_label", 2**40, "data.ignore_label must be a whole number from -2147483648"),
        ("ignore_label", 255, "data.ignore_label is for parts, which data.source 'shapes' does not have"),
        ("root", "", "data.root is empty"),
        ("root", "  ", "data.root is empty"),
        ("root", "x", "data.root is x, but the embedded shapes have no folder"),
        (
            "eval_split",
            "val",
            "data.eval_split val names a split of data.source 'folder'; 'shapes' has only the test split .*: give "
            "--data.eval_split test, or leave it out",
        ),
        (
            "variant",
            "obj_bg",
            "data.variant obj_bg has no effect with data.source shapes, only with scanobjectnn: leave it at pb_t50_rs",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, value, message, unchecked):
    config = PointDataConfig()
    config.validate()
    setattr(config, setting, value)
    with pytest.raises(UserError, match=message):
        config.validate()


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (
            "folder",
            {"shapes_per_class": 5},
            "data.shapes_per_class 5 has no effect with .* folder, only with shapes",
        ),
        ("fewshot_pkl", {"eval_split": "test"}, "data.source 'fewshot_pkl' has folds: leave it out"),
    ],
)
def test_settings_without_effect_on_a_source_are_refused(source, settings, message):
    PointDataConfig(source, "data").validate()
    with pytest.raises(UserError, match=message):
        PointDataConfig(source, "data", **settings).validate()


def test_the_name_of_a_split_is_not_empty():
    with pytest.raises(UserError, match=r"data.eval_split is empty: name a split, or leave the setting out"):
        PointDataConfig("folder", "clouds", eval_split=" ").validate()


@pytest.mark.parametrize("name", ["null", "#x", "none", "1e3", "true", "[a]"])
def test_a_path_is_a_path_whatever_it_looks_like(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    points = np.random.default_rng(0).normal(size=(2, 20, 3))
    np.savez(f"{name}/modelnet40_1024.npz", train_x=points, train_y=[0, 1], classes=["a", "b"])
    assert len(read_clouds(PointDataConfig("modelnet40_npz", name), "train")) == 2


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert PointDataConfig("hdf5", "~/data").root_path == tmp_path / "data"
    assert PointDataConfig("hdf5", "~").root_path == tmp_path
    assert PointDataConfig("hdf5", "~nobody_of_this_name/x").root_path == Path("~nobody_of_this_name/x")
    assert PointDataConfig("hdf5", "a/~/b").root_path == Path("a/~/b")
    with pytest.raises(UserError, match=r"give --data\.root"):
        _ = PointDataConfig("hdf5").root_path
