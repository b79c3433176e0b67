"""Small files are read whole; anything else is refused without blocking."""

import os
from pathlib import Path

import pytest

from map_core.reading import read_small


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def link_to_zeros(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def terabyte_of_nothing(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(2**40)
    return path


@pytest.mark.parametrize("size", [0, 9, 10])
def test_a_small_file_is_read_whole(tmp_path, size):
    (tmp_path / "file").write_bytes(os.urandom(size))
    assert read_small(tmp_path / "file", 10) == (tmp_path / "file").read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pipe, "it is a pipe, socket or device, not a file"),
        (link_to_zeros, "it is a pipe, socket or device, not a file"),
        (folder, "Is a directory"),
        (terabyte_of_nothing, "it has more than 1,000 bytes"),
    ],
)
def test_anything_but_a_small_file_is_refused_at_once(tmp_path, make, message):
    with pytest.raises(OSError, match=message):
        read_small(make(tmp_path / "file"), 1000)
