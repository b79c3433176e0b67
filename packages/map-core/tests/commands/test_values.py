"""What a text or a JSON value becomes in a setting of each type."""

import math
from pathlib import Path
from typing import Any, Literal

import pytest

from map_core.commands.values import MismatchError, convert, expectation


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("3", int, 3),
        ("-1_000", int, -1000),
        (3, int, 3),
        ("1e-4", float, 1e-4),
        (".inf", float, math.inf),
        ("-.inf", float, -math.inf),
        (2, float, 2.0),
        ("True", bool, True),
        ("off", bool, False),
        (False, bool, False),
        ("null", str | None, "null"),
        ("null", Path | None, Path("null")),
        ("null", float | None, None),
        (None, str | None, None),
        ("3", int | str, 3),
        ("a", int | str, "a"),
        ("2", Literal[1, 2] | None, 2),
        ("map", Literal["map", "ar"], "map"),
        ("~", Literal["map", "ar"] | None, None),
        (["1", "2"], tuple[int, float], (1, 2.0)),
        ((), tuple[int, ...], ()),
        (["1"], list[int], [1]),
        ("5", int | tuple[int, int] | None, 5),
        ({"a": "1"}, dict[str, int], {"a": 1}),
        ("a", Any, "a"),
    ],
)
def test_values(value, kind, expected):
    result = convert(value, kind)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        ("3.0", int, "a whole number"),
        (True, int, "a whole number"),
        (1.0, int, "a whole number"),
        ("9" * 5000, int, "a whole number"),
        ("9" * 5000, float, "a number"),
        (None, int, "a whole number"),
        (True, float, "a number"),
        ("maybe", bool | None, "true or false or null"),
        (1, bool, "true or false"),
        (1, str, "text"),
        (["a"], str, "text"),
        ("AR", Literal["map", "ar"], "one of map, ar"),
        (["1"], tuple[int, int], r"2 whole numbers as a list \[a, b\]"),
        ("12", tuple[int, int], "2 whole numbers"),
        ("1", list[str] | None, "a list of texts or null"),
        (["a"], str | list[int], "text or a list of whole numbers"),
        ({}, int, "a whole number"),
    ],
)
def test_expected_types_are_described_in_words(value, kind, words):
    with pytest.raises(MismatchError, match=f"^{words}") as error:
        convert(value, kind)
    assert str(error.value) == expectation(kind)
