"""Ranges of settings."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest

from map_core import UserError
from map_core.ranges import LARGEST_SEED, check, check_choices, refuse_without_effect, require


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        ("at_least_one", (1, 7), (0, -1, math.nan, math.inf)),
        ("positive", (1e-9, 5), (0, -1.0, math.nan, math.inf)),
        ("not_negative", (0, 0.5), (-1e-9, math.nan, math.inf)),
        ("shares", (0, 0.5, 1.0), (-0.1, 1.1, math.nan)),
        ("shares_below_one", (0, 0.99), (-0.1, 1.0, math.nan)),
        ("inside_zero_and_one", (0.01, 0.99), (0, 1, math.nan)),
        ("seeds", (0, LARGEST_SEED, np.int64(7)), (-1, LARGEST_SEED + 1, 0.5, "0", True, None)),
    ],
)
def test_bounds(rule, allowed, refused):
    nothing = () if None in refused else (None,)
    for value in (*allowed, *nothing, allowed, [*allowed, *nothing]):
        check("data", SimpleNamespace(field=value), **{rule: ("field",)})
    for value in refused:
        for invalid in (value, (allowed[0], value)):
            with pytest.raises(UserError, match=r"^data.field must .*; got .*; change --data.field$"):
                check("data", SimpleNamespace(field=invalid), **{rule: ["field"]})


@dataclass
class Choices:
    kind: Literal["row", "column"] = "row"
    order: Literal["hilbert", "z"] | None = None
    size: Literal["auto"] | int = "auto"  # not one of some names
    text: str = "anything"


def test_choices_are_those_of_the_annotation():
    check_choices("model", Choices())
    check_choices("model", Choices(kind="column", order="z", size=7, text="else"))
    with pytest.raises(UserError, match=r"^model.kind 'rows' is unknown; did you mean row\?"):
        check_choices("model", Choices(kind="rows"))
    with pytest.raises(UserError, match=r"^model.order 'hilbrt' is unknown; did you mean hilbert\?"):
        check_choices("model", Choices(order="hilbrt"))
    with pytest.raises(UserError, match=r"^model.kind None is unknown"):
        check_choices("model", Choices(kind=None))


def test_a_rule_of_its_own_and_a_setting_outside_of_sections():
    config = SimpleNamespace(top=3)
    require("", config, "top", lambda value: value < 4, "must be below 4")
    with pytest.raises(UserError, match=r"^top must be below 2; got 3; change --top$"):
        require("", config, "top", lambda value: value < 2, "must be below 2")


@dataclass
class Settings:
    size: int = 4
    order: str | None = None


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("model", {"size": 5}, "^model.size 5 has no effect with rows: leave it at 4$"),
        ("model", {"order": "row"}, "^model.order row has .*: leave it out, or set --model '{order: null}'$"),
        ("", {"size": 5}, "^size 5 has no effect with rows: leave it at 4$"),
    ],
)
def test_a_setting_without_effect_is_refused_unless_it_is_the_default(section, settings, message):
    refuse_without_effect(section, Settings(), "size", "order", because="rows")
    with pytest.raises(UserError, match=message):
        refuse_without_effect(section, Settings(**settings), "size", "order", because="rows")
