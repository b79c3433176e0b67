"""Whole pretraining runs of map-vision as users start them: killed and resumed, and in two processes.

On shards; the killed run on data in memory, too. The undisturbed run reads the shards from their folder; the others
fetch them from a server that drops every third connection, through a cache that holds half of them.
"""

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import warm
from faulty_store import faulty_store
from PIL import Image
from safetensors.torch import load_file

from map_core.shards import write_shards
from map_vision.data import DataConfig
from map_vision.data.digits import load_digits
from map_vision.data.sharding import files_by_split

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
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 digits in seven shards."""
    folder = tmp_path_factory.mktemp("digits")
    for number, pixels in enumerate(load_digits().pixels[:200]):
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    write_shards(files_by_split(DataConfig(root=str(folder))), folder / "shards", size=61_440)
    return folder / "shards"


class Data(NamedTuple):
    """Arguments of runs on the same data."""

    undisturbed: list[str]
    disturbed: list[str]


@pytest.fixture(scope="module", params=["memory", "shards"])
def data(
    request: pytest.FixtureRequest, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Data]:
    if request.param == "memory":
        yield Data([], [])
        return
    settings = ["--data.source", "shards", "--data.shuffle", "shards", "--data.shuffle_shards", "2"]
    cache = ["--data.shard_cache", str(tmp_path_factory.mktemp("cache")), "--data.shard_cache_size", "190KB"]
    with faulty_store(shards) as server:
        server.faults = itertools.cycle([None, None, "drop"])
        yield Data(
            [*settings, "--data.root", str(shards)], [*settings, "--data.root", server.address, *cache]
        )
        assert len(server.requested(".tar")) > 30, "the shards came out of the cache"


@pytest.fixture(scope="module")
def undisturbed_run(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    pretrain(out, "--training.workers", "2", *data.undisturbed)
    return out


def test_killed_in_mid_epoch_and_resumed_is_the_uninterrupted_run_bit_for_bit(
    tmp_path: Path, undisturbed_run: Path, data: Data
) -> None:
    out = tmp_path / "run"
    process = warm.Program(*PRETRAIN, "--out", out, "--training.workers", "2", *data.disturbed)
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/step_*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    saved = max(int(path.name.removeprefix("step_")) for path in out.glob("checkpoints/step_*"))
    assert 0 < saved < 20
    pretrain(out, "--training.workers", "2", "--resume", "auto", *data.disturbed)
    assert metrics(out) == metrics(undisturbed_run)
    resumed, uninterrupted = (
        load_file(out / "model.safetensors"),
        load_file(undisturbed_run / "model.safetensors"),
    )
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in resumed)


# on data in memory: training/test_distributed.py of map-core
@pytest.mark.parametrize("data", ["shards"], indirect=True)
def test_two_processes_are_one_at_the_same_global_batch(
    tmp_path: Path, undisturbed_run: Path, data: Data
) -> None:
    out = tmp_path / "run"
    pretrain(
        out,
        "--training.workers",
        "0",
        *data.disturbed,
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    )
    for one, other in zip(metrics(undisturbed_run), metrics(out), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    single_process = load_file(undisturbed_run / "model.safetensors")
    two_processes = load_file(out / "model.safetensors")
    for key in single_process:
        torch.testing.assert_close(two_processes[key], single_process[key], rtol=0, atol=1e-5)
