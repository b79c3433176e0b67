"""A scheduler's warning and Ctrl-C, sent to real processes, end in a checkpoint and a status that says so."""

import json
import os
import signal
import time

import pytest
from processes import start, start_training, wait_for
from toy_task import ToyTask, metrics_without_times, toy_config

from map_core.training import train
from map_core.training.interruption import GRACE_SECONDS, SAME_KEYPRESS_SECONDS

QUICK = ("--training.batch_size=8", "--training.warmup_epochs=0", "--training.device=cpu", "--data.count=64")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_during_evaluation_saves_at_once_and_loses_nothing(tmp_path, number):
    out, marker = tmp_path / "run", tmp_path / "evaluating"
    process = start_training(out, {"workers": 2, "checkpoint_epochs": 4}, {"evaluating": str(marker)})
    wait_for(marker.exists, process)
    start_time = time.monotonic()
    os.killpg(process.pid, number)
    stdout, stderr = process.communicate(timeout=60)
    assert time.monotonic() - start_time < 15, "the evaluation of 20 seconds was waited for"
    assert process.returncode == 0, stderr
    summary = json.loads(stdout)
    assert (summary["interrupted"], summary["stopped_by"]) == (True, number.name)
    assert f"stopped by {number.name} after step 4 of 16" in stderr
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_00000004"]

    train(ToyTask(), toy_config(checkpoint_epochs=4), out, resume="auto")
    train(ToyTask(), toy_config(checkpoint_epochs=4), tmp_path / "whole")
    assert metrics_without_times(out) == metrics_without_times(tmp_path / "whole")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_stopped_saves_and_says_so_with_its_status(tmp_path, number, status):
    out = tmp_path / "run"
    process = start("toy_program.py", "pretrain", *QUICK, "--training.epochs=5000", "--out", out)
    wait_for((out / "metrics.jsonl").exists, process)
    wait_for(lambda: (out / "metrics.jsonl").stat().st_size > 0, process)
    os.killpg(process.pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    assert "continue with the same command and --resume auto" in stderr
    assert "Traceback" not in stderr
    assert sorted((out / "checkpoints").glob("step_*"))[-1].joinpath("manifest.json").exists()


def test_the_second_ctrl_c_ends_a_process_that_hangs(tmp_path):
    process = start("stuck.py", tmp_path / "stuck")
    wait_for((tmp_path / "stuck").exists, process)
    process.send_signal(signal.SIGINT)
    time.sleep(SAME_KEYPRESS_SECONDS + 0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=GRACE_SECONDS + 30)
    assert process.returncode == 130
    assert "the process hangs and is ended" in stderr
