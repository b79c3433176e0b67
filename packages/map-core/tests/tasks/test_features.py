"""Features as files, and the kNN score against a loop."""

import json
import math

import numpy as np
import pytest
import torch

from map_core.tasks.features import SplitFeatures, knn_accuracy, save_arrays, write_features


def slow_knn(bank, bank_labels, queries, labels, neighbors, temperature=0.07):
    """One query after the other."""
    correct = 0
    for query, label in zip(queries, labels, strict=True):
        similarity = [query @ row / np.linalg.norm(query) / np.linalg.norm(row) for row in bank]
        votes = {}
        for i in sorted(range(len(bank)), key=lambda i, s=similarity: -s[i])[:neighbors]:
            votes[bank_labels[i]] = votes.get(bank_labels[i], 0) + math.exp(similarity[i] / temperature)
        correct += max(votes, key=votes.get) == label
    return 100 * correct / len(queries)


def clusters(count, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=count)
    centers = np.random.default_rng(0).normal(size=(4, 5))
    return (centers[labels] + generator.normal(size=(count, 5))).astype(np.float32), labels


@pytest.mark.parametrize("neighbors", [1, 5, 20, 1000])
def test_the_score_is_that_of_a_loop(neighbors):
    """Also with more neighbours than there are samples."""
    bank, queries = clusters(60, 1), clusters(50, 2)
    score = knn_accuracy(*bank, *queries, neighbors=neighbors)
    assert score == pytest.approx(slow_knn(*bank, *queries, neighbors=neighbors))
    assert 40 < score < 100, "the example tells nothing"


@pytest.mark.parametrize("neighbors", [1, 5, 20])
def test_a_bank_read_in_parts_is_a_whole_one(neighbors, monkeypatch):
    bank, queries = clusters(60, 1), clusters(50, 2)
    whole = knn_accuracy(*bank, *queries, neighbors=neighbors)
    monkeypatch.setattr("map_core.tasks.features.BANK_ROWS", 7)
    monkeypatch.setattr("map_core.tasks.features.QUERIES", 8)
    assert knn_accuracy(*bank, *queries, neighbors=neighbors) == whole


@pytest.mark.parametrize(("distance", "score"), [(0.09, 100.0), (0.065, 0.0)])
def test_neighbours_weigh_as_published(distance, score):
    """One neighbour against three: it wins where exp(distance / 0.07) is above 3."""
    cosine = 1 - distance
    three = [[cosine, math.sqrt(1 - cosine * cosine)]] * 3
    bank = np.array([[1.0, 0.0], *three], dtype=np.float32)
    assert knn_accuracy(bank, np.array([0, 1, 1, 1]), bank[:1], np.array([0]), neighbors=4) == score


def test_a_score_inside_a_run_in_bf16_is_that_of_the_command():
    """Features with a large mean have cosines that bf16 does not tell apart."""
    (bank, labels), (queries, query_labels) = clusters(60, 1), clusters(50, 2)
    arrays = (bank + 10, labels, queries + 10, query_labels)
    score = knn_accuracy(*arrays, neighbors=5)
    with torch.autocast("cpu", torch.bfloat16):
        assert knn_accuracy(*arrays, neighbors=5) == score


def test_arrays_are_written_under_exactly_the_given_name(tmp_path, capsys):
    out = tmp_path / "new/features"
    save_arrays(out, {"a": np.arange(6).reshape(2, 3)})
    assert [path.name for path in out.parent.iterdir()] == ["features"]
    assert np.load(out)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert capsys.readouterr().out == f"a (2, 3) -> {out}\n"


def test_two_splits_with_classes_are_written_and_scored(tmp_path, capsys):
    train, test = clusters(60, 1), clusters(50, 2)
    splits = {
        "train": SplitFeatures(*train, [f"train {i}" for i in range(60)]),
        "test": SplitFeatures(*test, [f"test {i}" for i in range(50)]),
    }
    out = tmp_path / "features.npz"
    facts = {"device": "cpu"}
    write_features(out, splits, ["a", "b", "c", "d"], neighbors=5, evaluated_on="held-out part", facts=facts)
    arrays = np.load(out)
    for name, split in splits.items():
        assert np.array_equal(arrays[f"{name}_features"], split.features)
        assert np.array_equal(arrays[f"{name}_labels"], split.labels)
        assert arrays[f"{name}_names"].tolist() == list(split.names)
    assert arrays["classes"].tolist() == ["a", "b", "c", "d"]
    score = slow_knn(*train, *test, neighbors=5)
    report = json.loads(out.with_suffix(".json").read_text())
    assert report == {
        "task": "features",
        "knn_accuracy": pytest.approx(score),
        "neighbors": 5,
        "evaluated_on": "held-out part",
        "device": "cpu",
    }
    assert (
        f"kNN accuracy (5 neighbours): {score:.2f} % on held-out part -> {tmp_path}/features.json"
        in capsys.readouterr().out
    )


def test_the_score_says_how_many_neighbours_there_were(tmp_path, capsys):
    train, test = clusters(13, 1), clusters(50, 2)
    splits = {"train": SplitFeatures(*train, ["x"] * 13), "test": SplitFeatures(*test, ["y"] * 50)}
    write_features(tmp_path / "f.npz", splits, ["a", "b", "c", "d"], neighbors=20)
    assert "kNN accuracy (13 neighbours, every training sample): " in capsys.readouterr().out
    report = json.loads((tmp_path / "f.json").read_text())
    assert report["neighbors"] == 13
    assert "evaluated_on" not in report


@pytest.mark.parametrize(
    ("names", "classes"), [(["train"], ["a", "b"]), (["train", "test"], ["a"]), (["train", "test"], [])]
)
def test_without_two_splits_or_two_classes_there_is_no_score(tmp_path, names, classes):
    split = SplitFeatures(*clusters(10, 1), ["x"] * 10)
    out = tmp_path / "features.npz"
    write_features(out, dict.fromkeys(names, split), classes, neighbors=5)
    assert set(np.load(out)) == {"classes"} | {
        f"{name}_{what}" for name in names for what in ("features", "labels", "names")
    }
    assert not out.with_suffix(".json").exists()


@pytest.mark.parametrize(
    ("before", "stays"),
    [
        ('{"task": "features", "knn_accuracy": 90.0}', False),
        ('{"name": "a model"}', True),
        ("[1, 2]", True),
        ("no JSON", True),
    ],
)
def test_features_without_a_score_leave_no_older_one_but_every_other_file(tmp_path, before, stays):
    out = tmp_path / "features.npz"
    out.with_suffix(".json").write_text(before)
    write_features(out, {"train": SplitFeatures(*clusters(10, 1), ["x"] * 10)}, ["a", "b"], neighbors=5)
    assert out.with_suffix(".json").exists() == stays
    if stays:
        assert out.with_suffix(".json").read_text() == before
