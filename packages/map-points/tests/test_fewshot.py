"""Few-shot runs: what a fold trains on, and that published and generated folds are never mixed."""

import json
import os
import pickle
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from map_core.errors import RunStopped, UserError
from map_core.tasks.classification import FinetuneTask
from map_core.tasks.weights import read_weights, save_weights
from map_points.data import PointDataConfig
from map_points.factory import MODELS
from map_points.fewshot import FewShotConfig, FoldsConfig, open_folds, run_folds


@pytest.fixture
def few_shot(tiny_model, short_training):
    """Makes the configuration of a small few-shot run."""

    def make(root, source, out, **changes):
        queries = {} if source == "fewshot_pkl" else {"queries": 4}
        return FewShotConfig(
            data=PointDataConfig(source, str(root), num_points=32),
            fewshot=FoldsConfig(way=2, shot=3, folds=2, **queries),
            model=replace(tiny_model, layout="M"),
            training=replace(short_training, warmup_epochs=0.0),
            out=str(out),
            **changes,
        )

    return make


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


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def test_published_folds_are_summarised_as_such(few_shot, published, tmp_path):
    config = few_shot(published, "fewshot_pkl", tmp_path / "run")
    run_folds(config)
    summary = summary_of(tmp_path / "run")
    accuracies = [summary_of(tmp_path / "run" / f"fold_{i}")["test_accuracy"] for i in range(2)]
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


def test_a_missing_fold_is_noticed_before_the_first_is_trained(few_shot, published, tmp_path):
    (published / "2way_3shot" / "1.pkl").unlink()
    with pytest.raises(UserError, match=r"2way_3shot has no 1.pkl"):
        run_folds(few_shot(published, "fewshot_pkl", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_summary_measures_the_classifier_of_each_fold(few_shot, published, tmp_path):
    config = few_shot(published, "fewshot_pkl", tmp_path / "run")
    accuracies = run_folds(config)["test_accuracy_of_folds"]
    for i, fold in enumerate(open_folds(config.data, config.fewshot)):
        model, classes = MODELS.classifier(tmp_path / "run" / f"fold_{i}")
        samples = [fold.evaluation[j] for j in range(len(fold.evaluation))]
        predicted = model(torch.stack([points for points, _ in samples])).argmax(1)
        is_correct = predicted == torch.tensor([label for _, label in samples])
        assert classes == fold.classes
        assert accuracies[i] == pytest.approx(100 * float(is_correct.float().mean()))


def test_other_sources_give_generated_folds(few_shot, labelled, tmp_path):
    config = few_shot(labelled, "modelnet40_npz", tmp_path / "run")
    assert run_folds(config)["folds"] == "generated"
    folds = list(open_folds(config.data, config.fewshot))
    assert [len(fold.train) for fold in folds] == [6, 6]
    assert [len(fold.evaluation) for fold in folds] == [8, 8]
    assert folds[0].description.startswith("generated fold 0: 6 training clouds, 8 ")
    assert folds[0].evaluated_on == "queries of the generated fold 0"


def test_every_fold_starts_from_the_same_encoder(few_shot, published, pretrained, tiny_model, tmp_path):
    config = few_shot(published, "fewshot_pkl", tmp_path / "run", init=str(pretrained[0]))
    config.model, config.training = tiny_model, replace(config.training, lr=1e-12, weight_decay=0.0)
    run_folds(config)
    encoder = read_weights(pretrained[0])
    for i in range(2):
        fold = read_weights(tmp_path / "run" / f"fold_{i}")
        for name in (
            "encoder.norm.weight",
            "encoder.blocks.0.mixer.in_proj.weight",
            "patch_embed.join.weight",
        ):
            torch.testing.assert_close(fold[name], encoder[name], rtol=0, atol=1e-9)


def write_folder(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / name, np.random.default_rng(0).normal(size=(40, 3)))
    return PointDataConfig("folder", str(root), num_points=32)


def test_folds_need_classes(tmp_path):
    data = write_folder(tmp_path, "train/1.npy", "train/2.npy", "test/3.npy")
    with pytest.raises(
        UserError, match=r"holds clouds but no class subfolders: labels need train/<class>/<cloud>"
    ):
        next(open_folds(data, FoldsConfig()))


def test_folds_need_clouds_to_classify_of_which_a_held_out_part_is_none(tmp_path):
    data = write_folder(tmp_path, "train/a/1.npy", "train/b/2.npy")
    with pytest.raises(
        UserError, match=r"has training clouds only, .*: add a split val or test, or name"
    ) as error:
        next(open_folds(data, FoldsConfig()))
    assert "holdout" not in str(error.value)


def test_folds_are_of_the_channels_that_their_start_was_trained_with(few_shot, labelled, tmp_path):
    save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {"channels": ["intensity"]})
    config = few_shot(labelled, "modelnet40_npz", tmp_path / "run", init=str(tmp_path))
    with pytest.raises(
        UserError, match=r"data.channels is \[\], and the model was trained with \['intensity'\]"
    ):
        run_folds(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"way": 1}, "fewshot.way must be at least 2; got 1"),
        ({"shot": 0}, "fewshot.shot must be at least 1; got 0"),
        ({"folds": 0}, "fewshot.folds must be at least 1; got 0"),
        ({"queries": 0}, "fewshot.queries must be at least 1; got 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_folds_that_cannot_be_are_refused(labelled, changes, message):
    with pytest.raises(UserError, match=message):
        next(open_folds(PointDataConfig("modelnet40_npz", str(labelled)), FoldsConfig(**changes)))


@pytest.mark.parametrize(
    "changes", [{"subset": 5}, {"holdout": 0.5}], ids=lambda changes: next(iter(changes))
)
def test_parts_of_a_split_do_not_apply_to_folds(labelled, changes):
    with pytest.raises(UserError, match=r"data.holdout and data.subset do not apply"):
        next(open_folds(PointDataConfig("modelnet40_npz", str(labelled), **changes), FoldsConfig()))


@pytest.mark.parametrize(("name", "value", "default"), [("queries", 4, 20), ("seed", 1, 0)])
def test_settings_of_generated_folds_do_not_apply_to_published_ones(published, name, value, default):
    config = FoldsConfig(way=2, shot=3, **{name: value})
    message = f"fewshot.{name} {value} has no effect with data.source fewshot_pkl: leave it at {default}"
    with pytest.raises(UserError, match=message):
        next(open_folds(PointDataConfig("fewshot_pkl", str(published)), config))


def test_folds_are_resumed_automatically_or_not_at_all(few_shot, labelled, tmp_path):
    with pytest.raises(UserError, match="resume must be auto for few-shot folds; got 'x'"):
        run_folds(few_shot(labelled, "modelnet40_npz", tmp_path / "run", resume="x"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["loss", "export"])
def test_a_signal_ends_the_folds_and_resuming_completes_them(
    few_shot, labelled, tmp_path, monkeypatch, moment, number
):
    """While a fold is exported it is finished; the next one does not begin."""
    original = getattr(FinetuneTask, moment)

    def with_signal(*arguments):
        os.kill(os.getpid(), number)
        return original(*arguments)

    config = few_shot(labelled, "modelnet40_npz", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTask, moment, with_signal)
        with pytest.raises(RunStopped) as stop:
            run_folds(config)
    assert stop.value.status == 128 + number
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["fold_0"]
    assert summary_of(tmp_path / "run/fold_0")["interrupted"] == (moment == "loss")
    resumed = run_folds(replace(config, resume="auto"))
    whole = run_folds(replace(config, out=str(tmp_path / "whole")))
    assert resumed["test_accuracy_of_folds"] == whole["test_accuracy_of_folds"]


def test_folds_are_not_mixed_with_those_of_other_queries(few_shot, labelled, tmp_path):
    config = few_shot(labelled, "modelnet40_npz", tmp_path / "run")
    run_folds(config)
    more = replace(config.fewshot, queries=config.fewshot.queries + 1)
    with pytest.raises(UserError, match=r"data.fewshot.queries was \d and is \d;"):
        run_folds(replace(config, fewshot=more, resume="auto"))


def test_a_classifier_of_clouds_needs_two_of_them_in_a_micro_batch(few_shot, labelled, tmp_path):
    """Its head normalises over the batch."""
    config = few_shot(labelled, "modelnet40_npz", tmp_path / "run")
    config.training = replace(config.training, batch_size=2, accumulation_steps=2)
    with pytest.raises(
        UserError, match=r"a micro-batch of 1 sample\(s\) is too small for batch normalisation: "
    ):
        run_folds(config)


def test_a_finished_training_run_is_not_written_over(few_shot, published, pretrained, tmp_path):
    run = shutil.copytree(pretrained[0], tmp_path / "pretrained")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    message = (
        r"pretrained is a training run, whose config.yaml and summary.json would be replaced; choose another"
    )
    with pytest.raises(UserError, match=message):
        run_folds(few_shot(published, "fewshot_pkl", run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_channels_that_the_model_does_not_take_are_noticed_before_the_first_fold(
    few_shot, published, tmp_path
):
    config = few_shot(published, "fewshot_pkl", tmp_path / "run")
    config.model.in_chans = 4
    with pytest.raises(UserError, match=r"data.channels names 0 channels .* and model.in_chans is 4"):
        run_folds(config)
    assert not (tmp_path / "run").exists()
