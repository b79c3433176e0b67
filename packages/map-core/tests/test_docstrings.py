"""The examples in docstrings are run, so that they are true."""

import doctest
import importlib

import pytest

# the public classes of the method, each with an example: see docs/architecture.md
WITH_EXAMPLES = ["map_core.objective", "map_core.randomness"]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_of_a_module_run_and_print_what_they_say(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.attempted > 0, f"{name} has no example"
    assert result.failed == 0, "see the captured output"
