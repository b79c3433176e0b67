"""The state of a run in a checkpoint is checked before it is used."""

import copy
import json
import os
import re

import pytest

from map_core import UserError
from map_core.runs.saved_state import read_state

SETTINGS = {"task": "toy"}
STATE = {
    "step": 8,
    "settings": SETTINGS,
    "recorder": {
        "window": {"sums": {"loss": 1.5}, "counts": {"loss": 2}},
        "last": {"loss": 0.7, "lr": 0.1},
        "evaluation": None,
        "seconds": 3.5,
    },
}


def read(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    return read_state(tmp_path, SETTINGS, total_steps=16)


@pytest.mark.parametrize("evaluation", [None, {}, {"accuracy": float("nan")}])
def test_an_account_comes_back(tmp_path, evaluation):
    state = copy.deepcopy(STATE)
    state["recorder"]["evaluation"] = evaluation
    assert repr(read(tmp_path, json.dumps(state))) == repr(state)


def test_a_setting_of_later_versions_counts_as_its_default(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    now = SETTINGS | {"objective.method": "old"}
    defaults = {"objective.method": "old", "task": "default"}
    assert read_state(tmp_path, now, total_steps=16, defaults=defaults)["settings"] == SETTINGS
    with pytest.raises(UserError, match=r"objective.method was 'old' and is 'new'"):
        read_state(tmp_path, now | {"objective.method": "new"}, total_steps=16, defaults=defaults)


@pytest.mark.parametrize("place", ["sums", "counts"])
@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_a_number_that_no_float_can_be_is_refused(tmp_path, place, number):
    state = copy.deepcopy(STATE)
    state["recorder"]["window"][place]["loss"] = number
    with pytest.raises(
        UserError, match=r"state.json is not a valid run state \(recorder.window does not hold"
    ):
        read(tmp_path, json.dumps(state))


@pytest.mark.parametrize("step", [-1, 1.5, "4"])
def test_a_step_of_the_best_that_is_no_step_is_refused(tmp_path, step):
    state = copy.deepcopy(STATE)
    state["recorder"]["best_step"] = step
    with pytest.raises(UserError, match=r"is not a valid run state \(recorder.best_step is not a count\)"):
        read(tmp_path, json.dumps(state))


def test_a_mean_of_nothing_is_refused(tmp_path):
    state = copy.deepcopy(STATE)
    state["recorder"]["window"]["counts"]["loss"] = 0
    with pytest.raises(
        UserError, match=r"is not a valid run state \(recorder.window.counts are not counts\)"
    ):
        read(tmp_path, json.dumps(state))


def test_a_batch_that_processes_changed_under_a_sample_budget_has_a_cure(tmp_path):
    checkpoint = tmp_path / "run/checkpoints/step_00000008"
    checkpoint.mkdir(parents=True)
    saved = {"training.batch_size": 101, "training.epochs": 10}
    (checkpoint / "state.json").write_text(json.dumps(STATE | {"settings": saved}))
    message = (
        "training.batch_size was 101 and is 100; training.epochs was 10 and is 11; set them back, or start anew with "
        "another --out; if training.sample_budget sets them, use as many processes and accumulation_steps as before, "
        f"or set --training.sample_budget null and the values of {tmp_path}/run/config.yaml"
    )
    with pytest.raises(UserError, match=rf"{re.escape(message)}$"):
        read_state(checkpoint, {"training.batch_size": 100, "training.epochs": 11}, total_steps=16)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "state.json")
    with pytest.raises(UserError, match=r"is not a valid run state \(.*it is a pipe, socket or device"):
        read_state(tmp_path, SETTINGS, total_steps=16)


@pytest.mark.parametrize("step", [17, 10**30])
def test_a_step_beyond_the_run_is_refused(tmp_path, step):
    with pytest.raises(UserError, match=rf"is of step {step}, but the run has 16 steps; use another"):
        read(tmp_path, json.dumps(STATE | {"step": step}))


def test_a_run_that_is_to_stop_before_its_checkpoint_is_refused(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    message = (
        rf"training.max_steps \(7\) is below the step of {tmp_path} \(8\), from which the run would go on; set "
        r"--training.max_steps 8 or more, or leave it out"
    )
    with pytest.raises(UserError, match=message):
        read_state(tmp_path, SETTINGS, total_steps=16, max_steps=7)
    assert read_state(tmp_path, SETTINGS, total_steps=16, max_steps=8)["step"] == 8


def mutants():
    """Every value of a saved state, replaced by one of each other type or left out."""
    wrong_values = ("x", [], [1], {"a": "b"}, -1, True, "absent")

    def places(value, path=()):
        for key, entry in value.items():
            yield (*path, key)
            if isinstance(entry, dict):
                yield from places(entry, (*path, key))

    for path in places({key: value for key, value in STATE.items() if key != "settings"}):
        for value in wrong_values:
            state = copy.deepcopy(STATE)
            entry = state
            for key in path[:-1]:
                entry = entry[key]
            if value == "absent":
                del entry[path[-1]]
            else:
                entry[path[-1]] = value
            yield pytest.param(path, state, id=f"{'.'.join(path)}={value}")


NUMBERS = {"loss", "lr", "seconds"}


@pytest.mark.parametrize(("path", "state"), list(mutants()))
def test_a_value_of_another_type_is_refused_or_harmless(tmp_path, path, state):
    harmless = (
        (path[-1] in NUMBERS and "counts" not in path and is_number(state, path))
        or (path[:2] == ("recorder", "last") and len(path) == 3 and path[-1] not in state["recorder"]["last"])
        or (path == ("recorder", "evaluation") and path[-1] not in state["recorder"])
    )  # fmt: skip
    if harmless:
        assert read(tmp_path, json.dumps(state)) == state
        return
    with pytest.raises(
        UserError, match=r"state.json is not a valid run state \(.+\); use another checkpoint"
    ):
        read(tmp_path, json.dumps(state))


def is_number(state, path):
    for key in path:
        state = state.get(key) if isinstance(state, dict) else None
    return isinstance(state, int | float) and not isinstance(state, bool)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{", "<html>", "[" * 20_000, '{"step": ' + "9" * 5000 + "}", "\ud800"],
    ids=["empty", "list", "number", "cut off", "html", "brackets", "digits", "surrogate"],
)
def test_a_file_that_is_no_account_is_refused(tmp_path, text):
    (tmp_path / "state.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=r"state.json is not a valid run state"):
        read_state(tmp_path, SETTINGS, total_steps=16)


@pytest.mark.parametrize(
    ("saved", "now", "difference"),
    [
        ({"data.mean": [0.5]}, {"data.mean": [0.4]}, "data.mean was [0.5] and is [0.4];"),
        ({"data.classes": ["a", "b"]}, {"data.classes": ["a", "c"]}, "data.classes was ['a', 'b'] and is ['a', 'c'];"),
        ({"data.c": list("abcde")}, {"data.c": list("abXde")}, "data.c[2] was 'c' and is 'X';"),
        ({"data.c": list("abcde")}, {"data.c": list("abcd")}, "data.c[4] was 'e' and is absent;"),
        ({"data.gone": 1}, {}, "data.gone was 1 and is None;"),
        ({"init": "a"}, {"init": None}, "init was 'a' and is None;"),
        ({}, {"init": "a", "model.new": 1}, "model.new was None and is 1;"),
        ({"lr": 1, "seed": 2}, {"lr": 2, "seed": 3}, "lr was 1 and is 2; seed was 2 and is 3;"),
    ],
)  # fmt: skip
def test_another_run_is_refused_by_naming_what_differs(tmp_path, saved, now, difference):
    (tmp_path / "state.json").write_text(json.dumps(STATE | {"settings": saved}))
    with pytest.raises(
        UserError, match=re.escape(f"with other settings: {difference} set them back, or start anew with")
    ):
        read_state(tmp_path, now, total_steps=16)


def test_more_epochs_are_another_run_from_the_weights_of_this_one(tmp_path):
    checkpoint = tmp_path / "run/checkpoints/step_8"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps(STATE | {"settings": {"training.epochs": 2}}))
    cure = f"start another run from the weights of the finished one: --init {tmp_path}/run"
    with pytest.raises(UserError, match=f"training.epochs was 2 and is 4; .*to train longer, {cure}$"):
        read_state(checkpoint, {"training.epochs": 4}, total_steps=16)


def test_a_checkpoint_that_says_nothing_of_data_goes_on_with_any(tmp_path):
    """Those of version 0.1."""
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    assert read_state(tmp_path, SETTINGS | {"data.classes": ["a"]}, total_steps=16)["step"] == 8
