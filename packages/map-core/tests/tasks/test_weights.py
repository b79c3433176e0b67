"""Weights files: what is written comes back, and what does not fit is named."""

import argparse
import errno
import logging
import math
import os
import pickle
import random
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from map_core import UserError
from map_core.tasks import weights
from map_core.tasks.initial_weights import load_init
from map_core.tasks.setting_values import fits
from map_core.tasks.weights import read_description, read_settings, read_weights, save_weights, weights_file


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


@dataclass
class Required:
    name: str
    root: str
    depth: int = 1


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


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda state: state, None),
        (lambda state: {"model": state, "epoch": 3}, "weights taken from model"),
        (lambda state: {"state_dict": state}, "weights taken from state_dict"),
        (lambda state: {"base_model": state}, "weights taken from base_model"),
        (lambda state: {"student": {}, "teacher": state}, "weights taken from teacher"),
        (lambda state: {"model_ema": state, "epoch": 3}, "weights taken from model_ema"),
        (lambda state: {"state_dict": {}, "state_dict_ema": state}, "weights taken from state_dict_ema"),
        *(
            (
                lambda state, raw=raw, ema=ema: {ema: {"w": torch.ones(1)}, raw: state},
                f"weights taken from {raw}, not from {ema}, which is there too: save that alone to take it",
            )
            for raw, ema in (("model", "model_ema"), ("state_dict", "state_dict_ema"))
        ),
        (lambda state: {"state_dict": {"model": state}}, "weights taken from state_dict.model"),
        *(
            (
                lambda state, prefix=prefix: {prefix + key: value for key, value in state.items()},
                f"all names begin with {prefix}, which was taken off",
            )
            for prefix in ("module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.backbone.")
        ),
    ],
)
def test_torch_files_of_tensors_are_read_whatever_others_put_around_them(tmp_path, caplog, wrap, message):
    state = Toy().state_dict()
    torch.save(wrap(state), tmp_path / "model.pth")
    assert same(read_weights(tmp_path / "model.pth"), state)
    assert caplog.messages == ([] if message is None else [f"{tmp_path / 'model.pth'}: {message}"])


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize(
    "beside",
    [
        np.float64(91.2),
        np.bool_(True),
        np.dtype(">f4"),
        np.arange(6).reshape(2, 3),
        argparse.Namespace(lr=0.1, seeds=np.arange(2), deeper=argparse.Namespace(a=[1])),
    ],
    ids=repr,
)
def test_what_training_programs_put_beside_the_weights_is_no_hindrance(tmp_path, beside, legacy):
    path, state = tmp_path / "model.pth", Toy().state_dict()
    torch.save({"model": state, "more": [beside]}, path, _use_new_zipfile_serialization=not legacy)
    assert same(read_weights(path), state)


@pytest.mark.parametrize(
    ("name", "save"),
    [("model.pth", save_file), ("model.safetensors", torch.save)],
    ids=["safetensors", "torch"],
)
def test_a_suffix_does_not_say_what_a_file_is(tmp_path, name, save):
    state = Toy().state_dict()
    save(state, tmp_path / name)
    assert same(read_weights(tmp_path / name), state)


def save_script(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def save_arrays(path):
    with path.open("wb") as file:
        np.savez(file, **{"Transformer/norm": np.ones(2)})


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["model.pt", "model.npz", "model.safetensors"])
@pytest.mark.parametrize(
    ("save", "message"),
    [
        (save_script, r"a TorchScript archive, .*: save the state_dict\(\) of torch.jit.load"),
        (save_arrays, r"an .npz archive of numpy, .*: if timm reads it .*, save the model's state_dict\(\)"),
    ],
    ids=["TorchScript", "npz"],
)
def test_other_archives_are_named(tmp_path, recwarn, name, save, message):
    save(tmp_path / name)
    recwarn.clear()
    with pytest.raises(UserError, match=rf"{name} is {message}"):
        read_weights(tmp_path / name)
    assert not recwarn.list


def test_a_prefix_of_some_names_only_stays(tmp_path):
    state = {"backbone.weight": torch.ones(1), "head.weight": torch.ones(1)}
    torch.save(state, tmp_path / "model.pth")
    assert same(read_weights(tmp_path / "model.pth"), state)


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "an HTML page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML"),
        ("Größe 3\n".encode() * 3000, "text"),
        (b'{"name": "x"}', "text"),
    ],
    ids=["empty", "lfs", "html", "xml", "text", "json"],
)
def test_files_that_are_no_weights_are_recognised(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is not a weights file \(looks like {what}"):
        read_weights(tmp_path / name)


def test_weights_with_nan_are_refused_by_name(tmp_path):
    state = {"count": torch.tensor(3), "weight": torch.ones(2), "bias": torch.tensor([0.0, math.nan])}
    save_weights(tmp_path / "model.safetensors", state, {})
    with pytest.raises(
        UserError, match=r"model\.safetensors holds NaN in bias: .*; give an earlier checkpoint"
    ):
        read_weights(tmp_path / "model.safetensors")
    state["bias"] = torch.tensor([0.0, -math.inf])  # as a mask may hold
    save_weights(tmp_path / "model.safetensors", state, {})
    assert same(read_weights(tmp_path / "model.safetensors"), state)


def refusal(path):
    """The message with which a file is refused; None for one that is read."""
    try:
        read_weights(path)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_mutants_of_a_file_are_read_or_refused_by_name(tmp_path, name):
    """Cut off anywhere, with bytes changed anywhere: no more than a sentence, and nothing hangs."""
    path, state = tmp_path / name, {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}
    torch.save(state, path) if name.endswith("pth") else save_weights(path, state, {})
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(300):
        mutant = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randrange(4)):
            if mutant:
                mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        path.write_bytes(mutant)
        message = refusal(path)
        assert message is None or str(path) in message


def test_a_file_without_a_description_has_an_empty_one(tmp_path):
    assert read_description(tmp_path) == {}


def test_a_description_cut_off_is_named(tmp_path):
    write(tmp_path, Toy(), holds="encoder")
    (tmp_path / "model.json").write_text('{"holds": ')
    with pytest.raises(UserError, match=r"model.json is not valid JSON .* copy it or export the run again"):
        read_description(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "does not describe a model: it must be a mapping"),
        ("3", "does not describe a model: it must be a mapping"),
        ('{"name": 3}', "name must be a str; got 3"),
        ('{"name": "x", "arguments": []}', r"arguments must be a dict; got \[\]"),
        ('{"classes": "cat"}', "classes must be a list; got 'cat'"),
        ('{"holds": "classifier"}', "describes a classifier but lacks its classes"),
        ("[" * 20_000, "is not valid JSON"),
        ("", "is not valid JSON"),
    ],
    ids=["list", "number", "name", "arguments", "classes", "no classes", "brackets", "empty"],
)
def test_a_description_of_another_shape_is_named(tmp_path, text, message):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UserError, match=rf"model.json:? {message}"):
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


@pytest.mark.parametrize(
    ("content", "names"),
    [({"step": 3, "weights": {}}, "step, weights"), ([1], "no names"), (np.ones(2), "no names")],
    ids=["keys", "list", "array"],
)
def test_numbers_are_no_weights(tmp_path, content, names):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(
        UserError,
        match=rf"model.pth does not hold a state dict of tensors: it has {names}; expected .*, model_ema,",
    ):
        read_weights(tmp_path / "model.pth")


class Malice:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class Reduced:
    """Pickled as a call of a function with arguments and a state, all chosen by an attacker."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


ARRAY, ARGUMENTS, CONTENT = np.arange(2).__reduce__()[:3]
NUMBER, (CODE, BYTES) = np.float64(1).__reduce__()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize(
    ("wrap", "culprit"),
    [
        (lambda evil: evil, os.mkdir.__module__),
        (lambda evil: argparse.Namespace(a=evil), os.mkdir.__module__),
        (lambda evil: Reduced(ARRAY, (evil, *ARGUMENTS[1:]), CONTENT), os.mkdir.__module__),
        (lambda evil: Reduced(ARRAY, (Malice, *ARGUMENTS[1:]), CONTENT), r"\S+\.Malice"),
        (lambda evil: Reduced(ARRAY, ARGUMENTS, (*CONTENT[:4], evil)), os.mkdir.__module__),
        (lambda evil: Reduced(NUMBER, (CODE, evil)), os.mkdir.__module__),
        (
            lambda evil: Reduced(ARRAY, (np.dtype, *ARGUMENTS[1:]), CONTENT),
            "another array than numpy.ndarray",
        ),
        (lambda evil: Reduced(ARRAY, ARGUMENTS, (*CONTENT[:4], [1])), "an array without bytes"),
        (lambda evil: Reduced(NUMBER, ("f8", BYTES)), "an array of objects"),
        (lambda evil: np.array([{}], dtype=object), "numpy's data type 'O8'"),
        (lambda evil: np.zeros(1, dtype=[("a", "i4")]), "numpy's data type 'V4'"),
        (lambda evil: Reduced(eval, ("1",)), "eval"),
        (lambda evil: Reduced(getattr, (CODE, "type")), "getattr"),
    ],
    ids=[
        *("bare", "option", "kind of an array", "class of an array", "content", "number", "kind", "no bytes"),
        *("no type", "objects", "fields", "eval", "getattr"),
    ],
)
def test_a_file_that_would_run_code_is_refused_by_name_and_not_run(tmp_path, wrap, culprit, legacy):
    path, target = tmp_path / "model.pth", tmp_path / "executed"
    content = {"model": Toy().state_dict(), "more": wrap(Malice(target))}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        UserError,
        match=rf"model.pth holds more than tensors and was refused: {culprit}.* could run code; save",
    ):
        read_weights(path)
    assert not target.exists()


def test_a_plain_pickle_that_would_run_code_is_not_run(tmp_path):
    target = tmp_path / "executed"
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"a": Malice(target)}, protocol=2))
    with pytest.raises(
        UserError, match=r"model.pth holds more than tensors and was refused: \w+\.mkdir could"
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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": "5"}, "width as '5', which must be int"),
        ({"width": True}, "width as True, which must be int"),
        ({"width": 5.0}, "width as 5.0, which must be int"),
        ({"size": [1]}, r"size as \(1,\), which must be tuple\[int, int\]"),
        ({"size": [1, "2"]}, r"size as \(1, '2'\), which must be tuple\[int, int\]"),
        ({"size": 3}, r"size as 3, which must be tuple\[int, int\]"),
    ],
)
def test_settings_of_another_type_are_named(values, message):
    with pytest.raises(UserError, match=f"run describes {message}; export the run again"):
        read_settings(Settings, values, "run")


def test_settings_that_are_missing_are_named():
    with pytest.raises(UserError, match="run lacks name, root; export the run again"):
        read_settings(Required, {"depth": 2}, "run")


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, float, True),
        (None, int | None, True),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (1, Literal[True], False),
        ((1, 2, 3), tuple[int, ...], True),
        ((1, "2"), tuple[int, ...], False),
        ((0.5, 1), tuple[float, float] | None, True),
        ("x", int | str, True),
        ([], int | str, False),
        ({}, dict[str, int], True),
        (object(), Any, True),
    ],
)
def test_types(value, kind, expected):
    assert fits(value, kind) is expected


# ---- starting a model


def test_a_model_starts_from_all_that_the_file_has(tmp_path, caplog):
    source, model = Toy(), Toy()
    with caplog.at_level(logging.INFO):
        report = load_init(model, write(tmp_path, source))
    assert same(model.state_dict(), source.state_dict())
    assert report.missing == ()
    assert caplog.messages == [f"{tmp_path / 'model.safetensors'}: loaded; new: nothing"]


def test_parameters_that_may_be_missing_stay_and_are_reported(tmp_path):
    source, model = Toy(num_classes=0), Toy()
    head = model.head.weight.clone()
    report = load_init(model, write(tmp_path, source), may_be_missing=("head.",))
    assert torch.equal(model.body.weight, source.body.weight)
    assert torch.equal(model.head.weight, head)
    assert report.missing == ("head.weight", "head.bias")


@pytest.mark.parametrize(("classes", "keep_head"), [(5, True), (2, False)], ids=["other classes", "not kept"])
def test_a_head_that_does_not_fit_or_is_not_kept_is_reinitialised(tmp_path, caplog, classes, keep_head):
    source, model = Toy(num_classes=classes), Toy()
    head = model.head.weight.clone()
    with caplog.at_level(logging.WARNING):
        report = load_init(model, write(tmp_path, source), may_be_missing=("head.",), keep_head=keep_head)
    assert torch.equal(model.body.weight, source.body.weight)
    assert torch.equal(model.head.weight, head)
    assert report.missing == ("head.weight", "head.bias")
    assert "loaded; new: head.weight, head.bias; left: head.bias, head.weight" in caplog.text
    assert (
        "the file's head has other parameters or shapes: this model's starts anew" in caplog.text
    ) is keep_head


def test_parameters_that_the_model_has_no_place_for_are_skipped_and_reported(tmp_path, caplog):
    source, model = Toy(), Toy(num_classes=0)
    report = load_init(model, write(tmp_path, source), may_be_missing=("head.",))
    assert torch.equal(model.body.weight, source.body.weight)
    assert report.unused == ("head.bias", "head.weight")
    assert caplog.messages == [
        f"{tmp_path / 'model.safetensors'}: loaded; new: nothing; left: head.bias, head.weight"
    ]


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


def test_weights_and_description_of_an_impossible_name_are_named(tmp_path):
    for path in ("a" * 300, "a" * 300 + ".pth"):
        for read in (weights_file, read_weights, read_description):
            with pytest.raises(
                UserError, match=r"cannot read a+(\.pth)? \(File name too long\): make it readable"
            ):
                read(path)
    assert read_description("a" * 252) == {}


def test_a_private_run_is_named(tmp_path, private):
    for read in (weights_file, read_description):
        with pytest.raises(
            UserError, match=rf"cannot read {private}.* \(Permission denied\): make it readable"
        ):
            read(private)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch, name):
    write(tmp_path, nn.Linear(2, 2), name="x")
    refusing = PermissionError(errno.EACCES, "Permission denied")
    target = "looks_like" if name == "model.safetensors" else "read_small"
    monkeypatch.setattr(weights, target, Mock(side_effect=refusing))
    with pytest.raises(
        UserError, match=rf"cannot read .*{name} \(Permission denied\): make it readable, or give"
    ):
        (read_weights if name == "model.safetensors" else read_description)(tmp_path)


def test_a_file_that_holds_itself_is_no_state_dict(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"x.pth does not hold a state dict of tensors: it has model; expected"
    ):
        read_weights(tmp_path / "x.pth")


def test_tensors_without_values_are_refused_by_name(tmp_path):
    torch.save({"w": torch.ones(2), "v": torch.ones(2, device="meta")}, tmp_path / "x.pth")
    with pytest.raises(
        UserError, match=r"x.pth holds no values of v, which were on torch's device meta: save the"
    ):
        read_weights(tmp_path / "x.pth")
