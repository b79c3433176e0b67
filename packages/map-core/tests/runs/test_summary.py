"""Configurations and summaries as YAML and JSON can represent them."""

import json
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import pytest
import yaml

from map_core.runs.summary import to_serializable, versions, write_config, write_summary


class Color(Enum):
    RED = "red"


@dataclass
class Section:
    root: Path | None = None
    size: tuple[int, int] = (2, 3)


@dataclass
class Config:
    data: Section = field(default_factory=Section)
    color: Color = Color.RED
    ratio: float = 0.5
    resume: str | None = None


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Section(), {"root": None, "size": [2, 3]}),
        ({1: Path("a/b"), "x": [Color.RED, (1,)]}, {"1": "a/b", "x": ["red", [1]]}),
        (True, True),
    ],
)
def test_values_become_plain(value, plain):
    assert to_serializable(value) == plain


def test_a_configuration_is_yaml_in_the_order_of_its_fields_without_the_checkpoint_of_one_start(tmp_path):
    write_config(tmp_path, Config(Section(Path("data")), resume="runs/a/checkpoints/step_00000008"))
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config == {"data": {"root": "data", "size": [2, 3]}, "color": "red", "ratio": 0.5}
    assert list(config) == ["data", "color", "ratio"]


def test_a_summary_replaces_the_one_before_and_leaves_nothing_else(tmp_path):
    for step in (1, 2):
        write_summary(tmp_path, {"step": step, "out": tmp_path})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"step": 2, "out": str(tmp_path)}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_number_that_is_not_finite_is_null_in_a_summary(tmp_path):
    """JSON has no such number, and other readers than Python's refuse it."""
    nan, infinite = float("nan"), float("inf")
    write_summary(
        tmp_path, {"test_loss": nan, "folds": [1.5, -infinite], "of": {"a": (infinite, "NaN", True, 3)}}
    )

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert summary == {"test_loss": None, "folds": [1.5, None], "of": {"a": [None, "NaN", True, 3]}}


def test_versions_are_those_of_what_is_imported():
    import timm
    import torch

    result = versions()
    assert result["timm"] == timm.__version__
    assert result["torch"].split("+")[0] == torch.__version__.split("+")[0]
