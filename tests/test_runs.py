"""Whole pretraining runs of map-vision as users start them: killed and resumed, on one process and on two."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import warm
from safetensors.torch import load_file

TIMES = {"seconds", "samples_per_second"}
PRETRAIN = [
    "-m", "map_vision", "pretrain", "--config", "pretrain_digits",
    "--data.subset", "160", "--model.embed_dim", "32", "--training.batch_size", "16", "--training.epochs", "2",
    "--training.warmup_epochs", "1", "--training.log_steps", "1", "--training.tensorboard", "false",
    "--training.progress", "false", "--training.checkpoint_steps", "3", "--training.device", "cpu",
]  # fmt: skip


def pretrain(out: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> None:
    warm.run(*launcher, *PRETRAIN, "--out", out, *arguments)


def metrics(out: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrain(out, "--training.workers", "2")
    return out


def test_killed_in_mid_epoch_and_resumed_is_the_uninterrupted_run_bit_for_bit(
    tmp_path: Path, whole: Path
) -> None:
    out = tmp_path / "run"
    process = warm.Program(*PRETRAIN, "--out", out, "--training.workers", "2")
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/step_*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    saved = max(int(path.name.removeprefix("step_")) for path in out.glob("checkpoints/step_*"))
    assert 0 < saved < 20
    pretrain(out, "--training.workers", "2", "--resume", "auto")
    assert metrics(out) == metrics(whole)
    resumed, uninterrupted = load_file(out / "model.safetensors"), load_file(whole / "model.safetensors")
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in resumed)


def test_two_processes_are_one_at_the_same_global_batch(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    pretrain(
        out,
        "--training.workers",
        "0",
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    )
    for one, other in zip(metrics(whole), metrics(out), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    alone, together = load_file(whole / "model.safetensors"), load_file(out / "model.safetensors")
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], rtol=0, atol=1e-5)
