"""ShapeNetPart's layout: read, drawn from, refused where it is broken; and the small set written in it."""

import json

import numpy as np
import pytest
import torch

from map_core.errors import UserError
from map_points.data import PointDataConfig, load_part_data, read_clouds, shapenetpart, write_part_shapes
from map_points.data.part_shapes import CATEGORIES
from map_points.data.parts import draw_points
from map_points.data.shapenetpart import UNLABELLED, read_shapenetpart
from map_points.data.txt import read_txt
from map_points.segmentation.metrics import part_totals, parts_of_categories

AIRPLANE, BAG, CUSTOM = "02691156", "02773838", "90000000"


def rows(seed, parts, n=30):
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.normal(size=(n, 6)), np.resize(parts, n)]).astype(np.float32)


@pytest.fixture
def root(tmp_path):
    """Two published categories and a custom one, with all three lists."""
    lists = {
        "train": [(AIRPLANE, "a"), (CUSTOM, "x")],
        "val": [(BAG, "b")],
        "test": [(BAG, "c"), (CUSTOM, "y")],
    }
    parts = {AIRPLANE: [0, 1, 2, 3], BAG: [4, 5], CUSTOM: [7, 9]}
    (tmp_path / "train_test_split").mkdir()
    for split, items in lists.items():
        paths = [f"shape_data/{synset}/{name}" for synset, name in items]
        (tmp_path / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(paths))
        for synset, name in items:
            (tmp_path / synset).mkdir(exist_ok=True)
            np.savetxt(tmp_path / synset / f"{name}.txt", rows(ord(name), parts[synset]), fmt="%.6f")
    (tmp_path / "synsetoffset2category.txt").write_text(f"Airplane\t{AIRPLANE}\nBag\t{BAG}\nOwn\t{CUSTOM}\n")
    return tmp_path


def test_the_layout_is_read(root):
    train, test = read_shapenetpart(root, "train"), read_shapenetpart(root, "test")
    assert train.classes == ("Airplane", "Bag", "Own")
    assert train.labels.tolist() == [0, 2, 1]  # train, then val
    assert test.labels.tolist() == [1, 2]
    assert train.parts == ((0, 1, 2, 3), (4, 5), (7, 9))
    assert PointDataConfig("shapenetpart", str(root)).upward == "y"
    points, parts = test.labelled(0)
    expected = rows(ord("c"), [4, 5])
    np.testing.assert_allclose(points, expected[:, :3], atol=1e-6)
    assert parts.tolist() == expected[:, 6].astype(int).tolist()
    np.testing.assert_allclose(test.points(0), points)


def test_the_training_files_are_read_once_for_both_splits(root, monkeypatch):
    read = []
    monkeypatch.setattr(shapenetpart, "read_txt", lambda path: read.append(path.name) or read_txt(path))
    data = load_part_data(PointDataConfig("shapenetpart", str(root), num_points=30))
    assert read == ["x.txt"]
    assert data.evaluation.clouds.parts == data.parts == ((0, 1, 2, 3), (4, 5), (7, 9))


def test_without_a_list_of_categories_synsets_are_names(root):
    (root / "synsetoffset2category.txt").unlink()
    assert read_shapenetpart(root, "train").classes == (AIRPLANE, BAG, CUSTOM)


def test_it_is_a_source_of_clouds_too(root):
    clouds = read_clouds(PointDataConfig("shapenetpart", str(root)), "test")
    assert clouds.points(1).shape == (30, 3)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (rows(0, [4, 5])[:, :6], r"c.txt has shape \(30, 6\); expected \(points, 7\)"),
        (rows(0, [4, 3]), r"c.txt: point 1 has part 3, but Bag has 4, 5"),
        (rows(0, [4, 4.5]), r"c.txt: point 1 has part 4.5; parts are whole numbers from 0"),
        (np.full((8, 7), np.inf), r"c.txt has NaN or infinite coordinates at point 0"),
    ],
)
def test_broken_files_are_named(root, broken, message):
    np.savetxt(root / BAG / "c.txt", broken)
    with pytest.raises(UserError, match=message):
        read_shapenetpart(root, "test").labelled(0)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_listed_clouds_that_are_missing_are_counted_when_the_set_is_opened(root, split):
    listing = root / "train_test_split" / f"shuffled_{split}_file_list.json"
    synset, name = json.loads(listing.read_text())[0].split("/")[1:]
    (root / synset / f"{name}.txt").unlink()
    count = len(json.loads(listing.read_text()))
    message = rf"shuffled_{split}_file_list.json lists {count} clouds, and 1 cannot be found, .*/{name}.txt;"
    with pytest.raises(UserError, match=message):
        read_shapenetpart(root, "test" if split == "test" else "train")


def test_published_parts_count_from_0_through_all_categories(root):
    np.savetxt(root / AIRPLANE / "a.txt", rows(0, [1, 2, 3, 4]), fmt="%.6f")
    np.savetxt(root / BAG / "b.txt", rows(0, [4, 255]), fmt="%.6f")
    clouds = read_shapenetpart(root, "train")
    message = (
        r"a.txt: point 3 has part 4, but Airplane has 0, 1, 2, 3; parts count from 0, through all categories"
    )
    with pytest.raises(UserError, match=rf"{message}: correct it$"):
        clouds.labelled(0)
    with pytest.raises(
        UserError, match=r"part 255, but Bag has 4, 5; .* points without a part as --data.ignore"
    ):
        clouds.labelled(2)


def test_broken_lists_are_named(root):
    listing = root / "train_test_split" / "shuffled_test_file_list.json"
    for text, message in (
        ("[", r"shuffled_test_file_list.json is not JSON"),
        ('["c"]', r"lists 'c' \(item 0\); expected shape_data/<synset>/<id>"),
        (
            '["shape_data/123/c"]',
            r"lists clouds of 123 \(item 0\), which .*synsetoffset2category.txt does not have",
        ),
        ("[]", "lists no clouds for test"),
    ):
        listing.write_text(text)
        with pytest.raises(UserError, match=message):
            read_shapenetpart(root, "test")
    listing.unlink()
    with pytest.raises(UserError, match=r"shuffled_test_file_list.json does not exist"):
        read_shapenetpart(root, "test")
    (root / "synsetoffset2category.txt").write_text("Airplane\n")
    listing.write_text("[]")
    with pytest.raises(UserError, match=r"has the line 'Airplane'; expected a name and a synset"):
        read_shapenetpart(root, "train")


def test_draws_repeat_no_point_before_all_have_come():
    assert sorted(draw_points(10, 10).tolist()) == list(range(10))
    indices = draw_points(10, 25).tolist()
    assert sorted(indices[:10]) == sorted(indices[10:20]) == list(range(10))
    assert len(set(draw_points(50, 20).tolist())) == 20


def test_points_keep_their_parts(root):
    data = load_part_data(PointDataConfig("shapenetpart", str(root), num_points=64, unit_sphere=False))
    points, category, parts = data.evaluation[0]
    assert points.shape == (64, 3)
    assert category == 1
    whole, labels = data.evaluation.clouds.labelled(0)
    part_of = {
        tuple(p): int(label) for p, label in zip(whole.astype(np.float32).tolist(), labels, strict=True)
    }
    assert [part_of[tuple(p)] for p in points.tolist()] == parts.tolist()
    torch.manual_seed(3)
    first = data.train[0][0]
    torch.manual_seed(3)
    assert torch.equal(first, data.train[0][0])


def test_other_sources_have_no_parts():
    with pytest.raises(UserError, match=r"data.source 'shapes' has no parts"):
        load_part_data(PointDataConfig())


def test_written_shapes_are_read_back(two_part_shapes):
    train, test = (read_shapenetpart(two_part_shapes, split) for split in ("train", "test"))
    assert train.classes == CATEGORIES
    assert (len(train), len(test)) == (5 * (3 + 1), 5 * 2)
    assert train.parts == tuple((2 * i, 2 * i + 1) for i in range(5))
    for i in range(len(test)):
        points, parts = test.labelled(i)
        assert points.shape == (200, 3)
        assert set(parts) == set(test.parts[test.labels[i]])


def test_writing_depends_on_the_seed_alone(two_part_shapes, tmp_path):
    write_part_shapes(tmp_path / "more", train=4, val=1, test=1, points=200)
    name = "90000003/train_0002.txt"
    assert (tmp_path / "more" / name).read_text() == (two_part_shapes / name).read_text()
    with pytest.raises(UserError, match="exists and is not empty"):
        write_part_shapes(tmp_path / "more")
    with pytest.raises(UserError, match="train must be at least 1; got 0"):
        write_part_shapes(tmp_path / "other", train=0)


def test_a_held_out_part_and_a_subset(two_part_shapes):
    config = PointDataConfig("shapenetpart", str(two_part_shapes), holdout=0.25, subset=5)
    data = load_part_data(config)
    assert data.evaluated_on == "held-out 0.25 of the training split (seed 0)"
    assert sorted(data.evaluation.clouds.labels.tolist()) == [0, 1, 2, 3, 4]
    assert sorted(data.train.clouds.labels.tolist()) == [0, 1, 2, 3, 4]
    assert not set(data.train.clouds.paths) & set(data.evaluation.clouds.paths)
    assert data.train.clouds.labelled(0)[1].shape == (200,)


def write_rows(root, parts, *, synset=CUSTOM, names=("x", "y")):
    for name in names:
        np.savetxt(root / synset / f"{name}.txt", rows(ord(name), parts), fmt="%.6f")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([7, -1], r"x.txt: point 1 has part -1; parts are whole numbers from 0 .*--data.ignore_label"),
        ([7, 9.5], r"x.txt: point 1 has part 9.5; parts are whole numbers"),
        ([7, np.nan], r"x.txt: point 1 has part nan; parts are whole numbers"),
        ([7, 1e12], r"x.txt: point 1 has part 1e\+12; parts are whole numbers from 0 to 9999"),
        ([7, -100], r"x.txt: point 1 has part -100; parts are whole numbers"),
        ([7, 255], r"90000000 has points of part 255, the usual mark .*give --data.ignore_label 255"),
    ],
)
def test_parts_of_a_users_categories_are_checked(root, parts, message):
    write_rows(root, parts)
    with pytest.raises(UserError, match=message):
        read_shapenetpart(root, "train")


def test_a_part_that_no_training_file_has_is_named_with_its_category(root):
    write_rows(root, [7, 8], names=("y",))
    data = load_part_data(PointDataConfig("shapenetpart", str(root), num_points=30))
    message = (
        r"y.txt: point 1 has part 8, but no training file of Own has part 8, only 7, 9; train on one that has"
    )
    with pytest.raises(UserError, match=message):
        data.evaluation[1]


def test_categories_of_one_part_each_leave_nothing_to_tell_apart(root):
    lists = root / "train_test_split"
    for split, name in (("train", "x"), ("val", "x"), ("test", "y")):
        (lists / f"shuffled_{split}_file_list.json").write_text(json.dumps([f"shape_data/{CUSTOM}/{name}"]))
    config = PointDataConfig("shapenetpart", str(root), num_points=30)
    assert load_part_data(config).parts == ((7, 9),)
    write_rows(root, [7])
    with pytest.raises(UserError, match=r"every category has one part only, .*; label at least two parts"):
        load_part_data(config)


@pytest.mark.parametrize("label", [-1, 255, -100])
def test_points_with_the_ignored_label_are_neither_trained_nor_measured_on(root, label):
    write_rows(root, [7, label, 9])
    config = PointDataConfig("shapenetpart", str(root), num_points=30, unit_sphere=False, ignore_label=label)
    data = load_part_data(config)
    assert data.parts == ((0, 1, 2, 3), (4, 5), (7, 9))
    _, category, parts = data.evaluation[1]
    assert sorted(parts.tolist()) == [UNLABELLED] * 10 + [7] * 10 + [9] * 10
    logits = torch.randn(30, 10)
    labelled = parts != UNLABELLED
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(logits, parts),
        torch.nn.functional.cross_entropy(logits[labelled], parts[labelled]),
    )
    table, categories = parts_of_categories(data.parts, 10), torch.tensor([category])
    totals = part_totals(logits[None], parts[None], categories, table)
    totals_without = part_totals(logits[labelled][None], parts[labelled][None], categories, table)
    assert torch.equal(totals, totals_without)
    assert totals[3, category] == 20


def test_a_cloud_without_labelled_points_is_named(root):
    write_rows(root, [255], names=("y",))
    with pytest.raises(UserError, match=r"y.txt: every point has the ignored label 255"):
        read_shapenetpart(root, "test", ignore_label=255).labelled(1)
    write_rows(root, [255], names=("x",))
    with pytest.raises(UserError, match=r"90000000 has no labelled points in its training files"):
        read_shapenetpart(root, "train", ignore_label=255)


def test_categories_without_clouds_are_left_out_with_a_note(root, capsys):
    with (root / "synsetoffset2category.txt").open("a") as file:
        file.write("Cap\t02954340\nMine\t90000007\n")
    data = load_part_data(PointDataConfig("shapenetpart", str(root), num_points=30))
    assert data.classes == ("Airplane", "Bag", "Own")
    assert data.parts == ((0, 1, 2, 3), (4, 5), (7, 9))
    assert "left out without clouds: Cap, Mine" in data.description
    assert "has no clouds of Cap, Mine: left out" in capsys.readouterr().err


def test_far_from_the_origin_parts_keep_their_shapes(root):
    table = rows(ord("y"), [7, 9]).astype(np.float64)
    config = PointDataConfig("shapenetpart", str(root), num_points=30)
    clouds = []
    for offset in (0, 4_649_776):
        np.savetxt(root / CUSTOM / "y.txt", table + np.array([offset] * 3 + [0] * 4), fmt="%.9f")
        torch.manual_seed(0)
        clouds.append(load_part_data(config).evaluation[1][0])
    torch.testing.assert_close(*clouds, rtol=0, atol=1e-6)
