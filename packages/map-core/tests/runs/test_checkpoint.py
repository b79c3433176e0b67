"""A checkpoint is complete or not there, and nothing in it runs code."""

import errno
import os
import pickle
import resource
import signal

import pytest
import torch
from map_core.training.checkpoint import Checkpoints, find_fault, write_json, write_manifest, write_tensors
from toy_task import ToyTask, toy_config

from map_core import UserError
from map_core.training import train


@pytest.fixture
def checkpoints(tmp_path):
    kept = Checkpoints(tmp_path / "checkpoints", keep=2)
    kept.write(
        1, {"a.safetensors": write_tensors({"w": torch.ones(1000)}), "state.json": write_json({"step": 1})}
    )
    return kept


def test_only_the_newest_stay(checkpoints):
    for step in (2, 3, 10):
        checkpoints.write(step, {"state.json": write_json({"step": step})})
    assert [path.name for path in checkpoints.paths()] == ["step_00000003", "step_00000010"]
    assert checkpoints.newest_usable().name == "step_00000010"


def test_a_full_disk_leaves_the_checkpoint_before_and_no_remains(checkpoints, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=r"cannot save .*step_00000002: .*No space left.*step_00000001, is unharmed"
    ):
        checkpoints.write(2, {"a.safetensors": write_tensors({"w": torch.ones(1000)})})
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step_00000001"]
    assert find_fault(checkpoints.paths()[0]) is None


def test_a_write_that_the_system_refuses_inside_the_libraries(checkpoints):
    """A file-size limit fails inside safetensors and torch.save, as a full disk does."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for writer in (
        write_tensors({"w": torch.ones(100_000)}),
        lambda path: torch.save(torch.ones(100_000), path),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            with pytest.raises(
                UserError, match=r"cannot save checkpoint .*step_00000001, is unharmed; make room"
            ):
                checkpoints.write(2, {"a": writer})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert [path.name for path in checkpoints.directory.iterdir()] == ["step_00000001"]
    signal.signal(signal.SIGXFSZ, handler)


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
