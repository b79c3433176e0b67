"""``~`` is a home folder wherever a path is accepted, also in Python."""

import pwd
from pathlib import Path

import pytest
import torch
from toy_task import ToyTask, toy_config

from map_core import UserError
from map_core.paths import cache_folder, expand_user
from map_core.runs.checkpoint import Checkpoints
from map_core.runs.run_directory import named_checkpoint
from map_core.tasks.weights import read_description, read_weights, save_weights
from map_core.training import train


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_folders_are_meant_at_the_beginning_only(home):
    paths = ("~", "~/a", Path("~/a"), "a/~/b", "~a~")
    assert [expand_user(path) for path in paths] == [home, home / "a", home / "a", Path("a/~/b"), Path("~a~")]


def test_the_cache_is_there_or_where_xdg_says(home, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == home / ".cache/map"
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_folder() == Path("/scratch/map")


def test_a_cache_in_the_working_directory_is_refused(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    with pytest.raises(
        UserError, match=r"the cache folder \(cache\) must be an absolute path: set XDG_CACHE_HOME"
    ):
        cache_folder()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # a user whom the system does not know
    with pytest.raises(UserError, match=r"the cache folder \(~/.cache\) must be an absolute path"):
        cache_folder()


def test_a_run_starts_and_resumes_there_and_takes_texts(home):
    train(ToyTask(), toy_config(max_steps=2), "~/run")
    assert (home / "run/summary.json").exists()
    summary = train(ToyTask(), toy_config(max_steps=3), "~/run", resume="~/run/checkpoints/step_00000002")
    assert not summary["interrupted"]
    with pytest.raises(UserError, match=f"--resume {home}/x is not a usable checkpoint"):
        named_checkpoint(Checkpoints(home / "checkpoints", keep=1), "~/x")


def test_weights_and_their_description_are_read_there(home):
    save_weights(home / "model.safetensors", {"w": torch.ones(2)}, {"name": "x"})
    for path in ("~", "~/model.safetensors"):
        assert torch.equal(read_weights(path)["w"], torch.ones(2))
        assert read_description(path) == {"name": "x"}
