"""Files are complete or absent, have the usual permissions, and errors say why they could not be written."""

import errno
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from map_core import UserError
from map_core.runs.files import (
    replacing,
    require_file,
    require_folder,
    require_reachable,
    save_json,
    save_tensors,
    sync,
)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
def test_tensors_have_the_rights_of_other_files(tmp_path, mask):
    old_mask = os.umask(mask)
    try:
        with replacing(tmp_path / "a.safetensors") as partial:
            save_tensors(partial, {"w": torch.ones(3)})
        save_json(tmp_path / "a.json", {})
    finally:
        os.umask(old_mask)
    for name in ("a.safetensors", "a.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask
    assert torch.equal(load_file(tmp_path / "a.safetensors")["w"], torch.ones(3))
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.safetensors"]


def half_written(path):
    with replacing(path) as partial:
        partial.write_text("ha")
        raise ValueError("half")


def test_a_file_that_could_not_be_finished_leaves_the_one_before(tmp_path):
    save_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="half"):
        half_written(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("name", ["a.json", ".unfinished_a.json"])
def test_nothing_is_written_through_a_link(tmp_path, name):
    (tmp_path / "target").write_text("precious")
    (tmp_path / name).symlink_to(tmp_path / "target")
    save_json(tmp_path / "a.json", 1)
    assert (tmp_path / "target").read_text() == "precious"
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_tensors_that_cannot_be_written_are_an_error_with_its_number(tmp_path):
    """As other system errors have; safetensors' errors have none."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            save_tensors(tmp_path / "a", {"w": torch.ones(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert error.value.errno == errno.EFBIG


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_may_refuse_to_sync_a_directory_but_no_file(tmp_path, monkeypatch, number):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match=os.strerror(number)):
        sync(tmp_path / "file")


def test_a_disk_that_fails_to_sync_a_directory_is_reported(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        sync(tmp_path)


@pytest.mark.parametrize("check", [require_folder, require_file])
def test_a_place_below_a_file_is_refused_before_the_work(tmp_path, check):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*out: .*/file is a file; choose another --out"):
        check(tmp_path / "file/below/out")
    check(tmp_path / "absent/out")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("check", [require_folder, require_file])
def test_a_place_without_permission_is_refused_before_the_work(tmp_path, monkeypatch, check):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path or mode == os.F_OK)
    message = (
        f"cannot write to {tmp_path}/a/b: no permission to read and write in {tmp_path}; choose another --x"
    )
    with pytest.raises(UserError, match=message):
        check(tmp_path / "a/b", option="--x")


@pytest.mark.parametrize("check", [require_folder, require_file])
@pytest.mark.parametrize(("name", "reason"), [("a" * 300, "File name too long"), ("a\0b", "null")])
def test_an_impossible_name_is_refused_before_the_work(tmp_path, check, name, reason):
    with pytest.raises(UserError, match=f"cannot write to .*: .*{reason}.*; choose another --out"):
        check(tmp_path / name)


@pytest.mark.parametrize(("target", "obstacle"), [("file", "a file"), ("nowhere", "a link to nothing")])
def test_a_folder_must_not_be_something_else(tmp_path, target, obstacle):
    (tmp_path / "file").touch()
    (tmp_path / "out").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match=f"cannot write to .*out: .*/out is {obstacle}; choose another --out"):
        require_folder(tmp_path / "out")


def test_a_pipe_is_written_to_as_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    require_file(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    save_json(pipe, 1)
    assert os.read(reader, 10) == b"1\n"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_result_needs_the_name_of_a_file(tmp_path):
    with pytest.raises(UserError, match="it is a folder; give --out a file's name"):
        require_file(tmp_path)


@pytest.mark.parametrize("place", ["/proc/self/fd/{}", "/dev/fd/{}"])
def test_a_file_that_is_only_named_by_its_descriptor_is_refused(tmp_path, place):
    """As ``--out /dev/stdout > file`` does: the result and what is printed would overwrite each other."""
    with (tmp_path / "file").open("w") as file:
        out = Path(place.format(file.fileno()))
        with pytest.raises(
            UserError, match=rf"write to {out}: it leads to a file; give --out that file's name"
        ):
            require_file(out)


def test_memory_that_looks_like_a_disk_is_a_place_for_results():
    require_file(Path("/dev/shm/result.npz"))


def test_what_may_not_be_reached_is_named(private):
    with pytest.raises(
        UserError, match=rf"cannot read {private}/x \(Permission denied\): make it readable, or"
    ):
        require_reachable(private / "x")


def test_what_is_not_there_can_be_reached(tmp_path):
    require_reachable(tmp_path / "x")
    (tmp_path / "file").touch()
    require_reachable(tmp_path / "file/x")
