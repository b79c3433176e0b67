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
