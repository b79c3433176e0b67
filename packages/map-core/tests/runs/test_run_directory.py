"""In which directories a run can be opened, and what it clears away there."""

import errno
import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from map_core import UserError
from map_core.runs.checkpoint import Checkpoints, write_json
from map_core.runs.lock import RunLock
from map_core.runs.metrics import MetricsLog
from map_core.runs.pictures import save_picture
from map_core.runs.run_directory import disk_errors_as_user_errors, open_run
from map_core.runs.summary import write_config, write_summary

FILES = {"state.json": write_json({"step": 1})}


def open_directory(out, resume=None):
    with RunLock(out) as lock:
        return open_run(out, Checkpoints(out / "checkpoints", keep=2), resume, lock)


def failed_start(out):
    """Write what a run leaves that was killed while it wrote its first checkpoint."""
    (out / "checkpoints/.writing_step_00000004").mkdir(parents=True)
    (out / "tensorboard").mkdir()
    (out / ".unfinished_config.yaml").touch()
    for name in ("config.yaml", "metrics.jsonl"):
        (out / name).write_text("x\n")


@pytest.mark.parametrize("make", [lambda out: None, lambda out: out.mkdir(), failed_start])
def test_resume_auto_before_the_first_checkpoint_starts_over_with_a_note(tmp_path, capsys, make):
    make(tmp_path / "run")
    assert open_directory(tmp_path / "run", "auto") is None
    assert f"nothing to resume in {tmp_path / 'run'}: starting anew" in capsys.readouterr().err
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_start_that_failed_before_its_first_checkpoint_can_be_repeated(tmp_path):
    failed_start(tmp_path / "run")
    assert open_directory(tmp_path / "run") is None
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoints", "config.yaml", "tensorboard"]
    assert os.listdir(tmp_path / "run/checkpoints") == []


@pytest.mark.parametrize(
    "name",
    [
        "photo.png",
        "model.safetensors",
        "checkpoints/step_00000001/state.json",
        "film.partial",
        ".tmp",
        "model_best.safetensors",
        "best.json",
    ],
)
@pytest.mark.parametrize("resume", [None, "auto"])
def test_whatever_else_is_there_is_left_alone(tmp_path, name, resume):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    message = "exists and is not empty" if resume is None else "found no usable checkpoint"
    with pytest.raises(UserError, match=message):
        open_directory(tmp_path / "run", resume)
    assert file.read_text() == "precious"
    assert os.listdir(tmp_path / "run") == [name.partition("/")[0]]


@pytest.mark.parametrize("name", ["film.partial", ".tmpAb12"])
def test_a_folder_without_a_run_that_resumes_is_left_as_it_is(tmp_path, name):
    for file in (name, "notes.txt"):
        (tmp_path / file).touch()
    with pytest.raises(UserError, match=r"--resume auto found no usable checkpoint"):
        open_directory(tmp_path, "auto")
    assert sorted(os.listdir(tmp_path)) == sorted([name, "notes.txt"])


def test_best_weights_of_a_start_are_written_again_and_others_stay(tmp_path):
    out = tmp_path / "run"
    failed_start(out)
    (out / "model_best.safetensors").touch()
    assert open_directory(out, "auto") is None
    assert not (out / "model_best.safetensors").exists()
    failed_start(tmp_path / "mine")
    (tmp_path / "mine/my_best.safetensors").touch()
    with pytest.raises(UserError, match="no usable checkpoint"):
        open_directory(tmp_path / "mine", "auto")
    assert (tmp_path / "mine/my_best.safetensors").exists()


def test_leftovers_of_a_kill_are_cleared_and_the_rest_stays(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    checkpoint = Checkpoints(out / "checkpoints", keep=2).write(1, FILES)
    for name in (".writing_step_00000002", ".removing_step_00000000"):
        (checkpoint.parent / name).mkdir()
    for name in (".tmpAb12", "model.safetensors.partial", ".unfinished_summary.json", "notes.txt"):
        (out / name).touch()
    assert open_directory(out, "auto") == checkpoint
    assert sorted(os.listdir(out)) == ["checkpoints", "notes.txt"]
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "metrics.jsonl", "checkpoints/step_00000009", "tensorboard"]
)
def test_a_link_in_a_run_directory_is_refused(tmp_path, name):
    out = tmp_path / "run"
    out.mkdir()
    Checkpoints(out / "checkpoints", keep=2).write(1, FILES)
    (out / name).symlink_to(tmp_path)
    with pytest.raises(
        UserError, match=rf"{name} is a symbolic link, .*{tmp_path}.* in its place, or remove"
    ):
        open_directory(out, "auto")


def test_a_run_directory_may_itself_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert open_directory(tmp_path / "run") is None


def test_a_checkpoint_that_was_set_aside_is_resumed_under_its_first_name_only(tmp_path):
    """Under its new name, the run would remove it."""
    out = tmp_path / "run"
    out.mkdir()
    checkpoints = Checkpoints(out / "checkpoints", keep=2)
    for step in (1, 2):
        checkpoints.write(step, FILES)
    checkpoints.set_aside_after(1)
    superseded = checkpoints.directory / "superseded_step_00000002"
    with pytest.raises(
        UserError, match=rf"--resume {superseded} would be removed .*; rename it to step_00000002, "
    ):
        open_directory(out, str(superseded))
    assert open_directory(tmp_path / "other", str(superseded)) == superseded
    first = superseded.rename(superseded.with_name("step_00000002"))
    assert open_directory(out, str(first)) == first


def test_a_run_that_began_from_another_ones_checkpoint_goes_on_from_its_own(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        checkpoint = Checkpoints(tmp_path / name / "checkpoints", keep=2).write(1, FILES)
    one = tmp_path / "one"
    message = f"continue the run in {one} with --resume auto, or choose another --out"
    with pytest.raises(UserError, match=message):
        open_directory(one, str(checkpoint))


def fail(out, error):
    """Raise a system error in the middle of a run."""
    with RunLock(out) as lock:
        lock.acquire()
        with disk_errors_as_user_errors(out, lock):
            raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            lambda out: OSError(28, "No space left on device"),
            r"the disk is full .*; make room, then continue",
        ),
        (
            lambda out: OSError(30, "Read-only file system", str(out / "a")),
            r"cannot write the run in .*Read-only file system.*; check that disk, then continue",
        ),
        (
            lambda out: SafetensorError("Error while serializing"),
            r"cannot write the run in .*Error while serializing; its checkpoints are unharmed",
        ),
    ],
    ids=["full", "read-only", "safetensors"],
)
def test_disk_errors_are_reported_in_one_sentence(tmp_path, error, message):
    with pytest.raises(UserError, match=message):
        fail(tmp_path / "run", error(tmp_path / "run"))


class Broken(io.StringIO):
    """A file on a disk that fails: neither a write nor a flush says which file it was."""

    def write(self, text):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def write_line(out):
    log = MetricsLog(out, tensorboard=False, step=0)
    log._file = Broken()
    log.write("train", 1, 1.0, {"loss": 0.5})


def write_events(out):
    log = MetricsLog(out, tensorboard=False, step=0)
    log._events = SimpleNamespace(add_scalar=lambda *arguments: Broken().write(""))
    log.write("train", 1, 1.0, {"loss": 0.5})


def write_picture(out):
    figure = SimpleNamespace(savefig=lambda *arguments, **options: Broken().write(""))
    save_picture(figure, out / "curves.png", dpi=100)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("metrics.jsonl", write_line),
        ("tensorboard", write_events),
        ("config.yaml", lambda out: write_config(out, {})),
        ("summary.json", lambda out: write_summary(out, {})),
        ("curves.png", write_picture),
    ],
)
def test_a_write_that_fails_names_its_file(tmp_path, monkeypatch, name, write):
    monkeypatch.setattr(Path, "write_text", lambda path, *arguments, **options: Broken().write(""))
    out = tmp_path / "run"
    with RunLock(out) as lock:
        lock.acquire()
        with (
            pytest.raises(UserError, match=rf"^cannot write the run in {out}: .*error: '{out}/{name}'; its"),
            disk_errors_as_user_errors(out, lock),
        ):
            write(out)


def test_faults_of_other_files_are_not_blamed_on_the_run(tmp_path):
    with pytest.raises(OSError, match="elsewhere"):
        fail(tmp_path / "run", OSError(5, "Input/output error", str(tmp_path / "elsewhere")))


def test_a_checkpoint_that_cannot_be_reached_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"cannot read a+ \(File name too long\): make it readable, or give another"
    ):
        open_directory(tmp_path / "run", "a" * 300)
