"""The packaged recipes: what they resolve to, what goes before them, and that they train, shrunken."""

import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from map_core.commands.parser import load_recipe, parse
from map_core.commands.recipes import find_recipe, recipe_names
from map_core.commands.standard import configs
from map_core.tasks.classification import FinetuneTask, LinearProbeTask
from map_core.tasks.pretraining import PretrainTask, load_objective
from map_core.tasks.weights import save_weights
from map_core.training import train
from map_points.cli import COMMANDS
from map_points.data.clouds import ArrayClouds
from map_points.domain import DOMAIN, as_opened_data
from map_points.factory import MODELS, PointModelConfig, create_backbone, create_classifier
from map_points.fewshot import FewShotConfig, run_folds
from map_points.segmentation.task import SegmentConfig, SegmentTask, load_segmenter

NAMES = (
    "fewshot_modelnet40",
    "finetune_clouds",
    "finetune_modelnet40",
    "finetune_modelnet40_64patches",
    "finetune_modelnet40_8k",
    "finetune_modelnet40_cpu",
    "finetune_modelnet40_mamba3d",
    "finetune_modelnet40_mamba3d_authors",
    "finetune_modelnet40_point_mae",
    "finetune_modelnet40_point_mamba",
    "finetune_scanobjectnn_objbg",
    "finetune_scanobjectnn_objonly",
    "finetune_scanobjectnn_pbt50rs",
    "finetune_shapes",
    "linear_clouds",
    "linear_shapes",
    "pretrain_clouds",
    "pretrain_modelnet40_cpu",
    "pretrain_shapenet55",
    "pretrain_shapenet55_autoregression",
    "pretrain_shapenet55_contrastive",
    "pretrain_shapenet55_mamba3d",
    "pretrain_shapenet55_mamba3d_point_mae",
    "pretrain_shapenet55_point_mae",
    "pretrain_shapenet55_point_mamba",
    "pretrain_shapenet55_simmim",
    "pretrain_shapes",
    "segment_shapenetpart",
    "segment_shapenetpart_point_mae",
    "segment_shapes",
)
CONFIGS = {
    "pretrain": configs(DOMAIN).pretrain,
    "finetune": configs(DOMAIN).finetune,
    "linear": configs(DOMAIN).finetune,
    "fewshot": FewShotConfig,
    "segment": SegmentConfig,
}
COMMAND_NAMES = {name: name for name in CONFIGS} | {"linear": "linear-probe"}
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
SMALL_DECODER = ("--objective.decoder_depth=1", "--objective.decoder_dim=16", "--objective.decoder_heads=2")
SMALL_OBJECTIVES = {
    "masked_autoregression": SMALL_DECODER,
    "autoregression": SMALL_DECODER,
    "simmim": (),
    "contrastive": ("--objective.hidden_dim=16", "--objective.out_dim=8"),
}


def kind(name):
    return name.split("_")[0]


def names_of_kind(*kinds):
    return [name for name in NAMES if kind(name) in kinds]


def some_root(name):
    """A path for the data of every recipe but those of shapes that are made on the spot."""
    return () if name in ("pretrain_shapes", "finetune_shapes", "linear_shapes") else ("--data.root=.",)


def header(name):
    """The rows of a recipe's header by their first word; indented lines continue a row."""
    rows, key = {}, None
    with find_recipe(DOMAIN.recipes, name) as path:
        lines = path.read_text().splitlines()
    for line in lines[2:]:
        if not line.startswith("#"):
            return rows
        if match := re.match(r"# (\w+) +(.+)", line):
            key, rows[match[1]] = match[1], match[2]
        else:
            rows[key] += f" {line[1:].strip()}"
    raise AssertionError(f"{name} has no settings")


def recipe(name, *overrides):
    return load_recipe(DOMAIN.recipes, name, CONFIGS[kind(name)], [*some_root(name), *overrides])


def small_config(name, out, *more):
    layouts = {"mamba3d": "Mx2", "point_mae": "Tx2", "point_mamba": "Sx2"}
    layout = next((layout for part, layout in layouts.items() if part in name), "MT")
    config = recipe(name, *SHORT, *SMALL, f"--model.layout={layout}", f"--out={out}", *more)
    config.training.warmup_epochs = 0
    return config


def random_data(config):
    """Twelve clouds of three classes."""
    points = np.random.default_rng(0).normal(size=(12, 80, 3)).astype(np.float32)
    clouds = ArrayClouds(np.arange(12) % 3, ("a", "b", "c"), points, "made up")
    return as_opened_data(config.data, "made up", clouds, clouds, "test split")


def learnable_parameters(task):
    """Parameters by name, without those that follow others (a momentum encoder's)."""
    return {name: value for name, value in task.model.named_parameters() if value.requires_grad}


def largest_gradients(task):
    """The largest gradient of each parameter in the training to come, by its name."""
    gradients = {}
    for name, parameter in learnable_parameters(task).items():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: gradients.update(
                {name: max(gradients.get(name, 0), float(p.grad.abs().max()))}
            )
        )
    return gradients


def have_same_state(model, other):
    """Whether two models have the same state."""
    state = other.state_dict()
    return model.state_dict().keys() == state.keys() and all(
        torch.equal(value, state[name]) for name, value in model.state_dict().items()
    )


def count(config):
    with torch.device("meta"):
        return sum(p.numel() for p in create_classifier(config.model, 40).parameters())


def test_the_recipes_are_these():
    assert tuple(recipe_names(DOMAIN.recipes)) == NAMES


@pytest.mark.parametrize("name", names_of_kind("pretrain"))
def test_a_pretraining_recipe_takes_two_steps_and_is_read_back(name, tmp_path):
    small = SMALL_OBJECTIVES[recipe(name).objective.method]
    config = small_config(name, tmp_path / "run", *small)
    task = PretrainTask(DOMAIN, config, random_data(config))
    before, gradients = (
        {key: value.clone() for key, value in task.model.state_dict().items()},
        largest_gradients(task),
    )
    train(task, config.training, tmp_path / "run", run_config=config)
    assert have_same_state(load_objective(DOMAIN, tmp_path / "run").objective, task.model)
    changed = {key for key, value in task.model.named_parameters() if not torch.equal(value, before[key])}
    assert gradients.keys() == learnable_parameters(task).keys()  # every parameter learns
    assert min(gradients.values()) > 0
    # at this width steps along the smallest gradients, below AdamW's eps, are lost in float32's rounding
    negligible = {key for key, gradient in gradients.items() if gradient <= 1e-8}
    assert changed >= set(dict(task.model.named_parameters())) - negligible


@pytest.mark.parametrize("name", names_of_kind("finetune"))
def test_a_finetuning_recipe_takes_two_steps_and_is_read_back(name, tmp_path):
    config = small_config(name, tmp_path / "run")
    task = FinetuneTask(DOMAIN, config, random_data(config))
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    train(task, config.training, tmp_path / "run", run_config=config)
    model, classes = MODELS.classifier(tmp_path / "run")
    assert classes == ("a", "b", "c")
    assert have_same_state(model, task.model)
    changed = {key for key, value in task.model.named_parameters() if not torch.equal(value, before[key])}
    assert changed == set(dict(task.model.named_parameters()))


@pytest.mark.parametrize("name", names_of_kind("linear"))
def test_a_probing_recipe_takes_two_steps_of_its_head_alone(name, tmp_path):
    model = small_config(name, tmp_path).model
    backbone = create_backbone(model)
    description = MODELS.describe(model, holds="encoder")
    save_weights(tmp_path / "model.safetensors", backbone.state_dict(), description)
    config = small_config(name, tmp_path / "run", f"--init={tmp_path / 'model.safetensors'}")
    task = LinearProbeTask(DOMAIN, config, random_data(config))
    train(task, config.training, tmp_path / "run", run_config=config)
    classifier, classes = MODELS.classifier(tmp_path / "run")
    assert classes == ("a", "b", "c")
    state = classifier.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    assert torch.any(state["head.weight"] != 0)


@pytest.mark.parametrize("name", names_of_kind("segment"))
def test_a_segmentation_recipe_takes_two_steps_and_is_read_back(name, two_part_shapes, tmp_path):
    config = small_config(
        name, tmp_path / "run", "--objective.hidden_dim=16", f"--data.root={two_part_shapes}"
    )
    task = SegmentTask(config)
    train(task, config.training, tmp_path / "run", run_config=config)
    assert have_same_state(load_segmenter(tmp_path / "run").model, task.model)


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
    config = small_config("fewshot_modelnet40", tmp_path / "run", f"--data.root={tmp_path / 'folds'}", *more)
    summary = run_folds(config)
    assert summary["folds"] == "published"
    for i in range(2):
        model, classes = MODELS.classifier(tmp_path / "run" / f"fold_{i}")
        assert len(classes) == model.num_classes == way
    assert len(summary["test_accuracy_of_folds"]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_the_command_in_the_header_runs_this_recipe(name):
    program, command, *arguments = shlex.split(header(name)["command"].split("&& ")[-1])
    assert (program, command) == ("map-points", COMMAND_NAMES[kind(name)])
    assert arguments[:2] == ["--config", name]
    (entry,) = (entry for entry in COMMANDS if entry.name == command)
    config = parse("map-points", entry, COMMANDS, DOMAIN.recipes, arguments)
    assert (config.model, config.objective) == (recipe(name).model, recipe(name).objective)


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_what_was_run_and_what_to_expect(name):
    rows = header(name)
    assert {"command", "hardware", "expected", "status"} <= set(rows)
    never_run = rows["status"].startswith("never run at full size; test_recipes.py takes two steps")
    assert ("not run here" in rows["hardware"]) == never_run
    assert ("not reproduced here" in rows["expected"]) == never_run


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("finetune_modelnet40", 19_298_088),
        ("finetune_modelnet40_64patches", 19_298_088),
        ("finetune_modelnet40_8k", 19_298_088),
        ("finetune_modelnet40_mamba3d", 16_934_184),
        ("pretrain_shapenet55_mamba3d", 16_934_184),
    ],
)
def test_the_full_recipes_build_the_models_of_the_paper(name, parameters):
    assert count(recipe(name)) == parameters


@pytest.mark.parametrize("name", [name for name in NAMES if "mamba3d" in name])
def test_the_recipes_of_mamba3d_scan_as_the_original(name):
    assert recipe(name).model.scan == "channel_flip"


@pytest.mark.parametrize(
    ("name", "augmentation"),
    [
        ("pretrain_shapenet55", "rotate_scale_translate"),
        ("pretrain_shapenet55_mamba3d", "rotate_scale_translate"),
        ("pretrain_shapenet55_contrastive", "rotate_scale_translate"),
        ("pretrain_shapenet55_point_mae", "scale_translate"),
        ("pretrain_shapenet55_point_mamba", "rotate"),
    ],
)
def test_pretraining_augments_as_each_source_says(name, augmentation):
    """The paper names rotation, scaling and translation; Point-MAE leaves out the first, PointMamba the others."""
    recipe = load_recipe(DOMAIN.recipes, name, CONFIGS["pretrain"], some_root(name))
    assert recipe.data.augmentation == augmentation


def test_a_recipe_finetunes_with_the_patches_of_pretraining():
    pretrain, finetune = recipe("pretrain_shapenet55").model, recipe("finetune_modelnet40_64patches").model
    assert (
        (finetune.num_patches, finetune.patch_size) == (pretrain.num_patches, pretrain.patch_size) == (64, 32)
    )


@pytest.mark.parametrize("pair", ["shapes", "modelnet40_cpu"])
def test_a_pair_of_recipes_has_one_encoder(pair):
    pretrain, finetune = recipe(f"pretrain_{pair}").model, recipe(f"finetune_{pair}").model
    assert {**vars(finetune), "drop_path_rate": None} == vars(pretrain)


@pytest.fixture(scope="module")
def mamba_run(tmp_path_factory) -> Path:
    """The weights of a small mamba3d that no recipe describes."""
    config = PointModelConfig(
        name="mamba3d",
        embed_dim=16,
        patch_hidden_dim=8,
        layout="Mx2",
        scan="channel_flip",
        num_patches=8,
        patch_size=8,
        order="z_order",
    )
    run = tmp_path_factory.mktemp("mamba")
    description = MODELS.describe(config, task="pretrain", holds="encoder", weights="raw")
    save_weights(run / "model.safetensors", create_backbone(config).state_dict(), description)
    return run


def parse_recipe(name, *arguments):
    """The configuration that the recipe's command resolves."""
    (command,) = (entry for entry in COMMANDS if entry.name == kind(name))
    argv = ["--config", name, *some_root(name), *map(str, arguments)]
    return parse(f"map-points {command.name}", command, COMMANDS, DOMAIN.recipes, argv)


@pytest.mark.parametrize("name", names_of_kind("pretrain", "finetune", "fewshot", "segment"))
def test_the_model_is_that_of_the_weights_to_start_from(name, mamba_run):
    model, recipe_model = parse_recipe(name, "--init", mamba_run).model, recipe(name).model
    trained_model = MODELS.read_model_config(mamba_run)
    for key in MODELS.inherited_settings:
        assert getattr(model, key) == getattr(trained_model, key), key
    for key in vars(model).keys() - set(MODELS.inherited_settings):
        assert getattr(model, key) in (getattr(recipe_model, key), getattr(trained_model, key))
    assert (model.num_patches, model.drop_path_rate) == (
        recipe_model.num_patches,
        recipe_model.drop_path_rate,
    )


@pytest.mark.parametrize("name", names_of_kind("finetune", "fewshot", "segment"))
def test_without_weights_to_start_from_the_model_is_the_recipes(name):
    assert parse_recipe(name).model == recipe(name).model


def test_the_command_line_overrides_the_weights_to_start_from(mamba_run):
    model = parse_recipe("finetune_shapes", "--init", mamba_run, "--model.order", "hilbert").model
    assert (model.order, model.name) == ("hilbert", "mamba3d")


def test_settings_of_a_recipe_that_weights_override_are_reported(mamba_run, caplog):
    parse_recipe("finetune_shapes", "--init", mamba_run)
    template = "model.{}: {} of the weights that --init names overrides {} of the recipe"
    assert template.format("name", "'mamba3d'", "'hybridnet3d'") in caplog.text
    assert template.format("layout", "'Mx2'", "'MMMT'") in caplog.text
    assert template.format("patch_size", 8, 32) in caplog.text
    assert template.format("num_heads", "the default", 4) in caplog.text
    assert "drop_path_rate" not in caplog.text


def test_settings_of_the_command_line_are_not_reported_as_overridden(mamba_run, caplog):
    parse_recipe("finetune_shapes", "--init", mamba_run, "--model.order=hilbert", "--model.layout=Mx2")
    assert "model.order" not in caplog.text
    assert "model.layout" not in caplog.text
    assert "model.num_heads" in caplog.text


def test_a_recipe_that_agrees_with_the_weights_is_not_reported(mamba_run, tmp_path, caplog):
    agreeing = tmp_path / "finetune_agreeing.yaml"
    agreeing.write_text(
        yaml.safe_dump({"model": {**vars(MODELS.read_model_config(mamba_run)), "num_patches": 4}})
    )
    (finetune,) = (entry for entry in COMMANDS if entry.name == "finetune")
    argv = ["--config", str(agreeing), "--init", str(mamba_run)]
    model = parse("map-points finetune", finetune, COMMANDS, DOMAIN.recipes, argv).model
    assert (model.name, model.num_patches) == ("mamba3d", 4)
    assert not caplog.records


@pytest.mark.parametrize("name", ["finetune_shapes", "finetune_modelnet40"])
def test_a_recipe_finetunes_a_mamba3d_run(name, mamba_run, tmp_path):
    config = parse_recipe(
        name, "--init", mamba_run, *SHORT, "--training.warmup_epochs=0",
        "--data.num_points=64", "--model.num_patches=16", f"--out={tmp_path / 'run'}",
    )  # fmt: skip
    train(
        FinetuneTask(DOMAIN, config, random_data(config)),
        config.training,
        tmp_path / "run",
        run_config=config,
    )
    model, _ = MODELS.classifier(tmp_path / "run")
    assert model.encoder.layout == "MM"
