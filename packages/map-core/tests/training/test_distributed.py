"""Several processes train as one does, in real processes that communicate over gloo."""

import json
from pathlib import Path

import pytest
import torch
from processes import run_several
from safetensors.torch import load_file
from toy_task import ToyTask, metrics_without_times, toy_config

from map_core.runs.best import step_of_files
from map_core.training import train

TOY_TASK = Path(__file__).parents[1] / "toys/toy_task.py"
NORMED_TASK = TOY_TASK.with_name("normed_task.py")
SHARDED_ROUND_TRIP = Path(__file__).with_name("sharded_round_trip.py")
SETTINGS = {"ema_decay": 0.9, "log_steps": 1}


def assert_close_runs(one, other):
    first, second = metrics_without_times(one), metrics_without_times(other)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    for weights in ("raw.pt", "ema.pt"):
        torch.testing.assert_close(
            torch.load(one / weights, weights_only=True),
            torch.load(other / weights, weights_only=True),
            rtol=0,
            atol=1e-5,
        )


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    train(ToyTask(dropout=0), toy_config(**SETTINGS), out)
    return out


@pytest.mark.parametrize("accumulation_steps", [2, 8])
def test_accumulation_is_no_accumulation(tmp_path, one_process, accumulation_steps):
    config = toy_config(**SETTINGS, accumulation_steps=accumulation_steps)
    train(ToyTask(dropout=0), config, tmp_path / "run")
    assert_close_runs(tmp_path / "run", one_process)


def test_two_processes_are_one_also_when_one_of_them_is_stopped_and_they_resume(tmp_path, one_process):
    out = tmp_path / "run"
    training = json.dumps(SETTINGS | {"accumulation_steps": 2, "workers": 1})
    first = run_several(TOY_TASK, out, "", training, json.dumps({"dropout": 0, "signal_at": 6}))
    assert json.loads(first.splitlines()[0])["interrupted"]
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step_00000004", "step_00000007"]
    second = run_several(TOY_TASK, out, "auto", training, json.dumps({"dropout": 0}))
    assert json.loads(second.splitlines()[0])["processes"] == 2
    assert_close_runs(out, one_process)


def test_processes_evaluate_the_same_buffers_and_keep_the_best_of_the_first(tmp_path):
    """If each decided for itself what is best, one would wait for the other in the export."""
    run_several(NORMED_TASK, tmp_path / "run", tmp_path)
    (one, loss), (other, others_loss) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert len(one) == 8, "raw and averaged weights, once an epoch"
    assert one == other
    assert loss == others_loss == -6.0
    assert step_of_files(tmp_path / "run") == 16
    best, last = (load_file(tmp_path / f"run/{name}.safetensors") for name in ("model_best", "model"))
    assert all(torch.equal(best[name], last[name]) for name in last)


def test_a_sharded_model_is_saved_and_loaded_whole(tmp_path):
    assert run_several(SHARDED_ROUND_TRIP, tmp_path).strip() == "equal on 2 processes"
