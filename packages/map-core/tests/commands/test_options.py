"""Tables of options become dataclasses that a parser can explain."""

import dataclasses
import inspect

import pytest

from map_core.commands.options import Option, config_class


@dataclasses.dataclass
class Section:
    size: int = 3


CONFIG = config_class(
    "PaintConfig",
    "Paint a wall.",
    color=Option(str, "Its colour."),
    wall=Option(Section, "The wall."),
    coats=Option(int | None, "How often.", None),
)


def test_fields_have_the_types_of_the_table_in_its_order():
    assert [(entry.name, entry.type) for entry in dataclasses.fields(CONFIG)] == [
        ("color", str),
        ("wall", Section),
        ("coats", int | None),
    ]
    assert CONFIG.__name__ == "PaintConfig"


def test_defaults_are_those_of_the_table_and_sections_are_not_shared():
    one, other = CONFIG(color="red"), CONFIG(color="blue")
    assert one == CONFIG("red", Section(3), None)
    assert one.wall is not other.wall


def test_an_option_without_a_default_must_be_given():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'color'"):
        CONFIG()


def test_the_docstring_explains_every_field():
    assert inspect.getdoc(CONFIG) == (
        "Paint a wall.\n\nArgs:\n    color: Its colour.\n    wall: The wall.\n    coats: How often."
    )
