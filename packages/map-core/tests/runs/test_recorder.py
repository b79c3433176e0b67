"""The record of a run: what counts as training time, and what counts as an improvement."""

import math

import pytest
import torch

from map_core.runs import recorder as module
from map_core.runs.recorder import Recorder


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it: ``clock[0]`` is its seconds."""
    seconds = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: seconds[0])
    return seconds


@pytest.fixture
def recorder(tmp_path, clock):
    return Recorder(
        tmp_path, last_step=9, steps_per_epoch=3, batch_size=8, start=0, state={}, mean=dict, writes=False,
        progress=False, tensorboard=False,
    )  # fmt: skip


def test_waiting_for_the_device_is_time_of_the_steps_and_what_follows_is_not(recorder, clock):
    for _ in range(2):
        recorder.start_step()
        clock[0] += 1
        recorder.end_step({"loss": torch.tensor(1.0)}, wait=False)
    clock[0] += 2
    recorder.add_waiting_time()
    clock[0] += 50  # an evaluation
    recorder.start_step()
    assert recorder.samples_per_second == 2 * 8 / 4
    assert recorder.seconds == 54


def test_a_run_resumed_after_its_last_step_has_no_speed(recorder):
    assert recorder.summary()["samples_per_second"] is None
    recorder.start_step()
    recorder.end_step({"loss": torch.tensor(1.0)}, wait=False)
    assert recorder.summary()["samples_per_second"] is not None


def test_the_best_is_the_lowest_loss_or_the_highest_accuracy_and_never_nan(recorder):
    def better(name, *values):
        results = []
        for value in values:
            recorder.write_evaluation(1, {name: value})
            results.append(recorder.improved(name, 1))
        return results

    assert better("heldout_loss", math.nan, 3.0, 2.0, math.nan, 2.5) == [False, True, True, False, False]
    assert (recorder.state()["best"], recorder.state()["best_step"]) == (2, 1)
    assert better("knn_accuracy", 1.0, 0.5, 11.0) == [True, False, True]  # another measure starts afresh


def test_a_resumed_run_counts_the_seconds_before_it(tmp_path, clock, recorder):
    clock[0] += 30
    state = recorder.state() | {"window": {"sums": {}, "counts": {}}}
    resumed = Recorder(
        tmp_path, last_step=9, steps_per_epoch=3, batch_size=8, start=2, state=state, mean=dict, writes=False,
        progress=False, tensorboard=False,
    )  # fmt: skip
    clock[0] += 12
    assert (resumed.seconds, resumed.summary()["seconds"], resumed.summary()["samples"]) == (42, 42, 16)
