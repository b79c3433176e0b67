"""The packaged recipes: what they resolve to, and that they train, shrunken; and the commands around them."""

import json

import numpy as np
import pytest

import map_core.cli
from map_core.cli import load_recipe, recipe_names
from map_core.training import train
from map_points.cli import COMMANDS, RECIPES
from map_points.data import CloudSamples, PointData
from map_points.data.clouds import ArrayClouds
from map_points.factory import create_classifier
from map_points.finetuning import FinetuneConfig, FinetuneTask
from map_points.pretraining import PretrainConfig, PretrainTask

NAMES = (
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
)
CONFIGS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
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


@pytest.mark.parametrize("name", NAMES)
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
    with map_core.cli.find_recipe(RECIPES, name) as path:
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
    return map_core.cli.main("map-points", COMMANDS, RECIPES, [str(a) for a in arguments])


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


def test_info_lists_the_models(capsys):
    assert run("info") == 0
    assert "19,298,088" in capsys.readouterr().out
