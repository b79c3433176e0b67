"""Mutants of every kind of file that models and runs are read from: read correctly, or refused by naming the file."""

import json
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from toy_domain import DOMAIN, ToyModelConfig, ToyNet
from toy_task import ToyTask, toy_config

from map_core.commands.command import section_of_run
from map_core.commands.recipes import recipe_layers
from map_core.errors import UserError, visible
from map_core.runs.checkpoint import find_fault
from map_core.runs.metrics import Window, read_metrics, truncate_metrics
from map_core.runs.saved_state import read_state
from map_core.study.results import Result, append_result, read_results
from map_core.tasks.weights import read_weights, save_weights
from map_core.testing.mutations import Case, check_mutants, run
from map_core.training import train
from map_core.training.processes import build_accelerator
from map_core.training.state import TrainingState

CLASSES = ("low", "high")
SHORT = {"epochs": 1, "warmup_epochs": 0.5, "ema_decay": 0.9, "log_steps": 1, "progress": False}
CHECKPOINT = "run/checkpoints/step_00000004"


def classifier():
    torch.manual_seed(0)
    return ToyNet(8, len(CLASSES))


def write_classifier(folder):
    description = DOMAIN.models.describe(
        ToyModelConfig(embed_dim=8), holds="classifier", classes=list(CLASSES)
    )
    save_weights(folder / "model.safetensors", classifier().state_dict(), description)


def read_classifier(folder):
    """Read a model and the names of its outputs."""
    model, classes = DOMAIN.models.classifier(folder)
    assert len(classes) == model.head.out_features
    assert all(isinstance(name, str) for name in classes)


def write_torch_file(folder, wrap=dict, **options):
    torch.save(wrap(classifier().state_dict()), folder / "model.pth", **options)


def read_torch_file(folder):
    """Read parameters that are complete, and that a model accepts."""
    path = folder / "model.pth"
    for name, value in read_weights(path).items():
        assert isinstance(name, str)
        assert value.is_meta or value.numel() == len(value.flatten().tolist())
    DOMAIN.models.load_init(classifier(), path)


def toy_state():
    config = toy_config(**SHORT)
    return TrainingState(ToyTask(), config, build_accelerator(config))


@cache
def finished_run():
    """A run whose last checkpoint and metrics are mutated."""
    out = Path(tempfile.mkdtemp()) / "run"
    train(ToyTask(), toy_config(**SHORT), out)
    return out


def write_run(folder):
    shutil.copytree(finished_run(), folder / "run", dirs_exist_ok=True)


def read_account(folder):
    """Read a state that its run can resume from: the step lies in the run, the means are numbers."""
    settings = read_state_of(finished_run())["settings"]
    state = read_state(folder / CHECKPOINT, settings, total_steps=4)
    assert 0 <= state["step"] <= 4
    window = Window(**state["recorder"]["window"])
    means = window.take(lambda sums: {name: float(value) for name, value in sums.items()})
    assert all(isinstance(value, float) for value in means.values())


def read_state_of(out):
    return json.loads((out / CHECKPOINT.removeprefix("run/") / "state.json").read_text())


def read_learned(folder):
    """Read weights, average and optimizer, and take a step with them."""
    state = toy_state()
    state.load(folder / CHECKPOINT)
    state.raw(torch.zeros(2, 8)).sum().backward()
    state.optimizer.step()
    state.update_average()


def read_manifest(folder):
    """Check a checkpoint that is usable, or name the fault for which it is skipped."""
    fault = find_fault(folder / CHECKPOINT)
    if fault is not None:
        raise UserError(f"{folder / CHECKPOINT}: {visible(fault, keep='')}")


def read_lines_of_run(folder):
    """Read lines that can be truncated at a step, and whose values are numbers to plot."""
    truncate_metrics(folder / "run", 4, evaluated=True)
    for line in read_metrics(folder / "run"):
        assert line["step"] <= 4
        assert all(v is None or isinstance(v, int | float) for name, v in line.items() if name != "kind")


def write_config(folder):
    text = "data:\n  count: 24\n  root: toys # of all\n  flip: false\nmodel: {name: toy, embed_dim: 8}\ntraining:\n"
    (folder / "config.yaml").write_text(text + "  epochs: 3\n  lr: 1.0e-3\n  betas: [0.9, 0.95]\n")


def read_config(folder):
    """Read the sections of a run, and the same file as a recipe."""
    assert isinstance(section_of_run({"init": str(folder)}, "data"), dict)
    assert recipe_layers("map_core", str(folder / "config.yaml"))


def write_results(folder):
    for seed in range(3):
        result = Result("tiny", f"scratch-{seed}", "scratch", seed, None, "finetune", 1e-3, {"a": 1}, 90.5)
        append_result(folder / "results.jsonl", result)


def read_lines(folder):
    """Read results whose fields have the types that tables need."""
    for result in read_results(folder / "results.jsonl"):
        assert isinstance(result.arm, str)
        assert isinstance(result.score, int | float)
        json.dumps(result.settings)


def wrapped(state):
    return {"model": state, "epoch": 3, "args": {"lr": 1e-3}, "optimizer": {"state": {}}}


def checkpoint_case(name, read, **options):
    return Case(name, f"{CHECKPOINT}/{name}", write_run, read, **options)


OLD = {"_use_new_zipfile_serialization": False}
CASES = (
    Case("weights", "model.safetensors", write_classifier, read_classifier, complete=True),
    Case("description", "model.json", write_classifier, read_classifier, lists=True),
    Case("pth", "model.pth", write_torch_file, read_torch_file, complete=True),
    Case("pth_wrapped", "model.pth", partial(write_torch_file, wrap=wrapped), read_torch_file, complete=True),
    Case("pth_old", "model.pth", partial(write_torch_file, **OLD), read_torch_file, complete=True),
    checkpoint_case("state.json", read_account, lists=True),
    checkpoint_case("model.safetensors", read_learned, lists=True, complete=True),
    checkpoint_case("ema.safetensors", read_learned, complete=True),
    checkpoint_case("optimizer.pt", read_learned, lists=True, complete=True),
    checkpoint_case("manifest.json", read_manifest, lists=True),
    Case("metrics.jsonl", "run/metrics.jsonl", write_run, read_lines_of_run),
    Case("config.yaml", "config.yaml", write_config, read_config),
    Case("results.jsonl", "results.jsonl", write_results, read_lines),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mutants(case, tmp_path, unchecked):
    outcomes = check_mutants(case, tmp_path, seed=0, count=60)
    assert outcomes["refused"] > 5


if __name__ == "__main__":
    run(CASES)
