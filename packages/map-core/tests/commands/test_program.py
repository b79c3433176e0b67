"""Command lines: what is resolved, and the one sentence that each mistake gives."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from map_core import UserError
from map_core.commands.command import Command
from map_core.commands.parser import load_recipe
from map_core.commands.program import main
from map_core.commands.recipes import recipe_names
from map_core.training import TrainingConfig


@dataclass
class DataSection:
    """Where the data is.

    Args:
        root: The folder.
        kind: What is in it.
    """

    root: Path | None = None
    kind: Literal["images", "points"] = "images"
    size: tuple[int, int] = (224, 224)


@dataclass
class PretrainConfig:
    """Pretrain.

    Args:
        out: The run directory.
    """

    out: Path
    data: DataSection = field(default_factory=DataSection)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=7))
    resume: str | None = None


@dataclass
class PredictConfig:
    image: str = "a.png"


def fail(config):
    raise UserError("data.root /nowhere does not exist; set --data.root")


def crash(config):
    raise ZeroDivisionError


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    folder = tmp_path / "some_recipes"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "pretrain_digits.yaml").write_text("# header\ntraining:\n  base_lr: 1e-4\n  epochs: 3\n")
    (folder / "predict_one.yaml").write_text("image: b.png\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "some_recipes"
    sys.modules.pop("some_recipes", None)


@pytest.fixture
def run(recipes, capsys):
    """Run a command line; return its status, the configuration it ran with, and stderr."""

    def call(line):
        ran = []
        commands = [
            Command("pretrain", "Pretrain a model", PretrainConfig, ran.append),
            Command("predict", "Predict classes", PredictConfig, ran.append),
            Command("fail", "Fail", PredictConfig, fail),
            Command("crash", "Crash", PredictConfig, crash),
        ]
        status = main("map-toy", commands, recipes, line.split())
        return status, ran[0] if ran else None, capsys.readouterr()

    return call


def test_recipe_then_overrides_wherever_they_stand(run):
    status, config, _ = run("pretrain --training.epochs 5 --config pretrain_digits --out x --data.size [1,2]")
    assert status == 0
    assert config == PretrainConfig(
        out=Path("x"), data=DataSection(size=(1, 2)), training=TrainingConfig(epochs=5, base_lr=1e-4)
    )


def test_a_commands_own_defaults_yield_to_recipe_and_overrides(recipes):
    ran, seen = [], []

    def defaults(given):
        seen.append(given)
        return {"training.epochs": 50, "training.batch_size": 8, "training.seed": 4}

    command = Command("pretrain", "Pretrain a model", PretrainConfig, ran.append, defaults)
    line = "pretrain --config pretrain_digits --out=x --training.seed 5"
    assert main("map-toy", [command], recipes, line.split()) == 0
    training = ran[0].training
    assert (training.epochs, training.batch_size, training.seed) == (3, 8, 5)
    assert seen == [{"out": "x", "training.seed": "5"}]
    assert main("map-toy", [command], recipes, ["pretrain"]) == 2  # nothing given: an error, no traceback
    assert seen[1] == {}


def test_a_file_is_a_recipe_too(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("training: {lr: 0.5}\nout: y\n")
    assert run(f"pretrain --config={tmp_path}/mine.yaml")[1].training.lr == 0.5


def test_print_config_can_be_used_as_a_config(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("pretrain --config pretrain_digits --out x --print_config")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["training"]["epochs"] == 3
    (tmp_path / "printed.yaml").write_text(printed)
    assert run(f"pretrain --config {tmp_path}/printed.yaml")[1].training.base_lr == 1e-4


def test_help_lists_commands_recipes_and_documented_settings(run, capsys):
    status, _, printed = run("--help")
    assert status == 0
    assert "Pretrain a model" in printed.out
    assert "pretrain_digits" in printed.out
    with pytest.raises(SystemExit):
        run("pretrain --help")
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(
        "usage: map-toy pretrain [--config RECIPE] [--section.key value ...] Pretrain a model"
    )
    assert "--training.epochs EPOCHS Passes over the training data. (type: int, default: 7)" in text
    assert "--data.root ROOT The folder." in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pretrian", "unknown command 'pretrian'; did you mean pretrain"),
        (
            "--config pretrain_digits pretrain",
            "a command comes first, its settings after it; got '--config'; commands: pretrain, predict, fail, crash",
        ),
        ("pretrain", "missing --out"),
        ("pretrain --out x --training.epoch 4", "unknown option --training.epoch; did you mean --"),
        ("pretrain --out x --training.epochs=abc", "--training.epochs: Expected int. Got value: abc"),
        ("pretrain --out x --training.lr abc", "--training.lr: "),
        ("pretrain --out x --data.kind video", "--data.kind: Expected a Literal['images', 'points']. Got "),
        ("pretrain --out x more", "unexpected argument 'more'; settings are given as --key value"),
        ("pretrain --out x --config", "--config needs a recipe's name or a file"),
        ("pretrain --out x --config pretrain_digit", "unknown recipe 'pretrain_digit'; did you mean"),
        ("pretrain --out x --config no/such.yaml", "--config no/such.yaml: there is no such file"),
        (
            "pretrain --out x --config predict_one",
            "unknown key image in predict_one; known names: data, out, resume, training "
            "(predict_one is a recipe for the command predict, not pretrain)",
        ),
        ("fail", "data.root /nowhere does not exist; set --data.root"),
    ],
)  # fmt: skip
def test_mistakes_give_one_sentence_and_status_2(run, line, message):
    status, config, printed = run(line)
    assert status == 2
    assert config is None
    assert printed.err.startswith(f"map-toy: error: {message}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training: {epoch: 3}", "unknown key training.epoch in {file}; did you mean epochs"),
        ("trainer: {epochs: 3}", "unknown key trainer in {file}; did you mean training"),
        ("training: 3", "section training of {file} must be a mapping of keys to values; got 3"),
        ("training: [1,", "{file} is not plain YAML"),
        (
            "training: {epochs: many}",
            "--training.epochs: Expected int. Got value: many (after reading {file})",
        ),
        ("training: !!python/object/apply:os.mkdir ['{folder}/ran']", "{file} is not plain YAML"),
        (
            "data: {class_path: os.mkdir, init_args: {path: '{folder}/ran'}}",
            "unknown key data.class_path in {file}",
        ),
    ],
)
def test_files_that_do_not_fit_run_nothing(run, tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace("{folder}", str(tmp_path)))
    status, config, printed = run(f"pretrain --out x --config {file}")
    assert (status, config) == (2, None)
    assert printed.err.startswith(f"map-toy: error: {message.replace('{file}', str(file))}")
    assert not (tmp_path / "ran").exists()


def test_a_section_file_runs_nothing_either(run, tmp_path):
    (tmp_path / "section.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/ran']")
    assert run(f"pretrain --out x --training {tmp_path}/section.yaml")[0] == 2
    assert not (tmp_path / "ran").exists()


def test_what_is_no_users_mistake_keeps_its_traceback(run):
    with pytest.raises(ZeroDivisionError):
        run("crash")


TALKS = """
import sys
from dataclasses import dataclass
from map_core.commands.command import Command
from map_core.commands.program import main

@dataclass
class Config:
    words: int = 3

def talk(config):
    for _ in range(config.words):
        print("a word")

sys.exit(main("map-toy", [Command("talk", "Talk", Config, talk)], "map_core"))
"""


RUNS = """
import sys
from map_core.commands.output import while_somebody_reads

def run():
    exec(sys.argv[-1])
    return 0

sys.exit(while_somebody_reads(run))
"""
QUIET = {**os.environ, "MAP_DEBUG": "", "PYTHONUNBUFFERED": ""}


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        (["talk"], ""),  # told when main flushes
        (["talk", "--words=9999"], "1"),  # told in the middle of the command
        (["talk", "--help"], ""),  # told after the parser's exit
    ],
)
def test_ends_without_a_word_when_nobody_reads_on(arguments, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-c", TALKS, *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**QUIET, "PYTHONUNBUFFERED": unbuffered},
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_other_broken_pipes_and_errors_keep_their_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    dead = "import os, sys\nreading, writing = os.pipe()\nos.close(reading)\nos.write(writing, b'x')"
    bug = "print('a word')\nraise RuntimeError('a bug')"
    for body, stdout, expected in ((dead, subprocess.PIPE, b"BrokenPipeError"), (bug, writing, b"a bug")):
        ended = subprocess.run(
            [sys.executable, "-c", RUNS, body], stdout=stdout, stderr=subprocess.PIPE, env=QUIET, check=False
        )
        assert ended.returncode != 0
        assert expected in ended.stderr
    os.close(writing)


def test_works_without_an_output():
    closed = ["sh", "-c", '"$0" -c "$1" pass >&-', sys.executable, RUNS]
    assert subprocess.run(closed, env=QUIET, check=False).returncode == 0


def test_recipes_resolve_without_a_command_line(recipes):
    assert recipe_names(recipes) == ["predict_one", "pretrain_digits"]
    config = load_recipe(recipes, "pretrain_digits", PretrainConfig, ["--training.epochs=1"])
    assert (config.training.epochs, config.training.base_lr) == (1, 1e-4)
    assert load_recipe(recipes, "predict_one", PredictConfig) == PredictConfig(image="b.png")
    with pytest.raises(UserError, match="unknown recipe 'pretrain_digit'"):
        load_recipe(recipes, "pretrain_digit", PretrainConfig)
