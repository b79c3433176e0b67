"""Trackers get every line of metrics, and none of them can stop a run."""

import json
import logging
from typing import Any, ClassVar

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from toy_task import ToyTask, toy_config

from map_core.errors import UserError
from map_core.runs.metrics import read_metrics
from map_core.runs.trackers import flatten_settings
from map_core.training import train


class Listening(GeneralTracker):
    """A third-party tracker, registered as Accelerate allows."""

    name = "listening"
    requires_logging_directory = True
    main_process_only = False
    calls: ClassVar[list[tuple[str, Any]]] = []
    fails_at: ClassVar[str | None] = None

    def __init__(self, run_name: str, logging_dir: Any) -> None:
        super().__init__()
        self._record("init", (run_name, logging_dir.name))

    def _record(self, event: str, value: Any = None) -> None:
        type(self).calls.append((event, value))
        if event == type(self).fails_at:
            raise ConnectionError("no route to the server")

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self._record("start")

    def store_init_configuration(self, values: dict) -> None:
        self._record("settings", values)

    def log(self, values: dict, step: int | None = None, **more: Any) -> None:
        self._record("log", (step, values))

    def finish(self) -> None:
        self._record("finish")


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[Listening]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "listening", Listening)
    monkeypatch.setattr("map_core.runs.trackers.get_available_trackers", lambda: ["listening"])
    Listening.calls, Listening.fails_at = [], None
    return Listening


def test_every_line_of_metrics_reaches_the_tracker(tracker, tmp_path):
    train(ToyTask(), toy_config(trackers=("listening",)), tmp_path / "run")
    logged = [value for event, value in tracker.calls if event == "log"]
    lines = read_metrics(tmp_path / "run")
    assert [step for step, _ in logged] == [line["step"] for line in lines]
    assert [values[f"{line['kind']}/loss"] for (_, values), line in zip(logged, lines, strict=True)
            if line["kind"] == "train"] == [line["loss"] for line in lines if line["kind"] == "train"]  # fmt: skip
    assert [event for event, _ in tracker.calls if event != "log"] == ["init", "start", "settings", "finish"]
    assert dict(tracker.calls)["settings"]["training.trackers"] == "['listening']"


@pytest.mark.parametrize("moment", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_warned_of_once_and_changes_nothing(tracker, tmp_path, caplog, moment):
    quiet = train(ToyTask(), toy_config(), tmp_path / "quiet")
    tracker.fails_at = moment
    with caplog.at_level(logging.WARNING):
        loud = train(ToyTask(), toy_config(trackers=("listening",)), tmp_path / "loud")
    assert loud["loss"] == quiet["loss"]
    assert [r.message for r in caplog.records if "tracker" in r.message] == [
        "tracker listening failed and is left alone from here on; the run goes on: no route to the server"
    ]
    assert sum(event == moment for event, _ in tracker.calls) == 1


def test_a_start_that_failed_is_started_again(tracker, tmp_path):
    tracker.fails_at = "finish"
    (tmp_path / "run" / "trackers").mkdir(parents=True)
    train(ToyTask(), toy_config(trackers=("listening",)), tmp_path / "run", resume="auto")
    assert ("init", ("map", "trackers")) in tracker.calls


@pytest.mark.parametrize(
    ("name", "message"),
    [("wandbb", "training.trackers 'wandbb' is unknown.*wandb"), ("aim", "aim is not installed here")],
)
def test_trackers_that_are_not_there(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        train(ToyTask(), toy_config(trackers=(name,)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_are_named_by_their_sections():
    assert flatten_settings({"training": {"lr": 0.1, "betas": [0.9, 0.95]}, "out": "a"}) == {
        "training.lr": 0.1,
        "training.betas": "[0.9, 0.95]",
        "out": "a",
    }
    assert json.dumps(flatten_settings({"a": None})) == '{"a": "None"}'
