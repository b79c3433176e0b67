"""LAS and LAZ files whose headers lie: bounded work, one sentence, and never fewer points than are claimed."""

import struct

import laspy
import numpy as np
import pytest

from map_core.errors import UserError
from map_points.data.las import read_las

POINTS = np.random.default_rng(0).normal(size=(50, 3))


def write(path):
    cloud = laspy.create(point_format=3)
    cloud.x, cloud.y, cloud.z = POINTS.T
    cloud.write(path)
    return path


def write_patched(path, place, kind, value):
    data = bytearray(write(path).read_bytes())
    struct.pack_into(kind, data, place, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.las", "a.laz"])
def test_what_was_written_is_read(tmp_path, name):
    columns = read_las(write(tmp_path / name))
    np.testing.assert_allclose(np.stack([columns[axis] for axis in "xyz"], 1), POINTS, atol=0.01)


@pytest.mark.parametrize(
    ("name", "place", "kind", "value", "message"),
    [
        ("a.las", 107, "<I", 51, "it claims 51 points and holds 50"),
        ("a.las", 107, "<I", 2**32 - 1, "it claims 4,294,967,295 points and holds 50"),
        ("a.laz", 107, "<I", 2**32 - 1, r"it claims 4,294,967,295 points in [\d,]+ bytes"),
        (
            "a.las",
            100,
            "<I",
            10**9,
            "it claims 1,000,000,000 records before its points, for which there is no",
        ),
        (
            "a.laz",
            100,
            "<I",
            10**9,
            "it claims 1,000,000,000 records before its points, for which there is no",
        ),
        ("a.las", 96, "<I", 2**31, r"its header has 227 bytes, its points begin at 2147483648 of \d+"),
        ("a.las", 94, "<H", 0, "its header has 0 bytes"),
        ("a.las", 105, "<H", 0, "its header has 227 bytes"),
        ("a.las", 0, "<I", 0, "it is not a LAS file, or cut off"),
        ("a.las", 25, "<B", 4, "its header has 227 bytes, of 375 in version 1.4"),
    ],
    ids=range(10),
)
def test_a_header_that_claims_too_much_is_refused(tmp_path, name, place, kind, value, message):
    with pytest.raises(UserError, match=rf"cannot read .*{name} \({message}"):
        read_las(write_patched(tmp_path / name, place, kind, value))


@pytest.mark.parametrize("place", ["outside", "chunks"])
def test_a_table_of_chunks_that_lies_is_refused(tmp_path, place):
    data = bytearray(write(tmp_path / "a.laz").read_bytes())
    (points_at,) = struct.unpack_from("<I", data, 96)
    (table,) = struct.unpack_from("<q", data, points_at)
    if place == "outside":
        struct.pack_into("<q", data, points_at, 2**40)
    else:
        struct.pack_into("<I", data, table + 4, 2**32 - 1)
    (tmp_path / "a.laz").write_bytes(data)
    message = (
        "its table of chunks lies outside" if place == "outside" else "it claims 4,294,967,295 chunks in"
    )
    with pytest.raises(UserError, match=message):
        read_las(tmp_path / "a.laz")


def test_a_compressed_file_asks_for_the_library_that_is_not_there(tmp_path, monkeypatch):
    compressed, plain = write(tmp_path / "a.laz"), write(tmp_path / "a.las")
    monkeypatch.setattr(laspy.LazBackend, "is_available", lambda self: False)
    with pytest.raises(UserError, match=r"a.laz is compressed and needs lazrs: pip install lazrs"):
        read_las(compressed)
    assert len(read_las(plain)["x"]) == len(POINTS)


@pytest.mark.parametrize("name", ["a.las", "a.laz"])
def test_a_file_that_is_cut_off_is_never_read_as_a_smaller_one(tmp_path, name):
    data = write(tmp_path / name).read_bytes()
    for end in range(0, len(data) - 1, 37):
        (tmp_path / name).write_bytes(data[:end])
        with pytest.raises(UserError, match=name):
            read_las(tmp_path / name)
