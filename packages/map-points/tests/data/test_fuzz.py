"""Mutants of every kind of file that clouds are read from: a well-formed answer, or a sentence that names the file."""

import json
import pickle
import struct
from functools import partial

import h5py
import laspy
import numpy as np
import pytest

from map_core.testing.mutations import Case, check_mutants, run
from map_points.data import PointDataConfig, read_cloud_files, read_clouds, read_fold
from map_points.data.shapenetpart import read_shapenetpart

POINTS = np.random.default_rng(0).normal(size=(6, 12, 6)).astype(np.float32)
LABELS = np.arange(6) % 2
NAMES = ("chair", "night_stand")
PLY_HEADER = (
    "ply\nformat {} 1.0\ncomment made up\nelement vertex 12\nproperty float x\nproperty float y\nproperty float z\n"
    "end_header\n"
)


def text(points):
    return "".join(" ".join(f"{value:.6f}" for value in row) + "\n" for row in points.tolist())


def write_file(name, data, folder):
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def write_npy(folder):
    np.save(folder / "c.npy", POINTS[0])


def write_npz(folder, save=np.savez):
    arrays = {
        f"{split}_{axis}": v for split in ("train", "test") for axis, v in (("x", POINTS), ("y", LABELS))
    }
    save(folder / "d.npz", **arrays, classes=np.array(NAMES))


def write_h5(folder, **options):
    write_file("shape_names.txt", "\n".join(NAMES), folder)
    write_file("train_files.txt", "data/a.h5\n", folder)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("data", data=POINTS, **options)
        file.create_dataset("label", data=LABELS[:, None].astype(np.uint8))


def write_dat(folder, protocol):
    write_file("modelnet40_shape_names.txt", "\n".join(NAMES), folder)
    content = [list(POINTS), [np.array([label], dtype=np.int32) for label in LABELS]]
    write_file("modelnet40_train_12.dat", pickle.dumps(content, protocol), folder)


def write_fold(folder, protocol):
    (folder / "2way_3shot").mkdir(exist_ok=True)
    items = [(points, label, i) for i, (points, label) in enumerate(zip(POINTS, LABELS, strict=True))]
    write_file("2way_3shot/0.pkl", pickle.dumps({"train": items, "test": items}, protocol), folder)


def write_tree(folder):
    write_file("modelnet40_shape_names.txt", "\n".join(NAMES), folder)
    write_file("modelnet40_train.txt", "chair_0001\nnight_stand_0002\n", folder)
    for i, name in enumerate(("chair/chair_0001.txt", "night_stand/night_stand_0002.txt")):
        (folder / name).parent.mkdir(exist_ok=True)
        write_file(name, text(POINTS[i]), folder)


def write_parts(folder):
    lists = {"train": ["90000001/a", "90000002/b"], "val": ["90000001/a"], "test": ["90000002/b"]}
    (folder / "train_test_split").mkdir(exist_ok=True)
    for part, items in lists.items():
        paths = json.dumps([f"shape_data/{item}" for item in items])
        write_file(f"train_test_split/shuffled_{part}_file_list.json", paths, folder)
    write_file("synsetoffset2category.txt", "chair\t90000001\nnight_stand\t90000002\n", folder)
    for i, name in enumerate(("90000001/a.txt", "90000002/b.txt")):
        (folder / name).parent.mkdir(exist_ok=True)
        write_file(name, text(np.column_stack([POINTS[i], np.arange(12) % 2 + 2 * i])), folder)


def check(clouds):
    """Every label names a class, every cloud is a table of finite coordinates."""
    assert len(clouds) > 0
    for i in range(len(clouds)):
        points = clouds.points(i)
        assert points.ndim == 2
        assert points.shape[1] == 3
        assert len(points) > 0
        assert np.isfinite(points).all()
        assert not clouds.classes or 0 <= clouds.labels[i] < len(clouds.classes)


def read_one(name, folder):
    check(read_cloud_files(str(folder / name)))


def read_source(source, folder):
    root = folder / "d.npz" if source == "modelnet40_npz" else folder
    check(read_clouds(PointDataConfig(source, str(root)), "train"))


def read_episode(folder):
    episode = read_fold(folder, 2, 3, 0)
    check(episode.train)
    check(episode.test)
    assert set(episode.train.labels.tolist()) == {0, 1}


def read_parts(folder):
    clouds = read_shapenetpart(folder, "train")
    for i in range(len(clouds)):
        points, parts = clouds.labelled(i)
        assert np.isfinite(points).all()
        assert set(parts) <= set(clouds.parts[clouds.labels[i]])


def single(name, write, **options):
    return Case(name, name, write, partial(read_one, name), **options)


def source(name, kind, file, write, **options):
    return Case(name, file, write, partial(read_source, kind), **options)


def write_las(folder, name="c.las"):
    cloud = laspy.create(point_format=3)
    cloud.x, cloud.y, cloud.z = POINTS[0][:, :3].T.astype(np.float64)
    cloud.write(folder / name)


PCD_HEADER = "FIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nPOINTS 12\nDATA {}\n"
PCD = PCD_HEADER.format("binary").encode() + POINTS[0][:, :3].tobytes()
LITERALS = b"".join(b"\x0f" + POINTS[0][:, :3].T.tobytes()[i : i + 16] for i in range(0, 144, 16))
COMPRESSED = PCD_HEADER.format("binary_compressed").encode() + struct.pack("<II", 153, 144) + LITERALS
BINARY = (PLY_HEADER.format("binary_big_endian").encode()) + POINTS[0][:, :3].astype(">f4").tobytes()
CASES = (
    single("c.npy", write_npy, complete=True),
    single("c.ply", partial(write_file, "c.ply", BINARY), complete=True),
    single("ascii.ply", partial(write_file, "ascii.ply", PLY_HEADER.format("ascii") + text(POINTS[0][:, :3]))),
    single("c.pcd", partial(write_file, "c.pcd", PCD), complete=True),
    single("ascii.pcd", partial(write_file, "ascii.pcd", PCD_HEADER.format("ascii") + text(POINTS[0][:, :3]))),
    single("packed.pcd", partial(write_file, "packed.pcd", COMPRESSED), complete=True),
    single("c.off", partial(write_file, "c.off", "OFF\n12 0 0\n" + text(POINTS[0][:, :3]))),
    single("c.las", write_las, complete=True),
    single("c.laz", partial(write_las, name="c.laz"), complete=True),
    single("c.npz", lambda folder: np.savez(folder / "c.npz", points=POINTS[0]), complete=True),
    single("c.txt", partial(write_file, "c.txt", text(POINTS[0]))),
    single("pts.txt", partial(write_file, "pts.txt", "x;y;z\n12\n" + text(POINTS[0][:, :3]).replace(" ", ";"))),
    source("npz", "modelnet40_npz", "d.npz", write_npz, complete=True),
    source("npz_deflated", "modelnet40_npz", "d.npz", partial(write_npz, save=np.savez_compressed), complete=True),
    source("h5", "hdf5", "a.h5", write_h5, complete=True),
    source("h5_gzip", "hdf5", "a.h5", partial(write_h5, compression="gzip", shuffle=True), complete=True),
    source("h5_names", "hdf5", "shape_names.txt", write_h5),
    source("h5_list", "hdf5", "train_files.txt", write_h5, lists=True),
    *(
        source(f"dat_{protocol}", "modelnet_dat", "modelnet40_train_12.dat", partial(write_dat, protocol=protocol),
               complete=True)
        for protocol in (0, 2, 4, 5)
    ),
    *(
        Case(f"pkl_{protocol}", "2way_3shot/0.pkl", partial(write_fold, protocol=protocol), read_episode, complete=True)
        for protocol in (2, 4)
    ),
    source("tree_list", "normal_resampled", "modelnet40_train.txt", write_tree, lists=True),
    source("tree_cloud", "normal_resampled", "chair/chair_0001.txt", write_tree),
    *(
        Case(name, file, write_parts, read_parts, lists=name == "parts_json")
        for name, file in (
            ("parts_json", "train_test_split/shuffled_train_file_list.json"),
            ("parts_names", "synsetoffset2category.txt"),
            ("parts_cloud", "90000001/a.txt"),
        )
    ),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mutants(case, tmp_path, unchecked):
    outcomes = check_mutants(case, tmp_path, seed=0, count=60)
    assert outcomes["refused"] > 5


if __name__ == "__main__":
    run(CASES)
