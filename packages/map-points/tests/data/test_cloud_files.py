"""Single cloud files: every supported form gives the same points; others are refused with their name."""

import struct

import numpy as np
import pytest

from map_core.errors import UserError
from map_points.data import read_cloud_files

POINTS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def ply(form, *, count=7, body=True):
    """A PLY file with a comment, a colour between the coordinates' order, and faces behind."""
    header = (
        f"ply\nformat {form} 1.0\ncomment made up\nelement vertex {count}\nproperty double z\n"
        "property uchar red\nproperty float x\nproperty float y\nelement face 1\n"
        "property list uchar int vertex_indices\nend_header\n"
    ).encode()
    if not body:
        return header
    if form == "ascii":
        lines = [f"{z:.9g} 200 {x:.9g} {y:.9g}\n" for x, y, z in POINTS.tolist()]
        return header + "".join(lines).encode() + b"3 0 1 2\n"
    order = "<" if "little" in form else ">"
    return header + b"".join(struct.pack(f"{order}dBff", z, 200, x, y) for x, y, z in POINTS.tolist())


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "a.npy", np.column_stack([POINTS, POINTS]))
    np.savetxt(tmp_path / "b.txt", POINTS, delimiter=",")
    np.savetxt(tmp_path / "c.txt", POINTS)
    for name, form in (("d", "ascii"), ("e", "binary_little_endian"), ("f", "binary_big_endian")):
        (tmp_path / f"{name}.ply").write_bytes(ply(form))
    (tmp_path / "notes.md").write_text("no cloud")
    return tmp_path


def test_a_folder_stands_for_its_cloud_files(folder):
    clouds = read_cloud_files(str(folder))
    assert [path.name for path in clouds.paths] == ["a.npy", "b.txt", "c.txt", "d.ply", "e.ply", "f.ply"]
    for i in range(6):
        points = clouds.points(i)
        assert points.dtype == np.float64
        np.testing.assert_allclose(points, POINTS, rtol=1e-6, err_msg=clouds.name(i))


def test_files_are_read_in_the_order_given(folder):
    clouds = read_cloud_files([str(folder / "e.ply"), str(folder / "a.npy")])
    assert [clouds.name(i) for i in range(2)] == [str(folder / "e.ply"), str(folder / "a.npy")]


def test_paths_that_are_no_clouds_are_named(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for paths, message in (
        (str(folder / "none.npy"), r"none.npy does not exist; give cloud files"),
        (
            str(folder / "notes.md"),
            r"notes.md ends in '.md'; clouds are read from .npy, .npz, .ply, .pcd, .*, .csv files",
        ),
        (str(tmp_path / "empty"), "empty holds no cloud files"),
        ([], "no cloud files given"),
    ):
        with pytest.raises(UserError, match=message):
            read_cloud_files(paths)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.ply", b"solid\n", "a.ply is not a PLY file"),
        ("a.ply", b"ply\nformat ascii 1.0\nelement vertex 2\n", "the header is cut off"),
        (
            "a.ply",
            b"ply\nformat text 1.0\nend_header\n",
            "has the format 'text'; known: ascii, binary_little",
        ),
        ("a.ply", b"ply\nformat ascii 1.0\nend_header\n", "has no vertices"),
        (
            "a.ply",
            b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n",
            "the vertices have x; expected x, y and z",
        ),
        (
            "a.ply",
            b"ply\nformat ascii 1.0\nelement face 1\nproperty list uchar int i\nelement vertex 1\n"
            b"property float x\nproperty float y\nproperty float z\nend_header\n1 0\n1 2 3\n",
            "face has a list property",
        ),
        ("a.ply", ply("binary_little_endian", body=False), "ends within vertex: 0 of 119 bytes"),
        ("a.ply", ply("ascii", count=9), "row 7 of vertex has 4 values|row 8 of vertex has 0 values"),
        ("a.ply", ply("ascii").replace(b" 200 ", b" 200 x", 1), "cannot read .*a.ply"),
        ("a.txt", b"1 2\n", r"a.txt has shape \(1, 2\)"),
        ("a.txt", b"1 2 nan\n", "a.txt has NaN or infinite coordinates at point 0"),
        (
            "a.npy",
            b"no array",
            "cannot read .*a.npy .*; copy or download it again, or take it out of the data .a run that trains on it",
        ),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_cloud_files(str(tmp_path)).points(0)
