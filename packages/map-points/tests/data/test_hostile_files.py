"""Files that never end, claim more than they hold, or lead elsewhere: bounded work, and one sentence each."""

import io
import json
import os
import socket
import struct
import time
import zipfile

import h5py
import numpy as np
import pytest

from map_core.errors import UserError
from map_points.data import PointDataConfig, read_cloud_files, read_clouds
from map_points.data.files import files_below, read_text
from map_points.data.npy import read_npy
from map_points.data.ply import read_ply

POINTS = np.random.default_rng(0).normal(size=(4, 20, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def _soon_done():
    """Whatever a file claims, refusing it takes no time."""
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < 5


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    working_directory = os.getcwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(working_directory)


def make_device(path):
    path.symlink_to("/dev/zero")


IRREGULAR = pytest.mark.parametrize(
    ("make", "kind"), [(make_pipe, "a named pipe"), (make_socket, "a socket"), (make_device, "a device")]
)


@IRREGULAR
@pytest.mark.parametrize("name", ["a.npy", "a.ply", "a.txt"])
def test_cloud_files_must_be_regular(tmp_path, make, kind, name):
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is {kind}; give a regular file"):
        read_cloud_files(str(tmp_path / name))
    with pytest.raises(UserError, match="holds no cloud files"):
        read_cloud_files(str(tmp_path))


@IRREGULAR
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("modelnet40_npz", "modelnet40_1024.npz"),
        ("hdf5", "shape_names.txt"),
        ("hdf5", "train_files.txt"),
        ("hdf5", "a.h5"),
        ("modelnet_dat", "modelnet40_train_1024.dat"),
        ("normal_resampled", "modelnet40_train.txt"),
        ("shapenetpart", "train_test_split/shuffled_train_file_list.json"),
    ],
)
def test_files_of_data_sets_must_be_regular(tmp_path, make, kind, source, name):
    (tmp_path / "train_test_split").mkdir()
    for other in ("shape_names.txt", "modelnet40_shape_names.txt"):
        (tmp_path / other).write_text("chair\n")
    (tmp_path / "train_files.txt").write_text("a.h5\n")
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is {kind}; give a regular file"):
        read_clouds(PointDataConfig(source, str(tmp_path)), "train")


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "real").mkdir()
    np.save(tmp_path / "real" / "a.npy", POINTS[0])
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "here").symlink_to(tmp_path / "real")
    (tmp_path / "again").symlink_to(tmp_path / "real")
    assert len(list(files_below(tmp_path))) == 1
    assert len(read_cloud_files(str(tmp_path))) == 1


def npy_header(description):
    text = description.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def numbers(shape, kind="<f4", fortran="False"):
    return npy_header(f"{{'descr': '{kind}', 'fortran_order': {fortran}, 'shape': {shape}, }}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            numbers("(1000000000000, 3)") + bytes(36),
            r"its header claims \(1000000000000, 3\) of float32, 12000000000000",
        ),
        (numbers("(3, 3)") + bytes(35), "claims .* 36 bytes, but it holds 35"),
        (numbers("(3, 3)") + bytes(37), "claims .* 36 bytes, but it holds 37"),
        (numbers("(-1, 3)") + bytes(36), r"claims \(-1, 3\)"),
        (numbers("(3, 3)", kind="|O") + bytes(72), "holds object; only arrays of numbers or strings"),
        (numbers("(9,)", kind="|V4") + bytes(36), r"holds \|V4; only arrays of numbers"),
        (numbers("(3, 3)", kind="<c8") + bytes(72), "holds complex64; only arrays"),
        (
            npy_header("{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (1,), }"),
            "only arrays of numbers",
        ),
        (npy_header("__import__('os').system('true')"), "cannot read .*a.npy"),
        (npy_header("(" * 100), "cannot read .*a.npy"),
        (
            npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 60 + ",)}"),
            "its header claims",
        ),
        (b"\x93NUMPY\x02\x00" + b"\xff" * 4 + b" " * 100, "cannot read .*a.npy"),
        (b"\x93NUMPY\x03\x00" + bytes(100), r"has version \(3, 0\) of the npy format"),
        (b"", r"cannot read .*a.npy \(.*, it is empty\)"),
        (b"<html>Not found</html>", r"cannot read .*a.npy \(.*, it looks like an HTML page\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it looks like a pointer of Git LFS"),
    ],
)
def test_npy_headers_that_lie(tmp_path, data, message):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(UserError, match=message) as excinfo:
        read_npy(tmp_path / "a.npy")
    assert "a.npy" in str(excinfo.value)


@pytest.mark.parametrize("values", [POINTS[0], np.asfortranarray(POINTS[0]), POINTS[0].astype(">f8")])
def test_honest_npy_files_are_read(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), values)


def npy_bytes(values):
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    return stream.getvalue()


def write_npz(path, *, compression=zipfile.ZIP_STORED, **changes):
    members = {"train_x": POINTS, "train_y": np.arange(4) % 2, "classes": np.array(["a", "b"])} | changes
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, values in members.items():
            if values is not None:
                archive.writestr(f"{name}.npy", values if isinstance(values, bytes) else npy_bytes(values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_x": numbers("(1000000000, 20, 3)") + bytes(99)}, r"\(train_x\): its header claims"),
        ({"train_x": np.array([{}] * 4)}, r"\(train_x\) holds object; only"),
        ({"train_x": POINTS[0]}, r"has clouds of shape \(20, 3\); expected \(n, points, 3\)"),
        ({"train_x": POINTS.transpose(0, 2, 1)}, r"has shape \(3, 20\), more columns than points.*transpose"),
        ({"train_x": POINTS[:3]}, r"holds 3 clouds, but labels of shape \(4,\)"),
        ({"train_x": POINTS[:0], "train_y": np.arange(0)}, r"\(train\) holds no clouds"),
        ({"train_y": np.array([{}, 1, 2, 3])}, r"\(train_y\) holds object"),
        ({"train_y": np.eye(4)}, r"labels of shape \(4, 4\)"),
        ({"classes": np.arange(2)}, "has classes of int64"),
        ({"classes": np.array(["a", "a"])}, r"has the class 'a' 2 times"),
        ({"classes": np.array([], dtype="U1")}, "has no class names|empty"),
        ({"classes": np.array(["a", "\x1b[2J"])}, "must not have control characters"),
        ({"classes": None}, r"has no classes; it holds train_x, train_y"),
    ],
)
def test_npz_files_of_other_content(tmp_path, changes, message):
    write_npz(tmp_path / "d.npz", **changes)
    with pytest.raises(UserError, match=message) as excinfo:
        read_clouds(PointDataConfig("modelnet40_npz", str(tmp_path / "d.npz")), "train")
    assert "d.npz" in str(excinfo.value)


def test_a_zip_archive_may_not_grow_without_bounds(tmp_path):
    file = tmp_path / "d.npz"
    write_npz(file, compression=zipfile.ZIP_BZIP2)
    with pytest.raises(UserError, match=r"d.npz \(train_x\) claims .* bytes, more than the file can hold"):
        read_clouds(PointDataConfig("modelnet40_npz", str(file)), "train")
    write_npz(file)
    data = bytearray(file.read_bytes())
    place = data.find(b"PK\x01\x02")  # the size of the first member, in the directory at the end
    data[place + 24 : place + 28] = struct.pack("<I", 2**32 - 2)
    file.write_bytes(data)
    with pytest.raises(
        UserError, match=r"d.npz \(train_x\) claims 4294967294 bytes, more than the file can hold"
    ):
        read_clouds(PointDataConfig("modelnet40_npz", str(file)), "train")


@pytest.mark.parametrize("content", [b"", b"<!doctype html>", npy_bytes(POINTS), b"PK\x05\x06" + bytes(18)])
def test_other_files_are_no_npz(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*d.npz|d.npz has no classes, train_x"):
        read_clouds(PointDataConfig("modelnet40_npz", str(tmp_path / "d.npz")), "train")


def ply(form, count, properties="xyz", body=b""):
    lines = [f"property float {name}\n" for name in properties]
    return f"ply\nformat {form} 1.0\nelement vertex {count}\n{''.join(lines)}end_header\n".encode() + body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ply("ascii", 10**12, body=b"0 0 0\n" * 3), "ends within vertex: 18 of 5999999999999 bytes"),
        (
            ply("binary_little_endian", 10**12, body=bytes(36)),
            "ends within vertex: 36 of 12000000000000 bytes",
        ),
        (
            ply("ascii", 4, body=b"0 0 0\n0 0 0 0 0 0\n0 0 0\n0 0 0\n"),
            "row 1 of vertex has 6 values, expected 3",
        ),
        (ply("ascii", 2, body=b"0 0 0\n0 0 1_0\n"), "cannot read .*a.ply"),
        (ply("ascii", "9" * 5000), "the header is cut off or has the line 'element vertex 999"),
        (ply("ascii", "²"), "has the line 'element vertex"),
        (ply("ascii", -1), "has the line 'element vertex -1'"),
        (ply("ascii", 1, properties="xyzx", body=b"0 0 0 0\n"), "vertex has a property twice"),
        (ply("binary_big_endian", 1, properties="xyzx", body=bytes(16)), "vertex has a property twice"),
        (
            b"ply\nformat ascii 1.0\nelement none 1000000000000\n" + ply("ascii", 1)[21:],
            "none has a list property or",
        ),
        (b"ply\n" + b"comment\n" * 20_000, "the header has more than 10000 lines"),
        (b"ply\ncomment " + b"x" * 10**7, "the header is cut off or has the line 'x"),
    ],
)
def test_ply_headers_that_lie(tmp_path, data, message):
    (tmp_path / "a.ply").write_bytes(data)
    with pytest.raises(UserError, match=message) as excinfo:
        read_ply(tmp_path / "a.ply")
    assert len(str(excinfo.value)) < 500


@pytest.fixture
def release(tmp_path):
    """The hdf5 release with one file, and a folder beside it that it must not reach."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "shape_names.txt").write_text("a\nb\n")
    (root / "train_files.txt").write_text("a.h5\n")
    return root, outside


def open_release(root):
    return read_clouds(PointDataConfig("hdf5", str(root)), "train")


def write_h5(path, **changes):
    with h5py.File(path, "w") as file:
        for name, values in ({"data": POINTS, "label": np.arange(4) % 2} | changes).items():
            file[name] = values


def test_h5_links_are_followed_within_the_data_folder_only(release):
    root, outside = release
    for folder, link in (
        (root, "parts/b.h5"),
        (outside, "../outside/b.h5"),
        (outside, str(outside / "b.h5")),
    ):
        (folder / "parts").mkdir(exist_ok=True)
        file = folder / ("parts/b.h5" if folder == root else "b.h5")
        write_h5(file)
        write_h5(root / "a.h5", data=h5py.ExternalLink(link, "/data"))
        if folder == root:
            np.testing.assert_array_equal(open_release(root).points(2), POINTS[2])
        else:
            with pytest.raises(UserError, match=r"a.h5: data lies in .*b.h5, outside .*root; copy it into"):
                open_release(root)


@pytest.mark.parametrize("target", ["pipe", "chain", "group"])
def test_h5_links_lead_to_numbers_in_one_step(release, target):
    root, outside = release
    if target == "pipe":
        os.mkfifo(root / "b.h5")
    else:
        write_h5(root / "b.h5", data=h5py.ExternalLink(str(outside / "c.h5"), "/data"))
    write_h5(outside / "c.h5")
    write_h5(root / "a.h5", data=h5py.ExternalLink("b.h5", "/data/x" if target == "group" else "/data"))
    with pytest.raises(UserError, match=r"b.h5 is a named pipe|b.h5: data(/x)? is a link or a group"):
        open_release(root)


@pytest.mark.parametrize("value", [h5py.SoftLink("/label"), h5py.SoftLink("/nothing")])
def test_h5_soft_links_are_refused(release, value):
    write_h5(release[0] / "a.h5", data=value)
    with pytest.raises(UserError, match=r"a.h5: data is a link or a group"):
        open_release(release[0])


def test_h5_storage_in_other_files_stays_within_the_data_folder(release):
    root, outside = release
    size = POINTS.nbytes
    for folder in (root, outside):
        POINTS.tofile(folder / "raw")
        with h5py.File(root / "a.h5", "w") as file:
            file.create_dataset("data", POINTS.shape, "f4", external=[(str(folder / "raw"), 0, size)])
            file["label"] = np.arange(4) % 2
        if folder == root:
            np.testing.assert_array_equal(open_release(root).points(3), POINTS[3])
            (root / "raw").write_bytes(b"short")
            with pytest.raises(UserError, match=r"a.h5: data claims 960 bytes, more than is stored"):
                open_release(root)
        else:
            with pytest.raises(UserError, match=r"a.h5: data lies in .*raw, outside .*root"):
                open_release(root)


def test_h5_data_put_together_from_other_files_are_refused(release):
    root, outside = release
    write_h5(outside / "b.h5")
    layout = h5py.VirtualLayout(POINTS.shape, "f4")
    layout[:] = h5py.VirtualSource(str(outside / "b.h5"), "data", POINTS.shape)
    with h5py.File(root / "a.h5", "w") as file:
        file.create_virtual_dataset("data", layout)
        file["label"] = np.arange(4) % 2
    with pytest.raises(UserError, match=r"a.h5: data is put together from other files"):
        open_release(root)


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (1, 1000, 3)}, {"chunks": (1, 1000, 3), "compression": "gzip"}]
)
def test_h5_data_must_be_stored(release, options):
    with h5py.File(release[0] / "a.h5", "w") as file:
        file.create_dataset("data", (10**9, 1000, 3), "f4", **options)
        file["label"] = np.arange(4)
    with pytest.raises(UserError, match=r"a.h5: data claims 12000000000000 bytes, more than is stored"):
        open_release(release[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.array(["a", "b"], dtype="S1")}, r"a.h5: data holds \|S1; expected numbers"),
        ({"data": POINTS.transpose(0, 2, 1)}, r"a.h5 \(data\) has shape \(3, 20\), more columns than points"),
        ({"data": POINTS[0]}, r"data has shape \(20, 3\) and label \(4,\)"),
        ({"label": np.eye(4)}, r"data has shape \(4, 20, 3\) and label \(4, 4\)"),
        ({"label": np.arange(3)}, r"data has shape \(4, 20, 3\) and label \(3,\)"),
        (
            {"label": np.array([0, 1, np.nan, 1])},
            "a.h5: cloud 2 has label nan, but .*shape_names.txt has 2 classes",
        ),
        ({"label": np.array([0, 1.7, 1, 1])}, r"a.h5: cloud 1 has label 1.7, but"),
        ({"label": np.array([0, 1, 1, -1], dtype=np.int8)}, r"a.h5: cloud 3 has label -1, but"),
        (
            {"label": np.array([2**63, 1, 1, 1], dtype=np.uint64)},
            r"a.h5: cloud 0 has label 9223372036854775808",
        ),
    ],
)
def test_h5_files_of_other_content(release, changes, message):
    write_h5(release[0] / "a.h5", **changes)
    with pytest.raises(UserError, match=message):
        open_release(release[0])


def test_labels_that_are_whole_numbers_of_another_type_are_read(release):
    write_h5(release[0] / "a.h5", label=np.array([0.0, 1.0, 1.0, 0.0]))
    labels = open_release(release[0]).labels
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 1, 0]


def test_lists_do_not_lead_out_of_the_folder(tmp_path):
    root = tmp_path / "root"
    (root / "train_test_split").mkdir(parents=True)
    (root / "modelnet40_shape_names.txt").write_text("..\n../../etc\n/etc\nchair\n")
    listing = root / "modelnet40_train.txt"
    for line in ("../../etc_passwd", "/etc_passwd", ".._x", "chair_\x1b[2J", "chair_" + "x" * 300):
        listing.write_text(f"chair_0001\n{line}\n")
        with pytest.raises(
            UserError, match=r"modelnet40_train.txt, line 2, names .*(leads out of|not a file name)"
        ):
            read_clouds(PointDataConfig("normal_resampled", str(root)), "train")
    (root / "test.txt").write_text("")
    for line in ("../../x-1.npy", "/x-1.npy", "a\\..\\x-1.npy"):
        (root / "train.txt").write_text(line)
        with pytest.raises(UserError, match=r"train.txt, line 1, names .*which leads out of"):
            read_clouds(PointDataConfig("shapenet55", str(root)), "train")
    (root / "train.txt").write_text("chair.npy")
    with pytest.raises(UserError, match=r"train.txt, line 1, has 'chair.npy'; expected <synset>-<id>.npy"):
        read_clouds(PointDataConfig("shapenet55", str(root)), "train")
    (root / "train_test_split" / "shuffled_train_file_list.json").write_text(json.dumps(["a/../x"]))
    with pytest.raises(
        UserError, match=r"shuffled_train_file_list.json, item 0, names '../x.txt', which leads out"
    ):
        read_clouds(PointDataConfig("shapenetpart", str(root)), "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "is not JSON"),
        ("[" + "9" * 5000 + "]", "is not JSON"),
        ("<html>", "is not JSON .* it looks like an HTML page"),
        ("{}", "holds a dict; expected a list"),
        ("5", "holds a int; expected a list"),
        ("[5]", r"lists 5 \(item 0\); expected shape_data"),
        ('["s/1/a", ["s/1/a"]]', r"lists list \(item 1\)"),
        ('["1/"]', r"lists '1/' \(item 0\)"),
        ('["s/\\u001b[2J/a"]', "item 0, names .* which is not a file name"),
        ('["s/\\ud800/a"]', "item 0, names .* which is not a file name"),
    ],
)
def test_json_of_other_content(tmp_path, text, message):
    (tmp_path / "train_test_split").mkdir()
    (tmp_path / "train_test_split" / "shuffled_train_file_list.json").write_text(text)
    with pytest.raises(UserError, match=message) as excinfo:
        read_clouds(PointDataConfig("shapenetpart", str(tmp_path)), "train")
    assert "shuffled_train_file_list.json" in str(excinfo.value)
    assert str(excinfo.value).isprintable()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_lists_are_read_in_the_encodings_of_editors(tmp_path, encoding):
    (tmp_path / "names.txt").write_bytes("Stühle\nbed".encode(encoding))
    assert read_text(tmp_path / "names.txt") == "Stühle\nbed"


def test_a_file_without_read_permission_is_reported(tmp_path, monkeypatch):
    (tmp_path / "a.npy").write_bytes(b"")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("map_points.data.files.Path.open", refuse)
    with pytest.raises(UserError, match=r"cannot read .*a.npy \(Permission denied\)"):
        read_npy(tmp_path / "a.npy")
