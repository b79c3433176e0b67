"""The packaged recipes: what they resolve to, and that they train, shrunken; and the commands around them."""

import csv
import json
import pickle

import numpy as np
import pytest
import torch
from map_core.weights import read_weights
from map_points.commands import TRAINED
from map_points.finetuning import FinetuneConfig, FinetuneTask

from map_core.commands.parser import load_recipe
from map_core.commands.program import main
from map_core.commands.recipes import find_recipe, recipe_names
from map_core.training import train
from map_points import evaluation
from map_points.cli import COMMANDS, RECIPES
from map_points.data import CloudSamples, PointData, PointDataConfig, read_cloud_files
from map_points.data.clouds import ArrayClouds
from map_points.evaluation import EvaluationConfig
from map_points.factory import create_classifier, described_model
from map_points.fewshot import FewShotConfig, run_folds
from map_points.pretraining import PretrainConfig, PretrainTask
from map_points.segmentation import SegmentConfig, SegmentTask

NAMES = (
    "fewshot_modelnet40",
    "finetune_modelnet40",
    "finetune_modelnet40_8k",
    "finetune_modelnet40_cpu",
    "finetune_scanobjectnn_objbg",
    "finetune_scanobjectnn_objonly",
    "finetune_scanobjectnn_pbt50rs",
    "finetune_shapes",
    "pretrain_modelnet40_cpu",
    "pretrain_shapenet55",
    "pretrain_shapenet55_mamba3d",
    "pretrain_shapes",
    "segment_shapenetpart",
    "segment_shapes",
)
CONFIGS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "fewshot": FewShotConfig,
    "segment": SegmentConfig,
}
TASKS = {"pretrain": PretrainTask, "finetune": FinetuneTask}
SHORT = (
    "--training.batch_size=4",
    "--training.max_steps=2",
    "--training.workers=0",
    "--training.device=cpu",
    "--training.log_steps=1",
    "--training.progress=false",
    "--training.tensorboard=false",
)
SMALL = (
    "--model.embed_dim=16",
    "--model.patch_hidden_dim=8",
    "--model.num_heads=2",
    "--model.num_patches=16",
    "--model.patch_size=8",
    "--data.num_points=64",
)
SMALL_OBJECTIVE = ("--objective.decoder_depth=1", "--objective.decoder_dim=16", "--objective.decoder_heads=2")


def kind(name):
    return name.split("_")[0]


def layout(name):
    return "--model.layout=Mx2" if name.endswith("mamba3d") else "--model.layout=MT"


def made_up(config):
    points = np.random.default_rng(0).normal(size=(12, 80, 3)).astype(np.float32)
    clouds = ArrayClouds(np.arange(12) % 3, ("a", "b", "c"), "y", points, "made up")
    train_split = CloudSamples(clouds, config.data, training=True)
    evaluation = CloudSamples(clouds, config.data, training=False)
    return PointData(train_split, evaluation, clouds.classes, "made up")


def test_the_recipes_are_these():
    assert tuple(recipe_names(RECIPES)) == NAMES


def resolve(name, out, *more):
    config = load_recipe(
        RECIPES, name, CONFIGS[kind(name)], [*SHORT, *SMALL, layout(name), f"--out={out}", *more]
    )
    config.training.warmup_epochs = 0
    return config


@pytest.mark.parametrize("name", [name for name in NAMES if kind(name) == "segment"])
def test_a_segmentation_recipe_takes_two_steps(name, two_part_shapes, tmp_path):
    config = resolve(name, tmp_path / "run", "--objective.hidden_dim=16", f"--data.root={two_part_shapes}")
    summary = train(SegmentTask(config), config.training, tmp_path / "run", run_config=config)
    assert np.isfinite(summary["loss"])
    assert 0 <= summary["test_class_miou"] <= 100


@pytest.mark.parametrize("way", [5, 10])
@pytest.mark.parametrize("shot", [10, 20])
def test_the_few_shot_recipe_takes_two_steps_a_fold(way, shot, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "folds" / f"{way}way_{shot}shot"
    folder.mkdir(parents=True)
    for fold in range(2):
        items = [(rng.normal(size=(80, 6)), i % way, 0) for i in range(2 * way)]
        (folder / f"{fold}.pkl").write_bytes(pickle.dumps({"train": items, "test": items}))
    more = (f"--fewshot.way={way}", f"--fewshot.shot={shot}", "--fewshot.folds=2")
    config = resolve("fewshot_modelnet40", tmp_path / "run", f"--data.root={tmp_path / 'folds'}", *more)
    summary = run_folds(config)
    assert len(summary["test_accuracy_of_folds"]) == 2
    assert summary["folds"] == "published"


@pytest.mark.parametrize("name", [name for name in NAMES if kind(name) in TASKS])
def test_a_recipe_takes_two_steps(name, tmp_path):
    overrides = [*SHORT, *SMALL, layout(name), f"--out={tmp_path / 'run'}"]
    if kind(name) == "pretrain":
        overrides += SMALL_OBJECTIVE
    config = load_recipe(RECIPES, name, CONFIGS[kind(name)], overrides)
    config.training.warmup_epochs = 0
    task = TASKS[kind(name)](config, made_up(config))
    summary = train(task, config.training, tmp_path / "run", run_config=config)
    assert np.isfinite(summary["loss"])
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_header_names_its_own_command(name):
    with find_recipe(RECIPES, name) as path:
        text = path.read_text()
    assert f"map-points {kind(name)} --config {name} " in text
    assert "# number    " in text


def test_the_full_recipes_build_the_models_of_the_paper():
    for name in ("finetune_modelnet40", "finetune_modelnet40_8k"):
        config = load_recipe(RECIPES, name, FinetuneConfig)
        model = create_classifier(config.model, 40)
        assert sum(p.numel() for p in model.parameters()) == 19_298_088
    mamba = load_recipe(RECIPES, "pretrain_shapenet55_mamba3d", PretrainConfig)
    model = create_classifier(mamba.model, 40)
    assert sum(p.numel() for p in model.parameters()) == 16_934_184


def test_a_pair_of_recipes_has_one_encoder():
    for pair in ("shapes", "modelnet40_cpu"):
        pretrain = load_recipe(RECIPES, f"pretrain_{pair}", PretrainConfig).model
        finetune = load_recipe(RECIPES, f"finetune_{pair}", FinetuneConfig).model
        assert {**vars(finetune), "drop_path_rate": None} == vars(pretrain)


def run(*arguments):
    return main("map-points", COMMANDS, RECIPES, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretraining and a finetuning run on the embedded shapes, by the commands."""
    pytest.importorskip("trimesh")
    root = tmp_path_factory.mktemp("runs")
    shrink = [*SHORT, *SMALL, "--model.layout=MT", "--data.shapes_per_class=2"]
    warm = "--training.warmup_epochs=0"
    pretrained, finetuned = root / "pre", root / "fine"
    first = ("pretrain", "--config", "pretrain_shapes", *SMALL_OBJECTIVE, "--out", pretrained)
    assert run(*first, *shrink, warm) == 0
    found = run(
        "finetune", "--config", "finetune_shapes", *shrink, warm, "--init", pretrained, "--out", finetuned
    )
    assert found == 0
    return pretrained, finetuned


@pytest.mark.parametrize("protocol", ["no_vote", "vote_10"])
def test_evaluate_names_its_protocol_and_repeats_the_run(runs, tmp_path, protocol, capsys):
    _, finetuned = runs
    options = ("--evaluation.progress", "false", "--evaluation.protocol", protocol)
    assert run("evaluate", "--init", finetuned, "--out", tmp_path, *options) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["protocol"].startswith(f"{protocol}: ")
    assert summary["clouds"] == 200
    assert protocol in capsys.readouterr().out
    if protocol == "no_vote":
        trained = json.loads((finetuned / "summary.json").read_text())
        assert summary["test_accuracy"] == pytest.approx(trained["test_accuracy"])
        assert summary["test_loss"] == pytest.approx(trained["test_loss"], rel=1e-5)


def test_reconstruct_draws(runs, tmp_path):
    pretrained, _ = runs
    assert run("reconstruct", "--init", pretrained, "--count", 2, "--out", tmp_path / "a" / "r.png") == 0
    assert (tmp_path / "a" / "r.png").stat().st_size > 1000


def test_commands_tell_errors_in_one_sentence(runs, tmp_path, capsys):
    pretrained, finetuned = runs
    for arguments, told in (
        (("evaluate", "--init", pretrained, "--out", tmp_path / "e"), "describes no classifier"),
        (("evaluate", "--init", finetuned, "--out", finetuned), "is a training run, whose summary.json"),
        (("reconstruct", "--init", finetuned), "reconstruction needs the decoder"),
        (("pretrain", "--config", "pretrain_shape"), "unknown recipe 'pretrain_shape'; did you mean"),
    ):
        assert run(*arguments) == 2
        assert told in capsys.readouterr().err


def test_evaluating_on_other_classes_is_refused(runs, tmp_path, capsys):
    _, finetuned = runs
    points = np.zeros((1, 64, 3), dtype=np.float32)
    np.savez(tmp_path / "d.npz", test_x=points, test_y=np.zeros(1), classes=np.array(["a"]))
    options = ("--data.source", "modelnet40_npz", "--data.root", tmp_path / "d.npz", "--out", tmp_path / "e")
    assert run("evaluate", "--init", finetuned, *options) == 2
    assert "1 classes a, ... against 8 annulus" in capsys.readouterr().err


@pytest.fixture(scope="module")
def segmented(runs, two_part_shapes, tmp_path_factory):
    """A segmentation run on two-part shapes, started from the pretraining run."""
    out = tmp_path_factory.mktemp("segmented") / "run"
    shrink = [*SHORT, *SMALL, "--model.layout=MT", "--objective.hidden_dim=16", "--training.warmup_epochs=0"]
    first = ("segment", "--config", "segment_shapes", "--data.root", two_part_shapes)
    assert run(*first, *shrink, "--init", runs[0], "--out", out) == 0
    return out


def test_segmentation_starts_from_the_pretrained_encoder(runs, segmented, two_part_shapes):
    config = SegmentConfig(data=PointDataConfig("shapenetpart", str(two_part_shapes)), init=str(runs[0]))
    config.model = described_model(runs[0])
    state = SegmentTask(config).model.state_dict()
    for name, value in read_weights(runs[0]).items():
        assert torch.equal(state[f"backbone.{name}"], value)


def test_evaluate_repeats_a_segmentation_run(segmented, tmp_path):
    assert run("evaluate", "--init", segmented, "--out", tmp_path, "--evaluation.progress", "false") == 0
    trained, found = (json.loads((folder / "summary.json").read_text()) for folder in (segmented, tmp_path))
    for name in ("test_instance_miou", "test_class_miou", "test_point_accuracy"):
        assert found[name] == pytest.approx(trained[name], abs=1e-3)
    assert found["evaluated_on"] == "test split"


def write_clouds(folder):
    rng = np.random.default_rng(0)
    for i in range(3):
        np.save(folder / f"{i}.npy", rng.normal(size=(70 + i, 3)))
    return folder


def test_predict_writes_classes_and_probabilities(runs, tmp_path):
    clouds, out = write_clouds(tmp_path), tmp_path / "a" / "p.csv"
    options = ("--clouds", clouds, "--top", 2, "--evaluation.progress", "false", "--out", out)
    assert run("predict", "--init", runs[1], *options) == 0
    rows = list(csv.DictReader(out.open()))
    assert [row["cloud"] for row in rows] == [str(clouds / f"{i}.npy") for i in range(3)]
    model, classes = TRAINED.classifier(str(runs[1]))
    samples = CloudSamples(read_cloud_files(str(clouds)), PointDataConfig(num_points=64), training=False)
    expected = model(torch.stack([samples[i][0] for i in range(3)])).softmax(1).detach()
    for row, probability in zip(rows, expected, strict=True):
        best = probability.topk(2)
        assert [row["class_1"], row["class_2"]] == [classes[i] for i in best.indices]
        assert float(row["probability_1"]) == pytest.approx(float(best.values[0]), abs=1e-5)


def test_features_of_files_and_of_the_runs_own_data(runs, tmp_path, capsys):
    pretrained, finetuned = runs
    clouds, out = write_clouds(tmp_path), tmp_path / "f.npz"
    quiet = ("--evaluation.progress", "false", "--out", out)
    assert run("features", "--init", pretrained, "--clouds", clouds / "1.npy", *quiet) == 0
    with np.load(out) as arrays:
        assert arrays["features"].shape == (1, 16)
        assert arrays["names"].tolist() == [str(clouds / "1.npy")]
    assert run("features", "--init", finetuned, *quiet) == 0
    with np.load(out) as arrays:
        assert arrays["train_features"].shape == (16, 32)
        assert arrays["test_features"].shape == (200, 32)
        assert arrays["test_labels"].tolist() == [i // 25 for i in range(200)]
    assert "kNN accuracy (20 neighbours)" in capsys.readouterr().out


def test_the_best_of_many_rounds_is_named_for_what_it_is(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "ROUNDS", 2)
    monkeypatch.setattr(evaluation, "VOTES", 2)
    quiet = ("--evaluation.progress", "false", "--data.shapes_per_class", 2)
    found = {}
    for protocol in ("vote_10", "best_of_299"):
        out = tmp_path / protocol
        assert (
            run("evaluate", "--init", runs[1], "--out", out, "--evaluation.protocol", protocol, *quiet) == 0
        )
        found[protocol] = json.loads((out / "summary.json").read_text())
    assert "selects on the test split" in found["best_of_299"]["protocol"]
    assert found["best_of_299"]["test_accuracy"] >= found["vote_10"]["test_accuracy"]
    assert EvaluationConfig().protocol == "no_vote"


def test_write_part_shapes_says_how_to_go_on(tmp_path, capsys):
    options = ("--train", 1, "--val", 1, "--test", 1, "--points", 50)
    assert run("write-part-shapes", *options, "--out", tmp_path / "set") == 0
    assert f"--data.root {tmp_path / 'set'}" in capsys.readouterr().out


def test_more_errors_in_one_sentence(runs, segmented, tmp_path, capsys):
    pretrained, finetuned = runs
    clouds = write_clouds(tmp_path)
    np.save(tmp_path / "small.npy", np.zeros((10, 3)))
    for arguments, told in (
        (("predict", "--init", pretrained, "--clouds", clouds), "describes no classifier"),
        (
            ("predict", "--init", segmented, "--clouds", clouds),
            "describes no classifier (its .json says: part seg",
        ),
        (("predict", "--init", finetuned, "--clouds", clouds, "--top", 0), "top must be at least 1; got 0"),
        (
            ("predict", "--init", finetuned, "--clouds", tmp_path / "small.npy"),
            "small.npy has 10 points, fewer than data.num_points (64)",
        ),
        (
            ("predict", "--init", finetuned, "--clouds", clouds, "--evaluation.protocol", "best_of_299"),
            "chooses a round by labels",
        ),
        (("features", "--init", pretrained, "--neighbors", 0), "neighbors must be at least 1; got 0"),
        (("features", "--init", tmp_path), "no weights at"),
        (
            ("evaluate", "--init", segmented, "--evaluation.protocol", "vote_10", "--out", tmp_path / "e"),
            "segmentation has no_vote only",
        ),
        (("segment", "--config", "segment_shapes", "--out", tmp_path / "s"), "give --data.root"),
        (("pretrain", "--config", "pretrain_shapes", "--model.order", "hilbrt"), "model.order"),
        (("segment", "--config", "fewshot_modelnet40"), "is a recipe for the command fewshot"),
    ):
        assert run(*arguments) == 2
        assert told in capsys.readouterr().err


def test_a_head_for_other_classes_is_no_start(runs, tmp_path, capsys):
    points = np.random.default_rng(0).normal(size=(8, 64, 3)).astype(np.float32)
    classes = np.array([f"other_{i}" for i in range(8)])
    labels = np.arange(8)
    np.savez(
        tmp_path / "d.npz", train_x=points, train_y=labels, test_x=points, test_y=labels, classes=classes
    )
    options = (
        "--data.source",
        "modelnet40_npz",
        "--data.root",
        tmp_path / "d.npz",
        "--out",
        tmp_path / "run",
    )
    assert run("finetune", "--init", runs[1], *options, *SHORT, "--data.num_points=64") == 2
    assert "tells annulus, box, capsule, cone, ... apart, the data" in capsys.readouterr().err


def test_info_lists_the_models(capsys):
    assert run("info") == 0
    assert "19,298,088" in capsys.readouterr().out
