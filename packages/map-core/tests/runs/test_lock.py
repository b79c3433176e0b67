"""One run at a time in a directory, however the previous one ended."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from map_core import UserError
from map_core.runs.lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from map_core.runs.lock import RunLock
with RunLock(Path(sys.argv[1])) as lock:
    lock.acquire()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a run."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def acquire(directory):
    with RunLock(directory) as lock:
        lock.acquire()


def test_a_second_run_is_refused_by_host_process_and_start_until_the_first_is_killed(tmp_path, holder):
    host = re.escape(socket.gethostname())
    with pytest.raises(
        UserError,
        match=rf"run is in use by process {holder.pid} on {host}, started 20\d\d-\S+; wait for it, stop it, or",
    ):
        acquire(tmp_path / "run")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    acquire(tmp_path / "run")


def test_a_child_does_not_keep_the_lock_of_a_parent_that_is_gone(tmp_path):
    """As the data-loading processes are."""
    script = HOLD.replace("    print", "    import os\n    if os.fork(): os._exit(0)\n    print")
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.wait(60) == 0
        acquire(tmp_path / "run")


def test_nothing_is_left_where_a_run_ends(tmp_path):
    acquire(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("lose", ["remove", "rename", "another run"])
def test_a_directory_that_vanishes_is_noticed(tmp_path, lose):
    directory = tmp_path / "run"
    with RunLock(directory) as lock:
        lock.acquire()
        lock.check()
        if lose == "rename":
            directory.rename(tmp_path / "elsewhere")
        else:
            (directory / ".lock").unlink()
            directory.rmdir()
        if lose == "another run":
            directory.mkdir()
            (directory / ".lock").write_text("other 1 2026-01-01T00:00:00\n")
        with pytest.raises(
            UserError, match=r"run vanished while the run wrote it .*bring it back and continue"
        ):
            lock.check()
    assert directory.exists() == (lose == "another run")
    if lose == "another run":
        assert (directory / ".lock").exists(), "the lock of another run was removed"


def test_a_lock_file_that_vanishes_from_a_directory_is_named(tmp_path):
    with RunLock(tmp_path / "run") as lock:
        lock.acquire()
        (tmp_path / "run/.lock").unlink()
        message = (
            r"run/.lock, which keeps other runs out, vanished while .*/run; do not remove that file, and"
        )
        with pytest.raises(UserError, match=message):
            lock.check()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "target").write_text("precious")
    (tmp_path / "run/.lock").symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match=r"cannot write in .*run: "):
        acquire(tmp_path / "run")
    assert (tmp_path / "target").read_text() == "precious"


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_a_directory_is_named(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"cannot write in .*{place}: .*; choose another --out"):
        acquire(tmp_path / place)


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys):
    def refuse(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    acquire(tmp_path / "run")
    assert "has no locks (No locks available): nothing keeps another run out of it" in capsys.readouterr().err
    assert os.listdir(tmp_path / "run") == []
