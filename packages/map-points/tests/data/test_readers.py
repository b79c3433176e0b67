"""Readers on small files in the published layouts, and what they say about broken ones."""

import os
import pickle

import h5py
import numpy as np
import pytest

from map_core.errors import UserError
from map_points.data import PointDataConfig, read_clouds
from map_points.data.files import require_listed
from map_points.data.pickles import read_pickle
from map_points.domain import open_data
from map_points.factory import PointModelConfig

CLASSES = ("airplane", "night_stand")


def cloud(seed, columns=3, n=40):
    return np.random.default_rng(seed).normal(size=(n, columns)).astype(np.float32)


def write_names(root, name="modelnet40_shape_names.txt"):
    (root / name).write_text("\n".join(CLASSES) + "\n")


@pytest.fixture
def npz(tmp_path):
    arrays = {"classes": np.array(CLASSES)}
    for split, count in (("train", 4), ("test", 2)):
        arrays[f"{split}_x"] = np.stack([cloud(i) for i in range(count)])
        arrays[f"{split}_y"] = np.arange(count) % 2
    np.savez(tmp_path / "modelnet40_1024.npz", **arrays)
    return tmp_path / "modelnet40_1024.npz", arrays


def test_modelnet40_npz(npz):
    file, arrays = npz
    for root in (file, file.parent):
        config = PointDataConfig("modelnet40_npz", str(root))
        clouds = read_clouds(config, "train")
        assert len(clouds) == 4
        assert clouds.classes == CLASSES
        assert config.upward == "z"
        np.testing.assert_array_equal(clouds.points(3), arrays["train_x"][3])
        assert clouds.labels.tolist() == [0, 1, 0, 1]
    del arrays["test_y"]
    np.savez(file, **arrays)
    with pytest.raises(UserError, match=r"modelnet40_1024.npz has no test_y; it holds"):
        read_clouds(PointDataConfig("modelnet40_npz", str(file)), "test")


def test_a_broken_cloud_of_many_is_named_by_its_number(npz):
    file, arrays = npz
    arrays["train_x"][2, 5, 1] = np.nan
    np.savez(file, **arrays)
    config = PointDataConfig("modelnet40_npz", str(file), num_points=40)
    message = r"modelnet40_1024.npz \(train\), cloud 2 has NaN or infinite coordinates at point 5 \(1 of 40 points\)"
    with pytest.raises(UserError, match=message):
        read_clouds(config, "train").points(2)
    with pytest.raises(UserError, match=message):  # its number stays that in the file
        read_clouds(config, "train").select(np.array([0, 2])).points(1)


def write_h5(path, points, labels, keys=("data", "label")):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[keys[0]], file[keys[1]] = points, labels


@pytest.fixture
def hdf5(tmp_path):
    write_names(tmp_path, "shape_names.txt")
    for part in range(2):
        points = np.stack([cloud(10 * part + i) for i in range(3)])
        write_h5(tmp_path / f"ply_data_train{part}.h5", points, np.array([[0], [1], [part]], dtype=np.uint8))
    prefix = "data/modelnet40_ply_hdf5_2048"
    (tmp_path / "train_files.txt").write_text("".join(f"{prefix}/ply_data_train{i}.h5\n" for i in range(2)))
    return tmp_path


def test_hdf5_release(hdf5):
    config = PointDataConfig("hdf5", str(hdf5))
    clouds = read_clouds(config, "train")
    assert clouds.labels.tolist() == [0, 1, 0, 0, 1, 1]
    assert config.upward == "y"
    assert PointDataConfig("hdf5", str(hdf5), up_axis="z").upward == "z"
    np.testing.assert_array_equal(clouds.points(4), cloud(11))


def test_an_h5_file_without_its_keys_is_named(hdf5):
    file = hdf5 / "ply_data_train1.h5"
    write_h5(file, cloud(0)[None], np.zeros((1, 1)), keys=("points", "label"))
    with pytest.raises(
        UserError, match=r"ply_data_train1.h5 must have the keys data and label; it has label"
    ):
        read_clouds(PointDataConfig("hdf5", str(hdf5)), "train")
    file.write_bytes(b"no h5")
    with pytest.raises(UserError, match=r"ply_data_train1.h5 is not an h5 file .* download it again"):
        read_clouds(PointDataConfig("hdf5", str(hdf5)), "train")


def test_h5_files_of_different_sizes_are_refused(hdf5):
    write_h5(hdf5 / "ply_data_train1.h5", cloud(0, n=50)[None], np.array([[0]]))
    with pytest.raises(UserError, match=r"train_files.txt hold clouds of \[40, 50\] points"):
        read_clouds(PointDataConfig("hdf5", str(hdf5)), "train")


def test_a_label_outside_the_class_list_is_named(hdf5):
    write_h5(hdf5 / "ply_data_train1.h5", cloud(0)[None], np.array([[7]]))
    with pytest.raises(
        UserError,
        match=r"ply_data_train1.h5: cloud 0 has label 7, but .*shape_names.txt has 2 classes .*; use the class list",
    ):
        read_clouds(PointDataConfig("hdf5", str(hdf5)), "train")


@pytest.fixture
def txt_tree(tmp_path):
    write_names(tmp_path)
    names = ["airplane_0001", "night_stand_0002"]
    (tmp_path / "modelnet40_train.txt").write_text("\n".join(names) + "\n")
    for i, name in enumerate(names):
        (tmp_path / CLASSES[i]).mkdir()
        np.savetxt(tmp_path / CLASSES[i] / f"{name}.txt", cloud(i, 6), delimiter=",", fmt="%.6f")
    return tmp_path


def test_normal_resampled_tree(txt_tree):
    clouds = read_clouds(PointDataConfig("normal_resampled", str(txt_tree)), "train")
    assert clouds.labels.tolist() == [0, 1]
    np.testing.assert_allclose(clouds.points(1), cloud(1, 6)[:, :3], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,4\n", r"night_stand_0002.txt has shape \(2, 2\)"),
        ("1,2,3\n1,nan,3\n", r"night_stand_0002.txt has NaN or infinite coordinates at point 1 \(1 of 2"),
        ("1,2,x\n", r"night_stand_0002.txt: line 1 has 'x', no number"),
    ],
)
def test_broken_clouds_are_named(txt_tree, text, message):
    (txt_tree / "night_stand" / "night_stand_0002.txt").write_text(text)
    clouds = read_clouds(PointDataConfig("normal_resampled", str(txt_tree)), "train")
    with pytest.raises(UserError, match=message):
        clouds.points(1)


def test_a_listed_class_that_has_no_name_is_refused(txt_tree):
    (txt_tree / "modelnet40_train.txt").write_text("sofa_0001\n")
    with pytest.raises(
        UserError, match=r"modelnet40_train.txt, line 1, lists 'sofa_0001', a cloud of 'sofa'"
    ):
        read_clouds(PointDataConfig("normal_resampled", str(txt_tree)), "train")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_point_bert_pickles(tmp_path, protocol):
    write_names(tmp_path)
    content = [[cloud(i, 6) for i in range(3)], [np.array([i % 2], dtype=np.int32) for i in range(3)]]
    (tmp_path / "modelnet40_test_8192pts_fps.dat").write_bytes(pickle.dumps(content, protocol))
    clouds = read_clouds(PointDataConfig("modelnet_dat", str(tmp_path)), "test")
    assert clouds.labels.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(clouds.points(2), cloud(2, 6)[:, :3])
    with pytest.raises(UserError, match=r"must hold one modelnet40_train_\*.dat; found none"):
        read_clouds(PointDataConfig("modelnet_dat", str(tmp_path)), "train")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_malicious_pickle_is_refused_before_it_acts(tmp_path):
    file, target = tmp_path / "evil.dat", tmp_path / "made"
    file.write_bytes(pickle.dumps([[cloud(0)], Malicious(str(target))]))
    with pytest.raises(UserError, match=r"evil.dat was refused \(it asks for posix.mkdir\)"):
        read_pickle(file)
    assert not target.exists()
    pickle.loads(file.read_bytes())  # the file is what it claims to be
    assert target.exists()


@pytest.mark.parametrize("payload", [b"", b"\x80\x04", b"cnumpy\nload\n.", b"ccodecs\nopen\n."])
def test_other_pickles_are_refused(tmp_path, payload):
    (tmp_path / "x.dat").write_bytes(payload)
    with pytest.raises(UserError, match=r"x.dat was refused"):
        read_pickle(tmp_path / "x.dat")


@pytest.mark.parametrize(
    ("variant", "file"),
    [
        ("obj_bg", "main_split/{}_objectdataset.h5"),
        ("obj_only", "main_split_nobg/{}_objectdataset.h5"),
        ("pb_t50_rs", "main_split/{}_objectdataset_augmentedrot_scale75.h5"),
    ],
)
def test_scanobjectnn(tmp_path, variant, file):
    for part, label in (("training", 14), ("test", 3)):
        write_h5(tmp_path / file.format(part), cloud(label)[None], np.array([label]))
    config = PointDataConfig("scanobjectnn", str(tmp_path), variant=variant, num_points=40)
    data = open_data(config, PointModelConfig(), "finetune")
    assert data.classes[14] == "toilet"
    assert len(data.classes) == 15
    points, label = data.evaluation[0]
    assert label == 3
    np.testing.assert_array_equal(points.numpy(), cloud(3))  # its users do not normalise it


def test_shapenet55(tmp_path):
    (tmp_path / "shapenet_pc").mkdir()
    for split, names in {"train": ["0269-a.npy", "0369-b.npy"], "test": ["0469-c.npy"]}.items():
        (tmp_path / f"{split}.txt").write_text("\n".join(names))
        for i, name in enumerate(names):
            np.save(tmp_path / "shapenet_pc" / name, cloud(i))
    clouds = read_clouds(PointDataConfig("shapenet55", str(tmp_path)), "train")
    assert clouds.classes == ("0269", "0369", "0469")
    np.testing.assert_array_equal(clouds.points(1), cloud(1))
    np.save(tmp_path / "shapenet_pc" / "0269-a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match=r"0269-a.npy holds object; only arrays of numbers"):
        clouds.points(0)


@pytest.fixture
def shapenet(tmp_path):
    """ShapeNet55-34 as published, with a cloud less in the lists of ShapeNet-34."""
    names = [f"026{i}-a.npy" for i in range(4)]
    root = tmp_path / "ShapeNet55-34"
    for folder, train in (("ShapeNet-55", names[:3]), ("ShapeNet-34", names[:2])):
        (root / folder).mkdir(parents=True)
        (root / folder / "train.txt").write_text("\n".join(train))
        (root / folder / "test.txt").write_text(names[3])
    (root / "shapenet_pc").mkdir()
    for i, name in enumerate(names):
        np.save(root / "shapenet_pc" / name, cloud(i))
    return root


@pytest.mark.parametrize(
    ("root", "count"), [(".", 3), ("ShapeNet-55", 3), ("ShapeNet-34", 2)], ids=["whole", "55", "34"]
)
def test_shapenet55_as_published(shapenet, monkeypatch, root, count):
    for folder in (shapenet / root, root):  # the second one relative to the first
        clouds = read_clouds(PointDataConfig("shapenet55", str(folder)), "train")
        assert clouds.labels.tolist() == [0, 1, 2][:count]
        np.testing.assert_array_equal(clouds.points(1), cloud(1))
        monkeypatch.chdir(shapenet)


def test_the_lists_beside_the_clouds_come_first(shapenet):
    for name in ("train.txt", "test.txt"):
        (shapenet / name).write_text("0263-a.npy")
    assert len(read_clouds(PointDataConfig("shapenet55", str(shapenet)), "train")) == 1


@pytest.mark.parametrize("missing", [1, 2])
def test_listed_clouds_that_are_missing_are_counted_when_a_set_is_opened(shapenet, missing):
    for i in range(missing):
        (shapenet / "shapenet_pc" / f"026{i + 1}-a.npy").unlink()
    message = (
        f"ShapeNet-55/train.txt lists 3 clouds, and {missing} cannot be found, the first being "
        f"{shapenet}/shapenet_pc/0261-a.npy; copy or download them again, or take them out of the list"
    )
    with pytest.raises(UserError, match=message):
        read_clouds(PointDataConfig("shapenet55", str(shapenet)), "train")
    assert len(read_clouds(PointDataConfig("shapenet55", str(shapenet)), "test")) == 1


def test_a_listed_name_that_is_too_long_for_the_system_is_missing(shapenet):
    (shapenet / "ShapeNet-55" / "train.txt").write_text(f"{'é' * 200}-a.npy\n")
    with pytest.raises(UserError, match="lists 1 clouds, and 1 cannot be found"):
        read_clouds(PointDataConfig("shapenet55", str(shapenet)), "train")


@pytest.mark.parametrize("source", ["hdf5", "normal_resampled", "modelnet_dat"])
def test_a_root_that_is_too_long_for_the_system_is_named(source):
    with pytest.raises(UserError, match="File name too long"):
        read_clouds(PointDataConfig(source, "a" * 300), "train")


def test_listed_clouds_are_looked_up_once_a_folder(tmp_path, monkeypatch):
    paths = [tmp_path / "a" / f"{i}.npy" for i in range(100)]
    (tmp_path / "a").mkdir()
    for path in paths:
        path.touch()
    looks = []
    monkeypatch.setattr(os, "listdir", lambda path, look=os.listdir: looks.append(path) or look(path))
    monkeypatch.setattr(type(tmp_path), "exists", None)
    require_listed(paths, tmp_path / "list")
    assert looks == [tmp_path / "a"]


def test_a_listed_text_that_is_missing_is_named(txt_tree):
    (txt_tree / "night_stand" / "night_stand_0002.txt").unlink()
    with pytest.raises(UserError, match=r"modelnet40_train.txt lists 2 clouds, and 1 cannot be found"):
        read_clouds(PointDataConfig("normal_resampled", str(txt_tree)), "train")


@pytest.mark.parametrize(
    ("source", "files", "message"),
    [
        (
            "scanobjectnn",
            ["h5_files/main_split/training_objectdataset.h5"],
            r" holds h5_files; --data.root must name the folder with main_split and main_split_nobg",
        ),
        (
            "scanobjectnn",
            ["main_split/test_objectdataset.h5"],
            r"main_split/training_objectdataset_augmentedrot_scale75.h5 does not exist; copy or download it again",
        ),
        ("shapenet55", ["0269-a.npy"], r" holds 0269-a.npy; --data.root must name ShapeNet55-34, or the folder"),
        ("shapenet55", ["train.txt"], r"test.txt does not exist; copy or download it again"),
        ("shapenetpart", ["x/train_test_split/a"], r" holds x; --data.root must name the folder with train_test"),
        ("hdf5", [], r" holds nothing; --data.root must name the folder with train_files.txt and test_files.txt"),
        (
            "hdf5",
            ["modelnet40_train_8192pts_fps.dat", "modelnet40_shape_names.txt"],
            r"holds another release of ModelNet40 than data.source hdf5 reads: give --data.source modelnet_dat",
        ),
        ("modelnet_dat", ["train_files.txt"], r"than data.source modelnet_dat reads: give --data.source hdf5"),
        ("normal_resampled", ["modelnet40_test.txt"], r"names.txt does not exist; copy or download it again"),
    ],
)  # fmt: skip
def test_a_wrong_root_is_told_from_a_missing_file(tmp_path, source, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x-1.npy")
    with pytest.raises(UserError, match=message):
        read_clouds(PointDataConfig(source, str(tmp_path)), "train")


def test_a_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "main_split").write_text("")
    with pytest.raises(UserError, match=r"main_split is a file; --data.root must name the folder with"):
        read_clouds(PointDataConfig("scanobjectnn", str(tmp_path / "main_split")), "train")


@pytest.mark.parametrize("label", [-1, 15])
def test_a_label_outside_a_fixed_list_of_classes_counts_from_0(tmp_path, label):
    write_h5(tmp_path / "main_split/training_objectdataset.h5", cloud(0)[None], np.array([label]))
    message = rf"cloud 0 has label {label}, but there are 15 classes \(0 to 14\); labels count from 0: is it another"
    with pytest.raises(UserError, match=message):
        read_clouds(PointDataConfig("scanobjectnn", str(tmp_path), variant="obj_bg"), "train")


def test_missing_paths_are_named(tmp_path):
    for source in ("modelnet40_npz", "hdf5", "normal_resampled", "modelnet_dat", "shapenet55"):
        with pytest.raises(UserError, match=r"does not exist; --data\.root must name"):
            read_clouds(PointDataConfig(source, str(tmp_path / "none")), "train")
        with pytest.raises(UserError, match=r"give --data.root"):
            read_clouds(PointDataConfig(source), "train")


@pytest.mark.parametrize("name", ["night_stand_1", "night_stand_10001", "night_stand_x"])
def test_names_are_split_at_the_last_underscore(txt_tree, name):
    (txt_tree / "modelnet40_train.txt").write_text(f"\ufeff{name}\n", encoding="utf-8")
    np.savetxt(txt_tree / "night_stand" / f"{name}.txt", cloud(5), delimiter=",")
    clouds = read_clouds(PointDataConfig("normal_resampled", str(txt_tree)), "train")
    assert clouds.labels.tolist() == [1]
    np.testing.assert_allclose(clouds.points(0), cloud(5))


@pytest.mark.parametrize(
    ("line", "message"), [("airplane", "line 2, lists 'airplane'"), ("_1", "line 2, lists '_1'")]
)
def test_names_without_a_class_are_refused_by_line(txt_tree, line, message):
    (txt_tree / "modelnet40_train.txt").write_text(f"airplane_0001\n{line}\n")
    with pytest.raises(UserError, match=f"modelnet40_train.txt, {message}"):
        read_clouds(PointDataConfig("normal_resampled", str(txt_tree)), "train")


def test_the_clouds_of_several_files_keep_their_files_and_numbers(hdf5):
    clouds = read_clouds(PointDataConfig("hdf5", str(hdf5)), "train").select(np.array([5, 1]))
    assert [clouds.name(i) for i in range(2)] == [
        f"{hdf5 / 'ply_data_train1.h5'}, cloud 2",
        f"{hdf5 / 'ply_data_train0.h5'}, cloud 1",
    ]
    np.testing.assert_array_equal(clouds.points(0), cloud(12))
    assert clouds.labels.tolist() == [1, 1]
