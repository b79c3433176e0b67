"""Few-shot runs: what a fold trains on, and that published and generated folds are never mixed."""

import json
import pickle

import numpy as np
import pytest

from map_core.errors import UserError
from map_core.training import TrainingConfig
from map_points.data import PointDataConfig
from map_points.factory import PointModelConfig
from map_points.fewshot import FewShotConfig, FoldsConfig, open_folds, run_folds

MODEL = PointModelConfig(
    embed_dim=16, patch_hidden_dim=8, num_heads=2, num_patches=16, patch_size=4, layout="M", neighbors=3
)


def few_shot(root, source, out, **changes):
    training = TrainingConfig(
        epochs=1,
        batch_size=4,
        lr=1e-3,
        warmup_epochs=0.0,
        workers=0,
        device="cpu",
        progress=False,
        tensorboard=False,
    )
    return FewShotConfig(
        data=PointDataConfig(source, str(root), num_points=32),
        fewshot=FoldsConfig(way=2, shot=3, folds=2, queries=4),
        model=MODEL,
        training=training,
        out=str(out),
        **changes,
    )


@pytest.fixture
def published(tmp_path):
    (tmp_path / "folds" / "2way_3shot").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for fold in range(2):
        parts = {
            split: [(rng.normal(size=(40, 3)), i % 2, 0) for i in range(count)]
            for split, count in (("train", 6), ("test", 8))
        }
        (tmp_path / "folds" / "2way_3shot" / f"{fold}.pkl").write_bytes(pickle.dumps(parts))
    return tmp_path / "folds"


@pytest.fixture
def labelled(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"classes": np.array(["a", "b", "c"])}
    for split in ("train", "test"):
        arrays[f"{split}_x"] = rng.normal(size=(15, 40, 3)).astype(np.float32)
        arrays[f"{split}_y"] = np.arange(15) % 3
    np.savez(tmp_path / "d.npz", **arrays)
    return tmp_path / "d.npz"


def test_published_folds_are_summarised_as_such(published, tmp_path):
    config = few_shot(published, "fewshot_pkl", tmp_path / "run")
    run_folds(config)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    accuracies = [
        json.loads((tmp_path / "run" / f"fold_{i}" / "summary.json").read_text())["test_accuracy"]
        for i in range(2)
    ]
    assert summary["folds"] == "published"
    assert summary["test_accuracy_of_folds"] == accuracies
    assert summary["test_accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert summary["test_accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert (summary["way"], summary["shot"]) == (2, 3)
    with pytest.raises(
        UserError, match="fold_0 exists and is not empty; continue that run with --resume auto"
    ):
        run_folds(config)
    config.resume = "auto"
    assert run_folds(config)["test_accuracy_of_folds"] == accuracies


def test_other_sources_give_generated_folds(labelled, tmp_path):
    summary = run_folds(few_shot(labelled, "modelnet40_npz", tmp_path / "run"))
    assert summary["folds"] == "generated"
    folds = list(
        open_folds(PointDataConfig("modelnet40_npz", str(labelled), num_points=32), FoldsConfig(2, 3, 2, 4))
    )
    assert [len(fold.train) for fold in folds] == [6, 6]
    assert [len(fold.evaluation) for fold in folds] == [8, 8]
    assert folds[0].description.startswith("generated fold 0: 6 training clouds, 8 queries")


def test_settings_that_do_not_fit_are_refused(labelled, tmp_path):
    for changes, told in (
        ({"way": 1}, r"fewshot.way must be at least 2; got 1"),
        ({"shot": 0}, r"fewshot.shot must be at least 1; got 0"),
    ):
        with pytest.raises(UserError, match=told):
            next(open_folds(PointDataConfig("modelnet40_npz", str(labelled)), FoldsConfig(**changes)))
    with pytest.raises(UserError, match=r"data.holdout and data.subset do not apply"):
        next(open_folds(PointDataConfig("modelnet40_npz", str(labelled), subset=5), FoldsConfig()))
    with pytest.raises(UserError, match="resume must be auto for few-shot folds; got 'x'"):
        run_folds(few_shot(labelled, "modelnet40_npz", tmp_path / "run", resume="x"))
