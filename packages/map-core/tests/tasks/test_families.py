"""Checkpoints of others are recognised by their keys, converted and reported, or refused where they do not fit."""

import errno
import logging
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from toy_domain import DOMAIN, ToyNet

from map_core import UserError
from map_core.commands.listing import convert_command
from map_core.commands.program import main
from map_core.tasks import weights
from map_core.tasks.conversion import convert_checkpoint
from map_core.tasks.families import Converted, Family, Guess, family_of
from map_core.tasks.initial_weights import load_init
from map_core.tasks.pretraining import decoder_state, load_objective
from map_core.tasks.weights import read_description, save_weights

WIDTH = 12
RENAMED = {"encoder.": "net.", "embed.": "lift."}


def theirs(state):
    """A state dict under the names of another project."""
    renamed = {}
    for key, value in state.items():
        prefix = next((ours for ours in RENAMED if key.startswith(ours)), None)
        renamed[key if prefix is None else RENAMED[prefix] + key.removeprefix(prefix)] = value
    return renamed


def convert_net(state):
    prefixes = {their: our for our, their in RENAMED.items()}
    ours, rest = {}, {}
    for key, value in state.items():
        prefix = next((their for their in prefixes if key.startswith(their)), None)
        if key.startswith("rest."):
            rest[key.removeprefix("rest.")] = value
        elif prefix is not None:
            ours[prefixes[prefix] + key.removeprefix(prefix)] = value
        elif key != "optimizer_steps":
            ours[key] = value
    classes = tuple(map(str, range(len(state["head.bias"])))) if "head.bias" in state else ()
    return Converted(
        ours,
        {"name": "toy", "embed_dim": WIDTH},
        holds="classifier" if classes else "encoder",
        classes=classes,
        preprocessing={"flip": True},
        decoder_state=rest,
        unused=tuple(key for key in state if key == "optimizer_steps"),
        notes=("toys are not real",),
    )


NET = Family(
    "Net", ("lift.weight", "net.blocks.#.norm.weight"), ("lift.bias", "net.*", "head.*", "rest.*", "optimizer_steps"),
    convert_net,
)  # fmt: skip
TREE = Family("Tree", ("root.weight", "branch.#.leaf.#.bias"), (), lambda state: Converted({}, {}))
FAMILIES = (TREE, NET)


def load(model, path, *, keep_head=True, families=FAMILIES):
    return load_init(model, path, may_be_missing=("head.",), families=families, keep_head=keep_head)


TOYS = replace(DOMAIN, models=replace(DOMAIN.models, families=FAMILIES, load_init=load))


def saved(state, path):
    torch.save({"model": state}, path)
    return path


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---- recognition


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["root.weight", "branch.0.leaf.12.bias"], "Tree"),
        (["root.weight"], None),
        (["root.weight", "branch.x.leaf.0.bias"], None),
        (["root.weight", "branch.0.leaf.0.bias", "bark"], None),
        (["xroot.weight", "branch.0.leaf.0.bias"], None),
        (["lift.weight", "net.blocks.3.norm.weight", "net.blocks.3.anything"], "Net"),
    ],
)
def test_a_file_is_of_the_family_whose_keys_it_has(keys, name):
    family = family_of({key: torch.ones(1) for key in keys}, FAMILIES)
    assert (family and family.name) == name


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ["root.weight", "branch.0.leaf.0.bias", "bark.weight"],
            r"nearest: Tree, but 1 of its 3 keys are none of that: bark.weight; known: Tree, Net",
        ),
        (["root.weight"], "nearest: Tree, but it lacks branch.#.leaf.#.bias; known"),
        (
            ["a", "b", "c", "d"],
            "nearest: Tree, but 4 of its 4 keys are none of that: a, b, c and 1 more, and it lacks ",
        ),
    ],
)
def test_an_unknown_file_is_refused_with_the_nearest_family(tmp_path, keys, message):
    file = saved({key: torch.ones(1) for key in keys}, tmp_path / "odd.pth")
    with pytest.raises(
        UserError, match=rf"odd.pth is a checkpoint of no family that is known here; {message}"
    ):
        load(ToyNet(WIDTH), file)


# ---- starting a model


def test_a_converted_file_starts_a_model_and_the_report_says_how(tmp_path, caplog):
    source, model = ToyNet(WIDTH, 3), ToyNet(WIDTH, 3)
    state = theirs(source.state_dict()) | {"optimizer_steps": torch.ones(1)}
    file = saved(state, tmp_path / "net.pth")
    with caplog.at_level(logging.WARNING):
        report = load(model, file)
    assert same(model.state_dict(), source.state_dict())
    assert (report.family, report.unused, report.missing) == ("Net", ("optimizer_steps",), ())
    count = len(source.state_dict())
    line = f"Net, {count} parameters mapped; none resampled; 1 left (optimizer_steps); none new; toys are not real"
    assert f"net.pth: {line}" in caplog.text


def test_a_model_without_a_head_leaves_that_of_the_file(tmp_path):
    file = saved(theirs(ToyNet(WIDTH, 3).state_dict()), tmp_path / "net.pth")
    assert load(ToyNet(WIDTH), file).unused == ("head.weight", "head.bias")


def test_an_error_about_sizes_names_the_model_that_fits(tmp_path):
    file = saved(theirs(ToyNet(WIDTH).state_dict()), tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"shapes: .*\(Net: --model.name toy --model.embed_dim 12\)"):
        load(ToyNet(16), file)


def test_the_settings_that_would_fit_are_written_as_the_command_line_takes_them(tmp_path):
    def sized(state):
        return replace(convert_net(state), model={"name": "toy", "size": (8, 8), "layout": "(MT)x2"})

    file = saved(theirs(ToyNet(WIDTH).state_dict()), tmp_path / "net.pth")
    with pytest.raises(
        UserError, match=r"\(Net: --model.name toy --model.size 8 8 --model.layout '\(MT\)x2'\)"
    ):
        load(ToyNet(16), file, families=(replace(NET, convert=sized),))


@pytest.mark.parametrize(
    ("invisible_settings", "refused"),
    [({"shape": "tree"}, False), ({"shape": "bush"}, True), ({}, False), (None, True)],
    ids=["the same", "another", "plays no part", "knows none"],
)
def test_a_model_that_would_compute_something_else_is_refused(tmp_path, invisible_settings, refused):
    family = replace(
        NET, convert=lambda state: replace(convert_net(state), invisible_settings={"shape": "tree"})
    )
    file = saved(theirs(ToyNet(WIDTH).state_dict()), tmp_path / "net.pth")
    model = ToyNet(WIDTH)
    if invisible_settings is not None:
        model.invisible_settings = invisible_settings
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if not refused:
        load_init(model, file, families=(family,))
        return
    with pytest.raises(
        UserError, match=r"of Net, whose shape is 'tree', and not .*; make the model with shape='tree'"
    ):
        load_init(model, file, families=(family,))
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("invisible_settings", "note"),
    [
        (
            {"num_heads": 12},
            "no file says how many heads there are: 12, as published, unless --model.num_heads says",
        ),
        ({}, "no file says how many heads there are: 12, as published, unless --model.num_heads says"),
        (
            {"num_heads": 6},
            "no file says how many heads there are: this model has num_heads 6 and the published one 12, whose weights "
            "compute something else here; make the model with num_heads=12 (--model.num_heads 12)",
        ),
    ],
    ids=["the published value", "does not say", "another value"],
)
def test_a_guess_that_is_not_the_models_value_is_warned_of(tmp_path, caplog, invisible_settings, note):
    guesses = {"num_heads": Guess("how many heads there are", 12)}
    family = replace(NET, convert=lambda state: replace(convert_net(state), guessed_settings=guesses))
    file = saved(theirs(ToyNet(WIDTH).state_dict()), tmp_path / "net.pth")
    model = ToyNet(WIDTH)
    model.invisible_settings = invisible_settings
    with caplog.at_level(logging.WARNING):
        report = load_init(model, file, families=(family,))
    assert report.notes[0].startswith(note)
    assert note in caplog.text


def test_a_file_that_says_what_it_is_is_never_converted(tmp_path):
    source, model = ToyNet(WIDTH), ToyNet(WIDTH)
    save_weights(
        tmp_path / "model.safetensors", source.state_dict(), TOYS.models.describe(TOYS.models.config())
    )
    anything = Family("Anything", ("*",), (), lambda state: Converted({}, {}))
    report = load_init(model, tmp_path, families=(anything,))
    assert report.family is None
    assert same(model.state_dict(), source.state_dict())


# ---- the command


def convert(*arguments):
    return main("map-toy", [convert_command(TOYS)], "map_core", ["convert", *map(str, arguments)])


def test_a_converted_classifier_is_a_run(tmp_path, capsys):
    source = ToyNet(WIDTH, 3)
    file = saved(theirs(source.state_dict()), tmp_path / "net.pth")
    assert convert(file, "--out", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "net.pth: Net, " in printed
    assert f"-> {tmp_path / 'run'}" in printed
    model, classes = TOYS.models.classifier(tmp_path / "run")
    assert same(model.state_dict(), source.state_dict())
    assert classes == ("0", "1", "2")
    assert read_description(tmp_path / "run") == {
        "name": "toy", "arguments": {"embed_dim": WIDTH}, "task": "convert", "holds": "classifier", "weights": "raw",
        "family": "Net", "source": "net.pth", "flip": True, "classes": ["0", "1", "2"],
    }  # fmt: skip


def test_a_converted_encoder_with_its_decoder_is_a_pretraining_run(tmp_path):
    backbone = ToyNet(WIDTH)
    objective = TOYS.build_objective(backbone, TOYS.objective())
    rest = decoder_state(objective)
    file = saved(
        theirs(backbone.state_dict()) | {f"rest.{key}": value for key, value in rest.items()},
        tmp_path / "net.pth",
    )
    assert convert(file, "--out", tmp_path / "run") == 0
    whole = load_objective(TOYS, tmp_path / "run").objective
    assert same(whole.state_dict(), objective.state_dict())


@pytest.mark.parametrize("written", [True, False], ids=["written", "the disk is full"])
def test_an_earlier_model_is_replaced_as_a_whole_or_stays_as_it_was(tmp_path, monkeypatch, written):
    backbone = ToyNet(WIDTH)
    rest = decoder_state(TOYS.build_objective(backbone, TOYS.objective()))
    decoder = {f"rest.{key}": value for key, value in rest.items()}
    whole = saved(theirs(backbone.state_dict()) | decoder, tmp_path / "whole.pth")
    encoder = saved(theirs(ToyNet(WIDTH).state_dict()), tmp_path / "encoder.pth")
    assert convert(whole, "--out", tmp_path / "run") == 0
    assert load_objective(TOYS, tmp_path / "run")
    if written:
        assert convert(encoder, "--out", tmp_path / "run") == 0
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
            "model.json",
            "model.safetensors",
        ]
        with pytest.raises(UserError, match=r"has no pretraining\.safetensors"):
            load_objective(TOYS, tmp_path / "run")
    else:
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        monkeypatch.setattr(weights, "save_tensors", Mock(side_effect=OSError(errno.ENOSPC, "full")))
        with pytest.raises(
            UserError, match=r"cannot write .*run \(full\); make room, then repeat the command"
        ):
            convert_checkpoint(TOYS, encoder, tmp_path / "run")
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_training_run_is_not_overwritten_by_a_conversion(tmp_path, capsys):
    file, out = saved(theirs(ToyNet(WIDTH).state_dict()), tmp_path / "net.pth"), tmp_path / "run"
    out.mkdir()
    for name, text in (
        ("summary.json", '{"task": "finetune"}'),
        ("model.json", "{}"),
        ("model.safetensors", ""),
    ):
        (out / name).write_text(text)
    assert convert(file, "--out", out) == 2
    assert (
        f"{out} is a training run, whose model would be replaced; choose another --out"
        in capsys.readouterr().err
    )
    assert sorted(path.name for path in out.iterdir()) == ["model.json", "model.safetensors", "summary.json"]


def test_a_model_of_ours_is_not_converted_again(tmp_path, capsys):
    assert (
        convert(saved(theirs(ToyNet(WIDTH).state_dict()), tmp_path / "net.pth"), "--out", tmp_path / "run")
        == 0
    )
    assert convert(tmp_path / "run", "--out", tmp_path / "again") == 2
    assert "is one of ours already, which model.json describes as toy: start from it with --init" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (None, "has the names of Net, but other shapes; download it again: decoder.mask_token"),
        (
            {"decoder_heads": 2},
            "does not fit --decoder_heads 2; leave out what changes its sizes: decoder.mask_",
        ),
    ],
)
def test_an_error_about_a_decoder_that_does_not_fit_names_its_file(tmp_path, objective, message):
    backbone = ToyNet(WIDTH)
    rest = decoder_state(TOYS.build_objective(backbone, TOYS.objective()))
    rest["decoder.mask_token"] = rest["decoder.mask_token"][1:]
    decoder = {f"rest.{key}": value for key, value in rest.items()}
    file = saved(theirs(backbone.state_dict()) | decoder, tmp_path / "net.pth")
    with pytest.raises(UserError, match=rf"net.pth .*{message}"):
        convert_checkpoint(TOYS, file, tmp_path / "run", objective=objective)
    assert not (tmp_path / "run").exists()


def test_heads_that_do_not_divide_the_width_of_a_decoder_are_refused_with_some_that_do(tmp_path):
    backbone, settings = ToyNet(WIDTH), TOYS.objective()
    rest = decoder_state(TOYS.build_objective(backbone, settings))
    decoder = {f"rest.{key}": value for key, value in rest.items()}
    file = saved(theirs(backbone.state_dict()) | decoder, tmp_path / "net.pth")
    heads = settings.decoder_dim - 1
    message = (
        rf"objective.decoder_dim \({heads + 1}\) must be a multiple of objective.decoder_heads \({heads}\); set "
        rf"decoder_heads to a number that divides it, such as {(heads + 1) // 2}$"
    )
    with pytest.raises(UserError, match=message):
        convert_checkpoint(TOYS, file, tmp_path / "run", objective={"decoder_heads": heads})


def test_a_guess_is_reported_unless_the_setting_is_given(tmp_path):
    guess = Guess("how wide it is", WIDTH)
    guesses = {"embed_dim": guess}
    family = replace(NET, convert=lambda state: replace(convert_net(state), guessed_settings=guesses))
    toys = replace(TOYS, models=replace(TOYS.models, families=(family,)))
    file = saved(theirs(ToyNet(WIDTH).state_dict()), tmp_path / "net.pth")
    report = convert_checkpoint(toys, file, tmp_path / "run")
    assert report.notes == (guess.note("embed_dim"), "toys are not real")
    report = convert_checkpoint(toys, file, tmp_path / "run", model={"embed_dim": WIDTH})
    assert report.notes == ("toys are not real",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.pth", "--out", "run"], "no weights at nothing.pth"),
        (["{file}"], "missing --out"),
        (["{file}", "--out", "{out}", "--model.embed_dim", "16"], "does not fit this model: shapes:"),
        (["{file}", "--out", "{out}", "--classes", "none.txt"], "classes none.txt cannot be read"),
        (["--out", "{out}", "{file}"], "unexpected argument"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, capsys, arguments, message):
    file = saved(theirs(ToyNet(WIDTH, 3).state_dict()), tmp_path / "net.pth")
    arguments = [argument.format(file=file, out=tmp_path / "run") for argument in arguments]
    assert convert(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_usage_shows_where_the_file_goes(capsys):
    with pytest.raises(SystemExit):
        convert("--help")
    printed = capsys.readouterr().out
    assert "usage: map-toy convert FILE [--config RECIPE ...]" in printed
    assert "The checkpoint: Tree, Net." in printed


def test_a_decoder_without_heads_is_refused_by_the_command_s_own_option(tmp_path, capsys):
    file = saved(theirs(ToyNet(WIDTH).state_dict()), tmp_path / "net.pth")
    assert convert(file, "--decoder_heads", 0, "--out", tmp_path / "run") == 2
    assert "decoder_heads must be at least 1; got 0; change --decoder_heads" in capsys.readouterr().err
