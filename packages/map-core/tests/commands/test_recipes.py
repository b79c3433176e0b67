"""Recipes that build on others."""

import pytest

from map_core import UserError
from map_core.commands.recipes import recipe_layers


def write(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def test_bases_come_first_by_name_or_beside_the_file(recipes, tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, below="base: pretrain_more_digits\nout: a\n")
    write(tmp_path / "deep", mine="base: ../below.yaml\nout: b\n")
    layers = recipe_layers(recipes, str(tmp_path / "deep" / "mine.yaml"))
    assert [layer.source for layer in layers] == [
        "pretrain_digits",
        "pretrain_more_digits",
        str(tmp_path / "below.yaml"),
        str(tmp_path / "deep" / "mine.yaml"),
    ]
    assert [layer.values.get("out") for layer in layers] == [None, None, "a", "b"]
    assert all("base" not in layer.values for layer in layers)


def test_a_cycle_is_named(recipes, tmp_path):
    write(tmp_path, a="base: b.yaml", b="base: a.yaml")
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    with pytest.raises(UserError, match=f"recipe {a} builds on itself: {a} -> {b} -> {a}; remove one base"):
        recipe_layers(recipes, str(a))


def test_an_unknown_base_is_named(recipes, tmp_path):
    write(tmp_path, a="base: pretrain_digit")
    with pytest.raises(
        UserError, match=r"base pretrain_digit in .*a.yaml is neither .* did you mean pretrain_dig"
    ):
        recipe_layers(recipes, str(tmp_path / "a.yaml"))


def test_a_fault_in_a_base_is_named_after_the_base(refusal, tmp_path):
    write(tmp_path, below="training: {epoch: 3}", a="base: below.yaml")
    message = f"unknown key training.epoch in {tmp_path}/below.yaml; did you mean epochs"
    assert refusal(f"pretrain --out x --config {tmp_path}/a.yaml").startswith(message)


DOTTED = "base: pretrain_digits\ntraining.epochs: 16\ndata.size: [8, 8]\ntraining: {clip: null}\n"


def test_dotted_keys_are_those_of_their_sections(run, tmp_path):
    write(tmp_path, a=DOTTED)
    _, config, _ = run(f"pretrain --out x --config {tmp_path}/a.yaml")
    assert (config.training.epochs, config.training.clip, config.training.lr) == (16, None, 1e-4)
    assert config.data.size == (8, 8)
    _, config, _ = run(["pretrain", "--out", "x", "--config", f"{tmp_path}/a.yaml", "--training.epochs=5"])
    assert config.training.epochs == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.epoch: 3", "unknown key training.epoch in {file}; did you mean epochs?"),
        ("training.epochs.x: 3", "training.epochs in {file} must be a whole number; got {{'x': '3'}}"),
        (
            f"? training.epochs{'.x' * 5000}\n: 3",
            "training.epochs in {file} must be a whole number; got {{'x': {{'x'",
        ),
        (
            "training.epochs: 3\ntraining: {epochs: 4}",
            "{file} names training.epochs twice, once by a dotted key; name it once",
        ),
        (
            "training: 3\ntraining.epochs: 4",
            "{file} names training twice, once by a dotted key; name it once",
        ),
    ],
)
def test_a_fault_in_a_dotted_key_is_named(refusal, tmp_path, text, message):
    write(tmp_path, a=text)
    error = refusal(f"pretrain --out x --config {tmp_path}/a.yaml")
    assert error.startswith(message.format(file=tmp_path / "a.yaml"))


def test_a_dotted_key_in_a_section_of_the_command_line(refusal):
    error = refusal(["pretrain", "--out", "x", "--training", "{epochs.x: 3}"])
    assert error == "training.epochs in --training must be a whole number; got {'x': '3'}"
