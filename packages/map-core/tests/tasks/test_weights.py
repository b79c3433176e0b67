"""Weights files: what is written comes back, and what does not fit is named."""

import logging
import os
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from map_core import UserError
from map_core.tasks.weights import (
    load_init,
    read_description,
    read_settings,
    read_weights,
    save_weights,
    weights_file,
)


class Toy(nn.Module):
    def __init__(self, width=3, num_classes=2):
        super().__init__()
        self.body = nn.Linear(2, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()


@dataclass
class Settings:
    width: int = 3
    size: tuple[int, int] = (1, 1)


def write(directory, model, **description):
    save_weights(directory / "model.safetensors", model.state_dict(), description)
    return directory


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---- reading and writing


@pytest.mark.parametrize("name", ["", "model.safetensors"], ids=["directory", "file"])
def test_weights_and_description_come_back(tmp_path, name):
    model = Toy()
    write(tmp_path, model, holds="classifier", classes=["a", "b"])
    assert same(read_weights(tmp_path / name), model.state_dict())
    assert read_description(tmp_path / name) == {"holds": "classifier", "classes": ["a", "b"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_torch_files_of_tensors_are_read_too(tmp_path, key):
    state = Toy().state_dict()
    torch.save(state if key is None else {key: state}, tmp_path / "model.pth")
    assert same(read_weights(tmp_path / "model.pth"), state)


def test_a_file_without_a_description_has_an_empty_one(tmp_path):
    assert read_description(tmp_path) == {}


def test_a_description_cut_off_is_named(tmp_path):
    write(tmp_path, Toy(), holds="encoder")
    (tmp_path / "model.json").write_text('{"holds": ')
    with pytest.raises(UserError, match=r"model.json is no JSON .* copy it or export the run again"):
        read_description(tmp_path)


@pytest.mark.parametrize(
    ("unfinished", "hint"), [(True, r" \(the run has not finished: resume it\)"), (False, "")]
)
def test_weights_that_are_not_there(tmp_path, unfinished, hint):
    if unfinished:
        (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=rf"no weights at .*model.safetensors{hint}; give a finished run's"):
        weights_file(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_file_cut_off_is_named(tmp_path, name):
    path = tmp_path / name
    write(tmp_path, Toy()) if name.endswith("safetensors") else torch.save(Toy().state_dict(), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{name} (cannot be read as weights|holds more than tensors)"):
        read_weights(path)


def test_numbers_are_no_weights(tmp_path):
    torch.save({"step": 3}, tmp_path / "model.pth")
    with pytest.raises(
        UserError, match=r"model.pth holds no state dict of tensors; expected parameter names"
    ):
        read_weights(tmp_path / "model.pth")


class Malice:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_file_that_would_run_code_is_refused_and_not_run(tmp_path):
    target = tmp_path / "executed"
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"a": Malice(target)}, protocol=2))
    with pytest.raises(
        UserError, match=r"model.pth holds more than tensors and was refused: loading it could"
    ):
        read_weights(tmp_path / "model.pth")
    assert not target.exists()


# ---- settings


def test_settings_come_back_with_tuples_where_json_has_lists():
    assert read_settings(Settings, {"width": 5, "size": [2, 3]}, "x") == Settings(5, (2, 3))


def test_settings_of_another_version_are_named():
    with pytest.raises(
        UserError, match="run describes settings that this version does not know: deep, tall; read"
    ):
        read_settings(Settings, {"width": 5, "tall": 1, "deep": 2}, "run")


# ---- starting a model


def test_a_model_starts_from_all_that_the_file_has(tmp_path, caplog):
    source, model = Toy(), Toy()
    with caplog.at_level(logging.INFO):
        report = load_init(model, write(tmp_path, source))
    assert same(model.state_dict(), source.state_dict())
    assert report.fresh == ()
    assert caplog.messages == [f"{tmp_path / 'model.safetensors'}: loaded; new: nothing"]


def test_what_may_be_missing_stays_and_is_reported(tmp_path):
    source, model = Toy(num_classes=0), Toy()
    head = model.head.weight.clone()
    report = load_init(model, write(tmp_path, source), may_be_missing=("head.",))
    assert torch.equal(model.body.weight, source.body.weight)
    assert torch.equal(model.head.weight, head)
    assert report.fresh == ("head.weight", "head.bias")


@pytest.mark.parametrize(("classes", "keep_head"), [(5, True), (2, False)], ids=["other classes", "not kept"])
def test_a_head_that_does_not_fit_or_is_not_wanted_starts_anew(tmp_path, classes, keep_head):
    source, model = Toy(num_classes=classes), Toy()
    head = model.head.weight.clone()
    report = load_init(model, write(tmp_path, source), may_be_missing=("head.",), keep_head=keep_head)
    assert torch.equal(model.body.weight, source.body.weight)
    assert torch.equal(model.head.weight, head)
    assert report.fresh == ("head.weight", "head.bias")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("norm.bias"), "missing: norm.bias"),
        (lambda state: state.update(extra=torch.ones(1)), "not used: extra"),
        (lambda state: state.update({"norm.bias": torch.ones(7)}), r"shapes: norm.bias \(7,\) for \(3,\)"),
        (
            lambda state: state.update({str(i): torch.ones(1) for i in range(9)}),
            "not used: 0, .*5 and 3 more",
        ),
    ],
    ids=["missing", "unknown", "another shape", "many"],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path, change, message):
    state, model = dict(Toy().state_dict()), Toy()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    change(state)
    save_weights(tmp_path / "model.safetensors", state, {})
    with pytest.raises(
        UserError, match=rf"does not fit this model: {message}; choose the model that was pretr"
    ):
        load_init(model, tmp_path)
    assert same(model.state_dict(), before)


def test_foreign_names_are_converted_first(tmp_path):
    source, model = Toy(), Toy()
    save_weights(tmp_path / "model.safetensors", {f"net.{k}": v for k, v in source.state_dict().items()}, {})
    load_init(model, tmp_path, convert=lambda state: {k.removeprefix("net."): v for k, v in state.items()})
    assert same(model.state_dict(), source.state_dict())
