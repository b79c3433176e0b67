"""A run that is killed, stopped or damaged continues as if nothing had happened."""

import contextlib
import errno
import json
import os
import pickle
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import start_training, wait_for
from safetensors.torch import load_file
from toy_task import ToyTask, metrics_without_times, toy_config

from map_core import UserError
from map_core.errors import Diverged
from map_core.runs import progress, run_directory
from map_core.runs.checkpoint import write_manifest
from map_core.tasks.weights import save_weights, weights_file
from map_core.training import train
from map_core.training.task import exported_file

SETTINGS = {"checkpoint_steps": 3, "accumulation_steps": 2, "ema_decay": 0.9}


def weights_of(out, step=16):
    return {
        f"{name}/{key}": value
        for name in ("model", "ema")
        for key, value in load_file(out / f"checkpoints/step_{step:08d}/{name}.safetensors").items()
    }


def assert_same_run(one, other):
    assert metrics_without_times(one) == metrics_without_times(other)
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "run"
    train(ToyTask(), toy_config(**SETTINGS, workers=2), out)
    return out


def test_killed_in_mid_epoch_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, whole_run):
    out = tmp_path / "run"
    process = start_training(out, SETTINGS | {"workers": 2}, {"slow": 0.05})
    wait_for((out / "checkpoints/step_00000009/manifest.json").exists, process)
    time.sleep(0.12)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = [line["step"] for line in metrics_without_times(out)]
    assert not (out / "summary.json").exists()

    task = ToyTask()
    train(task, toy_config(**SETTINGS, workers=2), out, resume="auto")
    assert min(draw.step for draw, _ in task.loss_inputs) >= 9, "a step saved before the kill was repeated"
    assert [line["step"] for line in metrics_without_times(out)][: len(before)] == before
    assert_same_run(out, whole_run)


def test_sigterm_saves_and_resumes_bit_for_bit(tmp_path, whole_run):
    out = tmp_path / "run"
    process = start_training(out, SETTINGS, {"slow": 0.05})
    wait_for((out / "checkpoints/step_00000006/manifest.json").exists, process)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert "--resume auto" in stderr
    summary = json.loads(stdout)
    assert summary["interrupted"]
    assert json.loads((out / "summary.json").read_text())["interrupted"]
    assert not (out / "raw.pt").exists(), "half a result was exported"

    summary = train(ToyTask(), toy_config(**SETTINGS), out, resume="auto")
    assert not summary["interrupted"]
    assert (out / "raw.pt").exists()
    assert_same_run(out, whole_run)


@pytest.mark.parametrize("step", [3, 4, 15])
def test_stopped_at_any_step_even_before_a_due_evaluation(tmp_path, whole_run, step):
    out = tmp_path / "run"
    summary = train(ToyTask(signal_at=step), toy_config(**SETTINGS), out)
    assert summary["interrupted"]
    assert not (out / "raw.pt").exists()
    train(ToyTask(), toy_config(**SETTINGS), out, resume="auto")
    assert_same_run(out, whole_run)


class UnmeasurableTask(ToyTask):
    """Cannot be evaluated from the ``failing``-th time on, and keeps the best weights."""

    keep_best = "test_output"

    def __init__(self, failing=None):
        super().__init__()
        self.failing, self.evaluations = failing, 0

    def evaluate(self, model, accelerator):
        self.evaluations += 1
        if self.evaluations == self.failing:
            raise UserError("picture 3 cannot be read")
        return super().evaluate(model, accelerator)


@pytest.mark.parametrize(("failing", "step"), [(1, 4), (4, 8), (8, 16)], ids=["first", "average", "last"])
def test_a_failing_evaluation_loses_no_step_and_is_made_when_the_run_resumes(tmp_path, capfd, failing, step):
    """Each evaluation measures two sets of weights, the second being the average."""
    config, out, whole = toy_config(ema_decay=0.9, checkpoint_epochs=4), tmp_path / "run", tmp_path / "whole"
    with pytest.raises(UserError, match=r"^picture 3 cannot be read$"):
        train(UnmeasurableTask(failing), config, out)
    assert (
        f"the evaluation after step {step} of 16 failed; the checkpoint is in {out}" in capfd.readouterr().err
    )
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step_{step:08d}"]
    with pytest.raises(UserError, match=r"^picture 3 cannot be read$"):  # before the cure
        train(UnmeasurableTask(1), config, out, resume="auto")

    mended = UnmeasurableTask()
    train(mended, config, out, resume="auto")
    assert [draw.step for draw, _ in mended.loss_inputs] == list(range(step, 16))
    train(UnmeasurableTask(), config, whole)
    assert_same_run(out, whole)
    for name in ("best.json", "best.pt"):
        assert (out / name).exists()
    assert (out / "best.json").read_text() == (whole / "best.json").read_text()


class StoppedTask(ToyTask):
    """Gets SIGTERM in its ``stopping``-th evaluation."""

    def __init__(self, stopping=None):
        super().__init__()
        self.stopping, self.evaluations = stopping, 0

    def evaluate(self, model, accelerator):
        self.evaluations += 1
        if self.evaluations == self.stopping:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().evaluate(model, accelerator)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_stopped_in_its_first_evaluation_goes_on_from_its_checkpoint(tmp_path, elsewhere):
    """Also one that continues another run's checkpoint in a directory without any."""
    config, first, whole = toy_config(checkpoint_epochs=4), tmp_path / "first", tmp_path / "whole"
    assert train(StoppedTask(1), config, first)["interrupted"]
    out = tmp_path / "second" if elsewhere else first
    resume = first / "checkpoints/step_00000004" if elsewhere else "auto"
    assert train(StoppedTask(1), config, out, resume=resume)["interrupted"]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step_00000004"]
    mended = StoppedTask()
    train(mended, config, out, resume="auto")
    assert [draw.step for draw, _ in mended.loss_inputs] == list(range(4, 16))
    train(StoppedTask(), config, whole)
    assert metrics_without_times(out)[-3:] == metrics_without_times(whole)[-3:]
    assert torch.equal(
        *(load_file(run / "checkpoints/step_00000016/model.safetensors")["0.weight"] for run in (out, whole))
    )


def test_a_failing_evaluation_does_not_write_a_checkpoint_of_no_new_step(tmp_path):
    """Of a run that continues another one's checkpoint: its directory stays free for the same command."""
    with pytest.raises(UserError, match="picture 3"):
        train(UnmeasurableTask(4), toy_config(**SETTINGS), tmp_path / "first")
    checkpoint = tmp_path / "first/checkpoints/step_00000008"
    out = tmp_path / "second"
    for failing in (1, 1, None):
        raises = pytest.raises(UserError, match="picture 3") if failing else contextlib.nullcontext()
        with raises:
            train(UnmeasurableTask(failing), toy_config(**SETTINGS), out, resume=checkpoint)


def test_a_finished_run_resumes_to_the_same_summary(whole_run):
    """Also in the measurements of the process that trained, which this one did not."""
    file = whole_run / "summary.json"
    before = json.loads(file.read_text()) | {"peak_memory_bytes": 1, "device": "another"}
    file.write_text(json.dumps(before))
    assert train(ToyTask(), toy_config(**SETTINGS), whole_run, resume="auto") == before
    assert json.loads(file.read_text()) == before


def test_a_summary_of_another_step_or_of_an_interrupted_run_is_not_kept(half_run):
    file = half_run / "summary.json"
    half = json.loads(file.read_text()) | {"device": "another"}
    for other in ({"samples": 1}, {"interrupted": True}):
        file.write_text(json.dumps(half | other))
        summary = train(ToyTask(), toy_config(**SETTINGS, max_steps=8), half_run, resume="auto")
        assert (summary["samples"], summary["device"] != "another") == (128, True)
    file.write_text(json.dumps(half))
    assert train(ToyTask(), toy_config(**SETTINGS), half_run, resume="auto")["device"] != "another"


@pytest.fixture
def half_run(tmp_path):
    out = tmp_path / "run"
    train(ToyTask(), toy_config(**SETTINGS, max_steps=8), out)
    return out


class ExportingTask(ToyTask):
    """Exports as a pretraining does."""

    def export(self, model, directory, weights):
        for name in ("model", "pretraining"):
            save_weights(exported_file(directory, name, weights), model.state_dict(), {"holds": name})


class UnexportableTask(ToyTask):
    def export(self, model, directory, weights):
        raise UserError("no export")


def results_in(out):
    """Bytes by name."""
    files = [*out.glob("*.safetensors"), *out.glob("model*.json"), *out.glob("pretraining*.json")]
    return {path.name: path.read_bytes() for path in (*files, *out.glob("summary.json"))}


def test_a_finished_run_that_goes_on_has_no_results_until_it_ends_again(tmp_path):
    out, settings = tmp_path / "run", {**SETTINGS, "progress": False}
    train(ExportingTask(), toy_config(**settings, max_steps=8), out)
    results = results_in(out)
    assert len(results) == 9
    with pytest.raises(UserError, match="no export"):
        train(UnexportableTask(), toy_config(**settings, max_steps=8), out, resume="auto")
    assert results_in(out) == results, "no step was trained"

    (out / "model_best.safetensors").touch()  # follows the checkpoints
    (out / "model_of_mine.safetensors").touch()
    with pytest.raises(Diverged):  # as if killed
        train(ExportingTask(nan_at=11), toy_config(**settings), out, resume="auto")
    assert results_in(out) == {"model_of_mine.safetensors": b""}
    with pytest.raises(UserError, match=r"no weights at .*\(the run has not finished: resume it\)"):
        weights_file(out)

    train(ExportingTask(), toy_config(**settings), out, resume="auto")
    after = results_in(out)
    assert after.keys() == {*results, "model_of_mine.safetensors"}
    assert after["model.safetensors"] != results["model.safetensors"]


def test_a_kill_while_a_run_goes_back_to_an_earlier_step_loses_no_line(tmp_path, whole_run, monkeypatch):
    """Whichever checkpoint is then the newest, the lines up to it are there."""
    out, config = tmp_path / "run", toy_config(**SETTINGS, keep_checkpoints=4)
    train(ToyTask(), config, out)
    renamed, rename = [], Path.rename

    def rename_one(path, target):
        if "superseded_" in str(target) and renamed:
            raise KeyboardInterrupt
        renamed.append(path.name)
        return rename(path, target)

    for place, broken in ((Path, ("rename", rename_one)), (run_directory, ("truncate_metrics", interrupt))):
        with monkeypatch.context() as patch:
            patch.setattr(place, *broken)
            with pytest.raises(KeyboardInterrupt):
                train(ToyTask(), config, out, resume=str(out / "checkpoints/step_00000009"))
        train(ToyTask(), config, out, resume="auto")
        assert_same_run(out, whole_run)
    assert "step_00000016" in renamed, "the newest is renamed first"


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


def test_progress_is_to_the_step_at_which_the_run_stops(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    train(ToyTask(), toy_config(max_steps=3), tmp_path / "run")
    assert "step 1/3, " in capfd.readouterr().err


def test_resume_auto_is_the_command_of_a_first_start_too(tmp_path, whole_run, capfd):
    train(ToyTask(), toy_config(**SETTINGS), tmp_path / "run", resume="auto")
    assert f"nothing to resume in {tmp_path / 'run'}: starting anew" in capfd.readouterr().err
    assert_same_run(tmp_path / "run", whole_run)


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_run_that_failed_before_its_first_checkpoint_starts_over(tmp_path, whole_run, resume):
    with pytest.raises(UserError, match="not finite at step 3"):
        train(ToyTask(nan_at=2), toy_config(**SETTINGS | {"log_steps": 1}), tmp_path / "run")
    assert (tmp_path / "run/metrics.jsonl").read_text()
    train(ToyTask(), toy_config(**SETTINGS), tmp_path / "run", resume=resume)
    assert_same_run(tmp_path / "run", whole_run)


@pytest.mark.parametrize("resume", ["", "auto"])
def test_a_second_run_in_the_directory_of_a_living_one_is_refused(tmp_path, whole_run, resume):
    out = tmp_path / "run"
    process = start_training(out, SETTINGS, {"slow": 0.05})
    wait_for((out / "checkpoints/step_00000003/manifest.json").exists, process)
    message = "is not empty" if not resume else rf"in use by process {process.pid} on .*, started"
    with pytest.raises(UserError, match=message):
        train(ToyTask(), toy_config(**SETTINGS), out, resume=resume or None)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert_same_run(out, whole_run)


def test_a_directory_that_vanishes_stops_the_run_and_is_not_made_again(tmp_path):
    out = tmp_path / "run"
    process = start_training(out, SETTINGS | {"epochs": 400}, {"slow": 0.02})
    wait_for((out / "checkpoints/step_00000003/manifest.json").exists, process)
    out.rename(tmp_path / "elsewhere")
    _, stderr = process.communicate(timeout=60)
    assert re.search(r"UserError: .*run vanished while the run wrote it", stderr), stderr
    assert not out.exists()


def test_a_used_directory_is_not_overwritten(half_run):
    with pytest.raises(
        UserError, match="is not empty; continue that run with --resume auto or choose another --out"
    ):
        train(ToyTask(), toy_config(), half_run)


@pytest.mark.parametrize(
    ("training", "task", "message"),
    [
        ({"batch_size": 14}, {}, r"training.batch_size was 16 and is 14"),
        ({"epochs": 5}, {}, r"training.epochs was 4 and is 5"),
        ({"seed": 1}, {}, r"training.seed was 0 and is 1"),
        ({}, {"samples": 71}, r"training samples was 70 and is 71"),
        ({}, {"width": 12}, r"another model: 0.weight has shape \(16, 8\), the model \(12, 8\)"),
        ({}, {"dropout": 0}, r"3.running_mean is unknown to the model"),
    ],
)  # fmt: skip
def test_another_run_or_model_is_refused(half_run, training, task, message):
    with pytest.raises(UserError, match=message):
        train(ToyTask(**task), toy_config(**(SETTINGS | training)), half_run, resume="auto")


def test_changed_model_section_is_refused(tmp_path):
    train(ToyTask(), toy_config(max_steps=2), tmp_path / "run", run_config={"objective": {"ratio": 0.5}})
    with pytest.raises(UserError, match=r"objective.ratio was 0.5 and is 0.75"):
        train(
            ToyTask(),
            toy_config(),
            tmp_path / "run",
            resume="auto",
            run_config={"objective": {"ratio": 0.75}},
        )


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(half_run, whole_run, capfd, damage):
    newest = half_run / "checkpoints/step_00000008"
    weights = newest / "model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-10])
        reason = "model.safetensors has"
    elif damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        reason = "contents of model.safetensors have changed"
    else:
        (newest / "manifest.json").unlink()
        reason = "manifest.json is missing"
    train(ToyTask(), toy_config(**SETTINGS), half_run, resume="auto")
    assert f"skipping checkpoint {newest}: " in (output := capfd.readouterr().err)
    assert reason in output
    assert "going on after step 6" in output
    assert_same_run(half_run, whole_run)
    with pytest.raises(UserError, match="is not a usable checkpoint"):
        train(ToyTask(), toy_config(), half_run, resume=str(newest.with_name("superseded_" + newest.name)))


def test_a_run_on_a_full_disk_keeps_its_checkpoint_and_resumes(tmp_path, monkeypatch):
    config = toy_config(checkpoint_steps=3)
    train(ToyTask(), toy_config(checkpoint_steps=3, max_steps=6), tmp_path / "run")
    with monkeypatch.context() as patch:

        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="continue with --resume auto"):
            train(ToyTask(), config, tmp_path / "run", resume="auto")
    assert not train(ToyTask(), config, tmp_path / "run", resume="auto")["interrupted"]


class Malice:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    config = toy_config(max_steps=4)
    train(ToyTask(), config, tmp_path / "run")
    checkpoint = tmp_path / "run/checkpoints/step_00000004"
    target = tmp_path / "executed"
    (checkpoint / "optimizer.pt").write_bytes(pickle.dumps({"state": Malice(target)}, protocol=2))
    with pytest.raises(UserError, match="found no usable checkpoint"):
        train(ToyTask(), config, tmp_path / "run", resume="auto")
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)
    for resume in ("auto", str(checkpoint)):
        with pytest.raises(UserError, match=r"optimizer.pt was refused: .* nothing in it was run"):
            train(ToyTask(), config, tmp_path / "run", resume=resume)
    assert not target.exists()
