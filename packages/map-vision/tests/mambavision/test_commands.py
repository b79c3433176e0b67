"""Pyramids on the command line: pretraining, finetuning at another size, evaluation, and settings they lack."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import map_core.commands.program
import map_vision
from map_core import UserError
from map_core.commands.listing import standard_commands
from map_core.commands.parser import load_recipe, parse
from map_core.commands.recipes import find_recipe
from map_core.commands.standard import configs
from map_core.tasks.weights import save_weights
from map_vision.domain import DOMAIN
from map_vision.factory import ModelConfig, create_backbone, create_model
from map_vision.pretraining import build_objective

COMMANDS = standard_commands(DOMAIN, sample="image")
RECIPES = (
    "pretrain_mambavision_base_in1k",
    "pretrain_mambavision_large_in1k",
    "finetune_mambavision_base_in1k",
)
SMALL = (
    "--model.embed_dim=64",
    "--model.stem_dim=4",
    "--model.depths=[1,1,2,2]",
    "--model.num_heads=[2,4]",
    "--model.window_size=[4,2]",
    "--model.mlp_ratio=2",
)
DECODER = ("--objective.decoder_dim=16", "--objective.decoder_depth=1", "--objective.decoder_heads=2")
SHORT = (
    "--training.max_steps=2",
    "--training.batch_size=4",
    "--training.workers=0",
    "--training.precision=fp32",
    "--training.device=cpu",
    "--training.progress=false",
    "--training.tensorboard=false",
)
QUICK = ("--evaluation.workers=0", "--evaluation.progress=false", "--evaluation.device=cpu")


def command(*arguments):
    """Run ``map-vision`` in this process and return its exit status."""
    return map_core.commands.program.main(
        "map-vision", COMMANDS, DOMAIN.recipes, [str(argument) for argument in arguments]
    )


def resolved(name):
    return load_recipe(DOMAIN.recipes, name, getattr(configs(DOMAIN), name.partition("_")[0]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, image_folder):
    """Two steps of the shrunken recipes: pretraining at 64 pixels, then finetuning at 96x80."""
    root, data = tmp_path_factory.mktemp("runs"), f"--data.root={image_folder}"
    pretrain = ["pretrain", "--config", RECIPES[0], data, *SMALL, *DECODER, *SHORT, "--model.img_size=64"]
    assert command(*pretrain, "--out", root / "pretrain") == 0
    finetune = ["finetune", "--config", RECIPES[2], "--init", root / "pretrain", data, *SHORT]
    assert command(*finetune, "--model.img_size=[96,80]", "--out", root / "finetune") == 0
    return root


def test_a_pretraining_run_exports_the_backbone_with_its_painted_cell(runs):
    state = load_file(runs / "pretrain" / "model.safetensors")
    described = json.loads((runs / "pretrain" / "model.json").read_text())
    assert described["name"] == "map_mambavision_base"
    assert described["arguments"]["depths"] == [1, 1, 2, 2]
    assert state["mask_token"].shape == (32 * 32 * 3,)
    assert set(state) == set(create_backbone(DOMAIN.models.read_model_config(runs / "pretrain")).state_dict())
    assert (runs / "pretrain" / "reconstructions.png").stat().st_size > 0


def test_finetuning_starts_from_it_at_another_size(runs, image_folder, tmp_path):
    config = DOMAIN.models.read_model_config(runs / "finetune")
    assert (config.img_size, config.embed_dim) == ((96, 80), 64)
    assert "mask_token" not in load_file(runs / "finetune" / "model.safetensors")
    model = create_model(config, num_classes=3)
    report = DOMAIN.models.load_init(model, runs / "pretrain")
    assert report.missing == ("head.weight", "head.bias")
    state = load_file(runs / "pretrain" / "model.safetensors")
    for name, value in model.state_dict().items():
        assert name.startswith("head.") or torch.equal(value, state[name]), name


def test_a_finetuned_run_is_evaluated_and_loads_whole(runs, tmp_path):
    assert command("evaluate", "--init", runs / "finetune", *QUICK, "--out", tmp_path / "evaluate") == 0
    found = json.loads((tmp_path / "evaluate" / "summary.json").read_text())
    assert 0 <= found["test_accuracy"] <= 100
    model = map_vision.load(runs / "finetune")
    assert model.classes == ("bright", "dark", "gray")
    assert model(torch.randn(2, 3, 50, 70)).shape == (2, 3)


def test_a_probe_becomes_a_plain_classifier(runs, image_folder, tmp_path):
    arguments = [
        "--init",
        runs / "pretrain",
        f"--data.root={image_folder}",
        *SHORT,
        "--training.warmup_epochs=0",
    ]
    assert command("linear-probe", *arguments, "--out", tmp_path / "probe") == 0
    assert map_vision.load(tmp_path / "probe")(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_an_objective_is_rebuilt_from_its_run(runs):
    objective = map_vision.load_objective(runs / "pretrain").objective
    state = load_file(runs / "pretrain" / "model.safetensors")
    for name, value in objective.backbone.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_pretraining_goes_on_from_a_classifier(runs):
    backbone = create_backbone(DOMAIN.models.read_model_config(runs / "finetune"))
    assert DOMAIN.models.load_init(backbone, runs / "finetune", keep_head=False).missing == ("mask_token",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layout": "Mx4"},
            r"model.layout \(Mx4\) is not a setting of map_mambavision_tiny; it has img_size, in_chans",
        ),
        (
            {"patch_size": 8},
            r"model.patch_size \(8\) is not a setting of map_mambavision_tiny; .*: leave it out",
        ),
        ({"num_registers": 3}, r"model.num_registers \(3\) is not a setting of map_mambavision_tiny"),
        (
            {"global_pool": "register"},
            r"model.global_pool of map_mambavision_tiny is 'avg': it has no registers to pool",
        ),
    ],
)
def test_a_pyramid_refuses_settings_that_it_does_not_have(changes, message):
    with pytest.raises(UserError, match=message):
        create_model(ModelConfig("map_mambavision_tiny", **changes), num_classes=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"depths": (1, 1, 1, 1)},
            r"model.depths \(\(1, 1, 1, 1\)\) is not a setting of hybridnet_tiny_patch16_224",
        ),
        ({"num_heads": (2, 4)}, r"model.num_heads of hybridnet_tiny_patch16_224 is one number; got \(2, 4\)"),
    ],
)
def test_other_models_refuse_the_settings_of_pyramids(changes, message):
    with pytest.raises(UserError, match=message):
        create_model(ModelConfig("hybridnet_tiny_patch16_224", **changes), num_classes=3)


def test_one_number_for_both_stages_is_the_pair_of_it(tmp_path):
    """Whichever of them a run was trained with, the other starts from it."""
    one, pair = (
        ModelConfig("map_mambavision_tiny", num_heads=heads, window_size=windows)
        for heads, windows in ((8, (7, 7)), ((8, 8), (7, 7)))
    )
    for trained, requested in ((one, pair), (pair, one)):
        save_weights(tmp_path / "model.safetensors", {}, DOMAIN.models.describe(trained))
        DOMAIN.models.refuse_other_settings(requested, tmp_path)
    other = ModelConfig("map_mambavision_tiny", num_heads=(8, 16), window_size=(7, 7))
    with pytest.raises(UserError, match=r"trained with model.num_heads \(8, 8\), this model has \(8, 16\)"):
        DOMAIN.models.refuse_other_settings(other, tmp_path)


def rows_of_header(name):
    """The rows of a recipe's header by their first word."""
    with find_recipe(DOMAIN.recipes, name) as path:
        text = re.sub(r"\n# {9,}", " ", path.read_text())
    return {
        row.split()[1]: row.split(maxsplit=2)[2] for row in text.splitlines() if re.match(r"# \w+ {2,}", row)
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_header_states_its_parameters_and_runs_it(name):
    rows, recipe = rows_of_header(name), resolved(name)
    with torch.device("meta"):
        if name.startswith("pretrain"):
            backbone = create_backbone(recipe.model)
            models = [backbone, build_objective(backbone, recipe.objective)]
        else:
            models = [create_model(recipe.model, num_classes=1000)]
    counts = [f"{sum(p.numel() for p in model.parameters()):,}" for model in models]
    assert re.findall(r"\d{1,3}(?:,\d{3})+", rows["model"]) == counts
    words = shlex.split(rows["command"])
    program, *arguments = words[words.index("map_vision") + 1 :]
    entry = next(entry for entry in COMMANDS if entry.name == program)
    config = parse("map-vision", entry, COMMANDS, DOMAIN.recipes, arguments)
    assert (config.model, Path(config.out).name) == (recipe.model, name)
    images = int(re.search(r"(\d+) images", rows["hardware"])[1])
    assert config.training.micro_batch(processes=8) == images


@pytest.mark.parametrize("name", RECIPES[:2])
def test_the_finetuning_command_in_a_header_takes_the_pretrained_weights(name):
    program, *arguments = shlex.split(re.sub(r" {4}\(.*", "", rows_of_header(name)["then"]))[1:]
    entry = next(entry for entry in COMMANDS if entry.name == program)
    config = parse("map-vision", entry, COMMANDS, DOMAIN.recipes, arguments)
    with torch.device("meta"):
        pretrained, classifier = (
            create_backbone(resolved(name).model),
            create_model(config.model, num_classes=1000),
        )
    shapes, ours = ({k: v.shape for k, v in m.state_dict().items()} for m in (pretrained, classifier))
    assert ours.items() >= shapes.items() - {("mask_token", shapes["mask_token"])}
    assert Path(config.init).name == name


@pytest.mark.parametrize(("size", "warmup", "decay"), [("base", 35, 0.075), ("large", 20, 0.12)])
def test_finetuning_is_set_as_published(size, warmup, decay):
    recipe = resolved(f"finetune_mambavision_{size}_in1k")
    training, objective = recipe.training, recipe.objective
    assert (training.optimizer, training.peak_lr, training.min_lr) == ("lamb", 5e-3, 5e-6)
    assert (training.epochs, training.warmup_epochs, training.weight_decay) == (310, warmup, decay)
    assert (training.clip_grad, training.ema_decay, recipe.model.drop_path_rate) == (5, 0.9998, 0.3)
    assert (objective.mixup, objective.cutmix, objective.smoothing, recipe.data.random_erasing) == (
        0.8,
        1,
        0.1,
        0.25,
    )
