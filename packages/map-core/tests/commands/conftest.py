"""A program in miniature: its configurations, its recipes, and how a test runs it."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from map_core import UserError
from map_core.commands.command import Command
from map_core.commands.program import main
from map_core.ranges import check


@dataclass
class DataSection:
    """Where the data is.

    Args:
        root: The folder.
        kind: What is in it.
    """

    root: str | None = None
    kind: Literal["images", "points"] = "images"
    size: tuple[int, int] = (224, 224)


@dataclass
class TrainingSection:
    """How long.

    Args:
        epochs: Passes over the data.
        lr: Learning rate;
            null chooses one.
        clip, progress: What else there is.

    Raises:
        Nothing.
    """

    epochs: int = 100
    lr: float | None = None
    clip: float | tuple[float, float] | None = 3.0
    progress: bool = True

    def validate(self):
        check("training", self, at_least_one=("epochs",), positive=("lr",))


@dataclass
class PretrainConfig:
    """Pretrain.

    Args:
        out: The run directory.
        data: Where the data is.
    """

    out: Path
    init: str | None = None
    data: DataSection = field(default_factory=DataSection)
    training: TrainingSection = field(default_factory=lambda: TrainingSection(epochs=7))


@dataclass
class PredictConfig:
    images: str | list[str] = "a.png"


def fail(config):
    raise UserError("data.root /nowhere does not exist; set --data.root")


def crash(config):
    raise ZeroDivisionError


RECIPES = {
    "pretrain_digits": "# header\ntraining:\n  lr: 1e-4\n  epochs: 3\n",
    "pretrain_more_digits": "base: pretrain_digits\ndata:\n  root: digits\ntraining:\n  epochs: 30\n",
    "predict_one": "images: b.png\n",
}


@pytest.fixture
def toy():
    """The configurations."""
    return SimpleNamespace(
        PretrainConfig=PretrainConfig, PredictConfig=PredictConfig, DataSection=DataSection
    )


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """The package that holds RECIPES."""
    folder = tmp_path / "some_recipes"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "some_recipes"
    sys.modules.pop("some_recipes", None)


@pytest.fixture
def run(recipes, capsys):
    """Run a command line, a list or a line; return its status, the configuration it ran with, and its output."""

    def call(line):
        configs = []
        commands = [
            Command("pretrain", "pretrain a model", PretrainConfig, configs.append),
            Command("predict", "predict classes", PredictConfig, configs.append),
            Command("fail", "fail", PredictConfig, fail),
            Command("crash", "crash", PredictConfig, crash),
        ]
        status = main("map-toy", commands, recipes, line if isinstance(line, list) else line.split())
        return status, configs[0] if configs else None, capsys.readouterr()

    return call


@pytest.fixture
def refusal(run):
    """The sentence that refuses a command line."""

    def call(line):
        status, config, output = run(line)
        assert (status, config, output.out) == (2, None, "")
        assert output.err.count("\n") == 1
        return output.err.removeprefix("map-toy: error: ").strip()

    return call


@pytest.fixture
def printout(run, capsys):
    """The text that a command line prints instead of running its command."""

    def call(line):
        with pytest.raises(SystemExit) as stop:
            run(line)
        assert stop.value.code == 0
        return capsys.readouterr().out

    return call
