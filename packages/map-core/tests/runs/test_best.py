"""The best weights of a run directory match the checkpoint that a run continues from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from toy_task import toy_config

from map_core import LossOutput
from map_core.runs import best
from map_core.training import Task, train
from map_core.training.task import exported_file

ACCURACY = {4: 5.0, 10: 9.0}  # by step; 1 after all others


class ScriptedTask(Task):
    """Its accuracy after each step is prescribed; its weights are the step's number."""

    name = "scripted"
    keep_best = "accuracy"

    def __init__(self, accuracy=ACCURACY):
        torch.manual_seed(0)
        self.model, self.accuracy, self.step = nn.Linear(4, 1), accuracy, 0
        self.train_data = [torch.randn(4) for _ in range(8)]

    def loss(self, model, batch, draw):
        self.step = draw.step + 1
        return LossOutput(model(batch).square().mean())

    def evaluate(self, model, accelerator):
        return {"accuracy": self.accuracy.get(self.step, 1.0)}

    def export(self, model, directory, weights):
        save_file({"step": torch.tensor(self.step)}, exported_file(directory, "model", weights))


def scripted_config(**changes):
    """2 steps per epoch, 12 in all; each epoch is evaluated and its checkpoint kept."""
    return toy_config(epochs=6, batch_size=4, keep_checkpoints=9, **changes)


def best_of(out):
    """The step of the best weights, which their record must agree with; None without any."""
    if not (out / "model_best.safetensors").exists():
        assert best.step_of_files(out) is None
        return None
    step = int(load_file(out / "model_best.safetensors")["step"])
    assert best.step_of_files(out) == step
    return step


def saved_best(out, step):
    recorder = json.loads((checkpoint(out, step) / "state.json").read_text())["recorder"]
    return [recorder[name] for name in ("best", "best_of", "best_step")]


def checkpoint(out, step):
    return out / f"checkpoints/step_{step:08d}"


@pytest.fixture
def whole(tmp_path):
    out = tmp_path / "whole"
    train(ScriptedTask(), scripted_config(), out)
    return out


def test_a_run_says_of_which_step_its_best_weights_are(whole):
    assert best_of(whole) == 10
    assert json.loads((whole / "best.json").read_text()) == {"step": 10, "accuracy": 9.0}
    assert saved_best(whole, 4) == saved_best(whole, 8) == [5.0, "accuracy", 4]
    assert saved_best(whole, 12) == [9.0, "accuracy", 10]


def test_a_run_taken_back_forgets_a_later_best(whole):
    train(ScriptedTask({}), scripted_config(max_steps=6), whole, resume=str(checkpoint(whole, 4)))
    assert best_of(whole) == 6, "of the steps that this run took since"
    train(ScriptedTask(), scripted_config(), whole, resume="auto")
    assert best_of(whole) == 10


def test_a_run_taken_back_no_further_than_its_best_keeps_it(whole):
    train(ScriptedTask({}), scripted_config(), whole, resume=str(checkpoint(whole, 10)))
    assert best_of(whole) == 10


def test_a_finished_run_that_is_resumed_keeps_its_best(whole):
    train(ScriptedTask(), scripted_config(), whole, resume="auto")
    assert best_of(whole) == 10


def test_another_directory_gets_the_best_of_the_checkpoint_that_it_begins_from(whole, tmp_path):
    train(ScriptedTask({}), scripted_config(), tmp_path / "new", resume=str(checkpoint(whole, 10)))
    assert best_of(tmp_path / "new") == 10
    assert best_of(whole) == 10


def test_another_directory_begins_without_a_best_that_is_of_a_later_step(whole, tmp_path):
    """If that best were remembered, no worse one would ever be kept."""
    train(ScriptedTask({}), scripted_config(), tmp_path / "new", resume=str(checkpoint(whole, 8)))
    assert best_of(tmp_path / "new") == 10, "the first of the equally good ones"
    assert saved_best(tmp_path / "new", 12) == [1.0, "accuracy", 10]
    assert best_of(whole) == 10


@pytest.fixture
def earlier(tmp_path):
    """The directory of an earlier version's run: neither its checkpoint nor a file records the step of its best."""
    out = tmp_path / "earlier"
    checkpoint(out, 4).mkdir(parents=True)
    save_file({"step": torch.tensor(2)}, out / "model_best.safetensors")
    return out


EARLIER = {"best": 5.0, "best_of": "accuracy", "seconds": 1.0}


def test_the_best_of_an_earlier_version_stays_in_its_directory_alone(earlier, tmp_path):
    assert best.follow(earlier, checkpoint(earlier, 4), EARLIER) == EARLIER
    assert (earlier / "model_best.safetensors").exists()
    (tmp_path / "new").mkdir()
    assert best.follow(tmp_path / "new", checkpoint(earlier, 4), EARLIER) == EARLIER | best.FORGOTTEN
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_the_best_of_an_earlier_version_is_forgotten_where_its_weights_are_gone(earlier, change):
    if change == "replaced":
        best.write_record(earlier, 6, "accuracy", 7.0)
    else:
        best.remove(earlier)
    assert best.follow(earlier, checkpoint(earlier, 4), EARLIER) == EARLIER | best.FORGOTTEN
    assert not best.files(earlier)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": -1}', '{"step": "4"}'])
def test_a_damaged_record_names_no_step(tmp_path: Path, text):
    (tmp_path / "best.json").write_text(text)
    assert best.step_of_files(tmp_path) is None


def test_weights_that_a_kill_left_unfinished_are_of_no_step_that_a_checkpoint_remembers(whole):
    best.write_record(whole, 12, "accuracy", 11.0)  # and then the kill
    recorder = {"best": 9.0, "best_of": "accuracy", "best_step": 10}
    assert best.follow(whole, checkpoint(whole, 10), recorder) == best.FORGOTTEN
    assert best_of(whole) is None
