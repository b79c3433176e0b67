"""Few-shot folds: published ones read as they are, generated ones drawn by their keys alone."""

import pickle

import numpy as np
import pytest

from map_core.errors import UserError
from map_points.data import PointDataConfig, read_clouds, read_fold, sample_fold
from map_points.data.clouds import ArrayClouds


def clouds(per_class, classes=6, offset=0.0):
    labels = np.repeat(np.arange(classes), per_class)
    points = np.zeros((len(labels), 4, 3), dtype=np.float32)
    points[:, 0, 0] = np.arange(len(labels)) + offset
    return ArrayClouds(labels, tuple("abcdef"[:classes]), points, "made up")


def draw(fold=0, way=3, shot=2, queries=4, seed=0):
    return sample_fold(
        clouds(9), clouds(8, offset=0.5), way=way, shot=shot, queries=queries, fold=fold, seed=seed
    )


def content(episode):
    return [
        (part.points(i)[0, 0], part.classes[part.labels[i]]) for part in episode for i in range(len(part))
    ]


def contents(episode):
    return content((episode.train, episode.test))


def test_a_generated_fold_has_ways_shots_and_queries():
    episode = draw()
    assert np.bincount(episode.train.labels).tolist() == [2, 2, 2]
    assert np.bincount(episode.test.labels).tolist() == [4, 4, 4]
    assert episode.train.classes == episode.test.classes
    for value, name in content((episode.train,)):
        assert "abcdef"[int(value) // 9] == name
    for value, name in content((episode.test,)):
        assert "abcdef"[int(value) // 8] == name
        assert value % 1 == 0.5  # of the test split
    assert len({value for value, _ in contents(episode)}) == 18


def test_folds_differ_and_repeat():
    assert contents(draw()) == contents(draw())
    assert contents(draw(fold=1)) != contents(draw())
    assert contents(draw(seed=1)) != contents(draw())


def test_classes_with_too_few_clouds_are_left_out():
    with pytest.raises(UserError, match="6 of 6 classes have 2 training and 4 test clouds; 7 ways need 7"):
        draw(way=7)
    with pytest.raises(UserError, match="0 of 6 classes have 2 training and 9 test clouds"):
        draw(queries=9)


@pytest.fixture
def published(tmp_path):
    (tmp_path / "5way_10shot").mkdir()
    rng = np.random.default_rng(0)
    fold = {
        split: [(rng.normal(size=(20, 6)), np.int64(i % 5), i) for i in range(count)]
        for split, count in (("train", 10), ("test", 5))
    }
    (tmp_path / "5way_10shot" / "3.pkl").write_bytes(pickle.dumps(fold))
    return tmp_path, fold


def test_a_published_fold_is_read(published):
    root, fold = published
    episode = read_fold(root, 5, 10, 3)
    assert episode.train.labels.tolist() == [0, 1, 2, 3, 4] * 2
    assert episode.test.classes == ("0", "1", "2", "3", "4")
    np.testing.assert_allclose(episode.test.points(4), fold["test"][4][0][:, :3], rtol=1e-6)


def test_broken_folds_are_named(published):
    root, fold = published
    file = root / "5way_10shot" / "3.pkl"
    for broken, message in (
        ({"train": fold["train"]}, "3.pkl must hold a dict with train and test"),
        ({**fold, "test": []}, r"3.pkl \(test\) must be a list of \(points, label, ...\)"),
        (
            {**fold, "test": [(np.zeros((4, 3)), 5, 0)]},
            r"3.pkl \(test\): cloud 0 has label 5, but there are 5 classes",
        ),
    ):
        file.write_bytes(pickle.dumps(broken))
        with pytest.raises(UserError, match=message):
            read_fold(root, 5, 10, 3)


def test_folds_are_read_from_folders_called_as_the_instructions_do(published):
    root, _ = published
    before = read_fold(root, 5, 10, 3)
    (root / "5way_10shot").rename(root / "5way10shot")
    assert read_fold(root, 5, 10, 3).train.labels.tolist() == before.train.labels.tolist()


def test_folds_that_are_not_there_are_named_with_those_that_are(published):
    root, _ = published
    with pytest.raises(UserError, match=r" holds 5way_10shot, but not 5way_20shot; choose --fewshot.way and"):
        read_fold(root, 5, 20, 3)
    with pytest.raises(
        UserError, match=r"5way_10shot has no 4.pkl; copy or download it again, or lower --few"
    ):
        read_fold(root, 5, 10, 4)
    with pytest.raises(
        UserError, match=r"5way_10shot holds 3.pkl; --data.root must name the folder that holds 5way_10shot"
    ):
        read_fold(root / "5way_10shot", 5, 10, 3)


def test_folds_are_no_splits():
    with pytest.raises(
        UserError,
        match=r"holds folds, not splits: use map-points fewshot; folds are measured in their own summary.json only",
    ):
        read_clouds(PointDataConfig("fewshot_pkl", "folds"), "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: [item for item in items if item[1] != 3], "has no clouds of class 3 of 5"),
        (lambda items: [items[0][:1], *items[1:]], r"must be a list of \(points, label, ...\)"),
        (lambda items: [5, *items], r"must be a list of \(points, label, ...\)"),
        (
            lambda items: [(items[0][0].T, 0), *items[1:]],
            r"cloud 0 has shape \(6, 20\), more columns than points",
        ),
        (lambda items: [(items[0][0].tolist(), 0), *items[1:]], "cloud 0 is a list; expected an array"),
        (lambda items: [(items[0][0], 0.5), *items[1:]], "cloud 0 has label 0.5"),
        (
            lambda items: [*items[:2], (items[0][0], "bag"), *items[3:]],
            "label of cloud 2 is a Text; expected one whole",
        ),
        (
            lambda items: [(items[0][0], np.array([0, 1])), *items[1:]],
            "label of cloud 0 is a ndarray; expected one",
        ),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_folds_that_cannot_be_are_named(published, change, message, split):
    root, fold = published
    content = {**fold, split: change(fold[split])}
    (root / "5way_10shot" / "3.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=rf"3.pkl \({split}\).*{message}"):
        read_fold(root, 5, 10, 3)


def test_the_classes_of_a_fold_are_drawn():
    chosen = {draw(fold=fold).train.classes for fold in range(20)}
    assert {name for classes in chosen for name in classes} == set("abcdef")
    assert len(chosen) > 5
