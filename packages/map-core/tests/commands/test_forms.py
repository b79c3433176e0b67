"""A section whose settings depend on its ``method``: they are typed, refused by name, and inherited sensibly."""

from dataclasses import asdict, dataclass

import pytest

from map_core import UserError
from map_core.commands.command import Command
from map_core.commands.options import Option, config_class
from map_core.commands.parser import load_recipe, parse


@dataclass
class Paint:
    """Painting.

    Args:
        method: How.
        coats: How often.
        color: Which.
    """

    method: str = "paint"
    coats: int = 2
    color: str = "red"


@dataclass
class Paper:
    """Papering.

    Args:
        method: How.
        coats: Of paste.
        width: Of a roll.
    """

    method: str = "paper"
    coats: int = 1
    width: float = 0.5


CONFIG = config_class(
    "WallConfig",
    "A wall.",
    wall=Option(Paint, "The wall.", forms={"paint": Paint, "paper": Paper}),
    out=Option(str, "Where.", "here"),
)
COMMAND = Command(name="do", help="", config=CONFIG, run=lambda config: None)


def resolve(*arguments):
    return parse("wall do", COMMAND, (), "map_core", list(arguments))


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe and return its path."""

    def write(name, text):
        (tmp_path / f"{name}.yaml").write_text(text)
        return str(tmp_path / f"{name}.yaml")

    return write


def test_the_first_form_is_the_default():
    assert resolve().wall == Paint()
    assert resolve("--wall.color", "blue").wall == Paint(color="blue")
    assert CONFIG().wall == Paint()


@pytest.mark.parametrize(
    "arguments",
    [["--wall.method", "paper", "--wall.width", "0.7"], ["--wall", "{method: paper, width: 0.7}"]],
    ids=["settings", "section"],
)
def test_a_method_has_its_own_settings_typed(arguments):
    config = resolve(*arguments)
    assert config.wall == Paper(width=0.7)
    assert asdict(config) == {"wall": {"method": "paper", "coats": 1, "width": 0.7}, "out": "here"}
    with pytest.raises(UserError, match=r"--wall.width must be a number; got 'wide'"):
        resolve("--wall.method", "paper", "--wall.width", "wide")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--wall.width", "1"],
            r"--wall.width is not a setting of wall.method paint \(but of paper\): leave it out",
        ),
        (["--wall", "{width: 1}"], r"--wall.width is not a setting of wall.method paint \(but of paper\)"),
        (
            ["--wall.method", "paper", "--wall.color", "red"],
            r"--wall.color is not a setting of wall.method paper",
        ),
        (
            ["--wall.method", "papr"],
            r"--wall.method must be one of paint, paper; got 'papr'; did you mean paper",
        ),
        (["--wall.colour", "red"], r"unknown option --wall.colour; did you mean --wall.color"),
    ],
)
def test_what_a_method_does_not_have_is_refused_by_name(arguments, message):
    with pytest.raises(UserError, match=message):
        resolve(*arguments)


def test_a_recipe_with_a_setting_of_another_method_is_named(recipe):
    name = recipe("mixed", "wall: {method: paper, color: red}")
    with pytest.raises(
        UserError, match=r"wall.color in .*mixed.yaml is not a setting of wall.method paper \(but of paint"
    ):
        resolve("--config", name)
    with pytest.raises(
        UserError, match=r"wall.method in .*wrong.yaml must be one of paint, paper; got 'tile'"
    ):
        resolve("--config", recipe("wrong", "wall: {method: tile}"))


def test_a_recipe_that_names_another_method_leaves_behind_what_that_does_not_have(recipe):
    recipe("below", "wall: {color: blue, coats: 5}\nout: there")
    upper = recipe("above", "base: below.yaml\nwall: {method: paper, width: 1.5}")
    assert asdict(resolve("--config", upper)) == {
        "wall": {"method": "paper", "coats": 5, "width": 1.5},
        "out": "there",
    }


def test_the_command_line_may_change_the_method_of_a_recipe(recipe):
    lower = recipe("below", "wall: {color: blue, coats: 5}")
    assert resolve("--config", lower, "--wall.method", "paper").wall == Paper(coats=5)


def test_a_recipe_above_the_one_that_names_the_method_must_fit_it(recipe):
    recipe("below", "wall: {method: paper}")
    upper = recipe("above", "base: below.yaml\nwall: {color: red}")
    with pytest.raises(UserError, match=r"wall.color in .*above.yaml is not a setting of wall.method paper"):
        resolve("--config", upper)


def test_a_loaded_recipe_has_the_form_it_names(recipe):
    name = recipe("paper", "wall: {method: paper}")
    assert load_recipe("map_core", name, CONFIG, ["--wall.width=2"]).wall == Paper(width=2.0)


def test_help_and_print_show_the_chosen_methods_settings(capsys):
    with pytest.raises(SystemExit):
        resolve("--wall.method", "paper", "--help-all")
    output = capsys.readouterr().out
    assert "--wall.width" in output
    assert "Of a roll." in output
    assert "--wall.color" not in output
    with pytest.raises(SystemExit):
        resolve("--wall.method", "paper", "--print_config")
    assert "method: paper" in capsys.readouterr().out
