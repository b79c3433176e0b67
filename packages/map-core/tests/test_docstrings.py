"""The examples in docstrings are run, so that they stay true."""

import doctest
import importlib
from pathlib import Path

import pytest

import map_core

SOURCES = Path(map_core.__file__).parent
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(SOURCES.parent).with_suffix("").parts)
    for path in SOURCES.rglob("*.py")
    if ">>> " in path.read_text()
)


def test_the_public_parts_of_the_method_have_examples():
    method = ("objective", "masking", "regions", "encoder", "orders", "positions", "randomness")
    assert {f"map_core.{name}" for name in method} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_a_module_print_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0, f"doctest does not find the examples of {name}"
    assert result.failed == 0, "see the captured output"
