"""A checkpoint is complete or absent, and nothing in it runs code."""

import errno
import json
import os
import pickle
import re
import resource
import shutil
import signal

import pytest
import torch

from map_core import UserError
from map_core.runs.checkpoint import (
    Checkpoints,
    find_fault,
    read_pickle,
    read_tensors,
    write_json,
    write_pickle,
    write_tensors,
)

FILES = {"state.json": write_json({"step": 1})}


@pytest.fixture
def checkpoints(tmp_path):
    result = Checkpoints(tmp_path / "checkpoints", keep=2)
    result.write(
        1, {"a.safetensors": write_tensors({"w": torch.ones(1000)}), "state.json": write_json({"step": 1})}
    )
    return result


def test_only_the_newest_stay(checkpoints):
    for step in (2, 3, 10):
        checkpoints.write(step, {"state.json": write_json({"step": step})})
    assert [path.name for path in checkpoints.paths()] == ["step_00000003", "step_00000010"]
    assert checkpoints.newest_usable().name == "step_00000010"


@pytest.mark.parametrize(
    "name",
    ["step_best", "step_00000010_keep", "step_0", "superseded_by_mine", "superseded_step_00000001_mine"],
)
def test_a_copy_under_another_name_is_no_checkpoint_and_stays(checkpoints, name):
    copy = checkpoints.directory / name
    shutil.copytree(checkpoints.paths()[0], copy)
    for step in (2, 3, 10):
        checkpoints.write(step, FILES)
    assert [path.name for path in checkpoints.paths()] == ["step_00000003", "step_00000010"]
    assert checkpoints.newest_usable().name == "step_00000010"
    checkpoints.set_aside_after(3)
    checkpoints.set_aside_after(3)
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == sorted(["step_00000003", name])
    assert find_fault(copy) is None


def test_checkpoints_are_in_the_order_of_their_steps(checkpoints):
    for step in (99_999_999, 100_000_000):
        checkpoints.write(step, FILES)
    assert [path.name for path in checkpoints.paths()] == ["step_99999999", "step_100000000"]
    checkpoints.set_aside_after(99_999_999)
    assert [path.name for path in checkpoints.paths()] == ["step_99999999"]


def test_a_full_disk_leaves_the_checkpoint_before_and_no_remains(checkpoints, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError,
        match=r"cannot save .*step_00000002: .*No space left.*step_00000001, is unharmed; .* are free there: make room",
    ):
        checkpoints.write(2, {"a.safetensors": write_tensors({"w": torch.ones(1000)})})
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step_00000001"]
    assert find_fault(checkpoints.paths()[0]) is None


@pytest.fixture
def no_file_over_50_kb():
    """A file-size limit fails inside safetensors and torch.save, as a full disk does."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("no_file_over_50_kb")
@pytest.mark.parametrize("write", [write_tensors, write_pickle])
def test_a_write_that_the_system_refuses_inside_the_libraries(checkpoints, write):
    with pytest.raises(
        UserError,
        match=r"cannot save checkpoint .*File too large.*step_00000001, is unharmed; check that disk",
    ):
        checkpoints.write(2, {"a": write({"w": torch.ones(100_000)})})
    assert [path.name for path in checkpoints.directory.iterdir()] == ["step_00000001"]


class Malice:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    target = tmp_path / "executed"
    (tmp_path / "optimizer.pt").write_bytes(pickle.dumps({"state": Malice(target)}, protocol=2))
    with pytest.raises(
        UserError, match=r"optimizer.pt was refused: .* nothing in it was run; use a checkpoint"
    ):
        read_pickle(tmp_path / "optimizer.pt")
    assert not target.exists()


def test_tensors_and_plain_values_come_back(tmp_path):
    state = {"step": torch.arange(3), "groups": [{"lr": 0.1, "names": ["a", "b"]}]}
    write_pickle(state)(tmp_path / "state.pt")
    tied = torch.randn(2, 3)
    write_tensors({"a": tied, "b": tied, "c": tied.T})(tmp_path / "state.safetensors")
    assert str(read_pickle(tmp_path / "state.pt")) == str(state)
    tensors = read_tensors(tmp_path / "state.safetensors")
    assert tensors.keys() == {"a", "b", "c"}
    assert all(torch.equal(tensors[name], tied.T if name == "c" else tied) for name in tensors)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda path: path.with_name("manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: path.unlink(), "a.safetensors is missing"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-10]),
            r"a.safetensors has \d+ bytes where \d+ were",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"),
            "contents of a.safetensors have changed",
        ),
        (lambda path: path.with_name("manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda path: path.with_name("manifest.json").write_text("[]"), "manifest.json cannot be read"),
    ],
    ids=["no manifest", "no file", "cut off", "changed", "half a manifest", "another manifest"],
)
def test_damage_is_reported(checkpoints, capsys, damage, fault):
    (path,) = checkpoints.paths()
    assert find_fault(path) is None
    damage(path / "a.safetensors")
    assert re.search(fault, find_fault(path))
    assert checkpoints.newest_usable() is None
    assert re.search(f"skipping checkpoint {path}: .*{fault}", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["/dev/zero", "../../../../../../dev/zero", "/dev/stdin", "", ".", "a/b"])
def test_a_manifest_that_leads_elsewhere_is_not_followed(checkpoints, name):
    path = checkpoints.paths()[0]
    (path / "manifest.json").write_text(json.dumps({name: {"bytes": 0, "sha256": "0" * 64}}))
    assert find_fault(path) == f"manifest.json names {name!r}, which is not a file in it"


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "zeros"]
)
def test_an_endless_checkpoint_file_is_reported(checkpoints, name, make):
    path = checkpoints.paths()[0]
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["state.json"]["bytes"] = 0
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / name).unlink()
    make(path / name)
    assert "it is a pipe, socket or device, not a file" in str(find_fault(path))


def test_no_checkpoint_is_ever_half_removed(checkpoints, monkeypatch):
    """A removal that stops midway, as by a kill, leaves nothing that a reader takes for a checkpoint."""
    removals = []

    def stop(path, **options):
        removals.append(path)

    monkeypatch.setattr("shutil.rmtree", stop)
    for step in (2, 3):
        checkpoints.write(step, FILES)
    assert [path.name for path in checkpoints.paths()] == ["step_00000002", "step_00000003"]
    assert (checkpoints.directory / ".removing_step_00000001/state.json").exists()
    monkeypatch.undo()
    checkpoints.clear_leftovers()
    assert not list(checkpoints.directory.glob(".*"))


def test_a_run_directory_that_vanished_is_not_made_again(tmp_path):
    missing = Checkpoints(tmp_path / "mounted/run/checkpoints", keep=2)
    with pytest.raises(UserError, match=r"cannot save checkpoint .*No such file or directory"):
        missing.write(1, FILES)
    assert not (tmp_path / "mounted").exists()


def test_checkpoints_beyond_a_step_are_set_aside_not_removed(checkpoints):
    for step in (5, 7):
        checkpoints.write(step, {"state.json": write_json({"step": step})})
    checkpoints.set_aside_after(5)
    assert [path.name for path in checkpoints.paths()] == ["step_00000005"]
    superseded = checkpoints.directory / "superseded_step_00000007"
    assert find_fault(superseded) is None
    checkpoints.set_aside_after(5)
    assert not superseded.exists(), "what an earlier start set aside stays forever"
