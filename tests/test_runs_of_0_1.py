"""Run directories written by version 0.1 (commit 78dae61) load, resume, finetune and evaluate.

Each is a run of 8 steps that ``--training.max_steps 4`` stopped, with ``whole.jsonl``, the metrics of the same run
uninterrupted, both written by that version.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import map_points.cli
import map_points.domain
import map_vision.cli
from map_core.tasks.pretraining import load_objective

FOLDER = Path(__file__).parent / "runs_of_0.1"
VISION = [
    "--data.source", "digits", "--data.subset", "256", "--model.name", "hybridnet_tiny_patch16_224",
    "--model.img_size", "8", "--model.patch_size", "2", "--model.in_chans", "1", "--model.embed_dim", "16",
    "--model.layout", "MT", "--model.num_heads", "2", "--model.num_registers", "2",
    "--training.batch_size", "128",
]  # fmt: skip
POINTS = [
    "--data.source", "shapes", "--data.shapes_per_class", "8", "--data.num_points", "128",
    "--model.embed_dim", "16", "--model.patch_hidden_dim", "16", "--model.layout", "MT", "--model.num_heads", "2",
    "--model.num_patches", "16", "--model.patch_size", "8", "--model.order", "hilbert",
    "--training.batch_size", "32",
]  # fmt: skip
DECODER = [
    "--objective.decoder_depth",
    "1",
    "--objective.decoder_dim",
    "16",
    "--objective.decoder_heads",
    "2",
]
TRAINING = [
    "--training.epochs", "4", "--training.workers", "0", "--training.warmup_epochs", "1",
    "--training.log_steps", "1", "--training.tensorboard", "false", "--training.progress", "false",
    "--training.checkpoint_steps", "4", "--training.lr", "0.002", "--training.device", "cpu",
]  # fmt: skip
RUNS = {
    "vision_pretrain": ("map-vision", ["pretrain", *VISION, *DECODER, *TRAINING]),
    "vision_finetune": ("map-vision", ["finetune", *VISION, *TRAINING]),
    "points_pretrain": ("map-points", ["pretrain", *POINTS, *DECODER, *TRAINING]),
}
PROGRAMS = {"map-vision": map_vision.cli.main, "map-points": map_points.cli.main}


def run_command(monkeypatch: pytest.MonkeyPatch, program: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    assert PROGRAMS[program]() == 0


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_resumed_as_if_its_version_had_gone_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, arguments = RUNS[name]
    out = tmp_path / name
    shutil.copytree(FOLDER / name, out)
    run_command(monkeypatch, program, *arguments, "--out", str(out), "--resume", "auto")
    resumed, whole = (
        [json.loads(line) for line in (out / file).read_text().splitlines()]
        for file in ("metrics.jsonl", "whole.jsonl")
    )
    assert [line["step"] for line in resumed] == [line["step"] for line in whole]
    for one, other in zip(resumed, whole, strict=True):
        for key in {"loss", "grad_norm", "lr", "test_accuracy", "test_loss"} & other.keys():
            assert one[key] == pytest.approx(other[key], rel=1e-4)


# number of test samples, and features of the first, both as version 0.1 has them
@pytest.mark.parametrize(
    ("domain", "count", "first"),
    [
        ("vision", 359, [-0.0580, -0.0152, -0.2401, 0.1607, 0.0375, 0.3434]),
        ("points", 200, [1.1180, 2.1791, -3.0463, 0.4832, -1.7177, 1.1336]),
    ],
)
def test_features_of_a_pretraining_run(
    domain: str, count: int, first: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, init = tmp_path / "features.npz", str(FOLDER / f"{domain}_pretrain")
    run_command(monkeypatch, f"map-{domain}", "features", "--init", init, "--out", str(out))
    features = np.load(out)["test_features"]
    assert features.shape == (count, 16)
    assert features[0, : len(first)] == pytest.approx(first, abs=3e-4)


def test_a_classifier_scores_as_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init = FOLDER / "vision_finetune"
    run_command(monkeypatch, "map-vision", "evaluate", "--init", str(init), "--out", str(tmp_path))
    before = json.loads((init / "summary.json").read_text())
    after = json.loads((tmp_path / "summary.json").read_text())
    assert after["test_accuracy"] == pytest.approx(before["test_accuracy"])
    assert after["test_loss"] == pytest.approx(before["test_loss"], rel=1e-5)


def test_the_decoder_is_read_for_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "picture.png"
    init = str(FOLDER / "points_pretrain")
    run_command(monkeypatch, "map-points", "reconstruct", "--init", init, "--count", "2", "--out", str(out))
    assert out.stat().st_size > 10_000


def test_the_decoder_keeps_its_values() -> None:
    folder = FOLDER / "points_pretrain"
    state = load_objective(map_points.domain.DOMAIN, folder).objective.state_dict()
    exported = load_file(folder / "pretraining.safetensors")
    assert set(exported) == {name for name in state if not name.startswith("backbone.")}
    for name, value in exported.items():
        assert torch.equal(state[name], value), name
