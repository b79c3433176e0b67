"""The packaged recipes: their headers hold, and shrunken versions train."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from map_core.commands.listing import standard_commands
from map_core.commands.parser import load_recipe, parse
from map_core.commands.plain_yaml import read_yaml
from map_core.commands.program import main
from map_core.commands.recipes import find_recipe, recipe_names
from map_core.commands.standard import configs
from map_core.layout import expand_layout
from map_core.masking import hidden_count
from map_core.randomness import Draw
from map_core.tasks.classification import FinetuneTask, LinearProbeTask
from map_core.tasks.pretraining import PretrainTask
from map_core.tasks.weights import save_weights
from map_core.training import train
from map_core.training.optimizer import build_optimizer
from map_vision.data.preprocessing import resolve_preprocessing
from map_vision.domain import DOMAIN
from map_vision.factory import MODELS, create_backbone, create_model
from map_vision.pretraining import build_objective
from map_vision.registry import default_cfgs
from map_vision.weights import without_unused

NAMES = (
    "finetune_base_in1k",
    "finetune_base_in1k_384",
    "finetune_base_in1k_scratch",
    "finetune_base_in1k_scratch_deit_star",
    "finetune_base_in1k_scratch_mambar_star",
    "finetune_base_in1k_scratch_mmmmmmtt",
    "finetune_base_in1k_scratch_tmmm",
    "finetune_base_in1k_scratch_ttmmmmmm",
    "finetune_cifar10",
    "finetune_digits",
    "finetune_folder",
    "finetune_large_in1k",
    "finetune_large_in1k_384",
    "finetune_large_in1k_scratch",
    "finetune_mambar_base_in1k",
    "finetune_mambar_base_in1k_scratch",
    "finetune_mambar_large_in1k",
    "finetune_mambar_large_in1k_scratch",
    "finetune_mambavision_base_in1k",
    "finetune_mambavision_large_in1k",
    "finetune_small_in1k",
    "finetune_small_in1k_scratch",
    "finetune_tiny_in1k",
    "finetune_tiny_in1k_scratch",
    "finetune_vim_base_in1k",
    "finetune_vim_base_in1k_scratch",
    "finetune_vit_base_in1k",
    "finetune_vit_base_in1k_scratch",
    "finetune_vit_large_in1k",
    "linear_base_in1k",
    "linear_cifar10",
    "linear_digits",
    "linear_folder",
    "pretrain_base_in1k",
    "pretrain_base_in1k_ar",
    "pretrain_base_in1k_ar_table6",
    "pretrain_base_in1k_authors",
    "pretrain_base_in1k_authors_wiring",
    "pretrain_base_in1k_autoregression",
    "pretrain_base_in1k_causal",
    "pretrain_base_in1k_diagonal",
    "pretrain_base_in1k_diffusion",
    "pretrain_base_in1k_local_mae",
    "pretrain_base_in1k_mae",
    "pretrain_base_in1k_mae_table8",
    "pretrain_base_in1k_mamba_decoder",
    "pretrain_base_in1k_moco_v2",
    "pretrain_base_in1k_moco_v3",
    "pretrain_base_in1k_ratio0",
    "pretrain_base_in1k_ratio25",
    "pretrain_base_in1k_ratio75",
    "pretrain_base_in1k_scales",
    "pretrain_base_in1k_sequential",
    "pretrain_base_in1k_simmim",
    "pretrain_cifar10",
    "pretrain_digits",
    "pretrain_large_in1k",
    "pretrain_mambar_base_in1k",
    "pretrain_mambar_base_in1k_ar",
    "pretrain_mambar_base_in1k_mae",
    "pretrain_mambar_large_in1k",
    "pretrain_mambavision_base_in1k",
    "pretrain_mambavision_large_in1k",
    "pretrain_photos",
    "pretrain_small_in1k",
    "pretrain_tiny_in1k",
    "pretrain_vim_base_in1k_ar",
    "pretrain_vim_base_in1k_autoregression",
    "pretrain_vim_base_in1k_autoregression_column_scan",
    "pretrain_vim_base_in1k_autoregression_column_scan_rows",
    "pretrain_vim_base_in1k_autoregression_columns",
    "pretrain_vim_base_in1k_mae",
    "pretrain_vim_base_in1k_moco_v2",
    "pretrain_vit_base_in1k",
    "pretrain_vit_base_in1k_ar",
    "pretrain_vit_base_in1k_mae",
    "pretrain_vit_base_in1k_moco_v2",
    "pretrain_vit_large_in1k",
    "pretrain_vit_large_in1k_mae",
)
IN1K = tuple(name for name in NAMES if "_in1k" in name)
COMMAND_NAMES = {"pretrain": "pretrain", "finetune": "finetune", "linear": "linear-probe"}
COMMANDS, RECIPES = standard_commands(DOMAIN, sample="image"), DOMAIN.recipes
FINETUNE = configs(DOMAIN).finetune
CONFIGS = {"pretrain": configs(DOMAIN).pretrain, "finetune": FINETUNE, "linear": FINETUNE}
TASKS = {"pretrain": PretrainTask, "finetune": FinetuneTask, "linear": LinearProbeTask}

# the paper's 12M, 37M, 128M, 443M, and what others published
CLASSIFIER_PARAMETERS = {
    "finetune_tiny_in1k": 11_640_424,
    "finetune_small_in1k": 37_272_040,
    "finetune_base_in1k": 127_674_088,
    "finetune_large_in1k": 442_049_512,
    "finetune_base_in1k_384": 127_965_928,
    "finetune_large_in1k_384": 442_438_632,
    "finetune_mambar_base_in1k": 99_301_096,
    "finetune_mambar_large_in1k": 341_222_376,
    "finetune_vim_base_in1k": 97_598_440,
    "finetune_vit_base_in1k": 86_567_656,
    "finetune_vit_large_in1k": 304_326_632,
    "finetune_mambavision_large_in1k": 241_554_824,
}

SHORT = (
    "--training.batch_size=4",
    "--training.max_steps=2",
    "--training.workers=0",
    "--training.precision=fp32",
    "--training.device=cpu",
    "--training.log_steps=1",
    "--training.progress=false",
    "--training.tensorboard=false",
)
SMALL_DECODER = ("--objective.decoder_depth=1", "--objective.decoder_dim=16", "--objective.decoder_heads=2")
SMALL_OBJECTIVES = {
    "masked_autoregression": SMALL_DECODER,
    "autoregression": SMALL_DECODER,
    "masked_diffusion": (*SMALL_DECODER, "--objective.diffusion_dim=16", "--objective.sampling_steps=2"),
    "simmim": (),
    "contrastive": ("--objective.hidden_dim=16", "--objective.out_dim=8"),
}


def kind(name):
    return name.split("_")[0]


def layers_of(name):
    """The kinds of layers of a recipe's model, in its order."""
    return "".join(dict.fromkeys(expand_layout(MODELS.resolved(resolved(name).model)["layout"])))


def small_model(name, img_size=24):
    """Overrides that keep the kinds of layers of a recipe's model and shrink everything else."""
    if "mambavision" in name:
        pyramid = ("embed_dim=64", "stem_dim=4", "depths=[1,1,2,2]", "num_heads=[2,2]", "window_size=[2,2]")
        return (
            "--model.img_size=64",
            *(f"--model.{setting}" for setting in pyramid),
        )  # a cell has 32x32 pixels
    return (
        f"--model.img_size={img_size}",
        "--model.patch_size=4",
        "--model.embed_dim=32",
        f"--model.layout={layers_of(name)}",
        "--model.num_heads=2",
    )


def shrunken(name, image_folder):
    """Overrides with which the recipe takes two fast steps; what characterises it stays."""
    if name.endswith("_digits"):
        return SHORT  # its images and its model are small as they are
    overrides = [*SHORT, *small_model(name), f"--data.root={image_folder}"]
    if kind(name) != "pretrain":
        return overrides
    objective = resolved(name).objective
    queue = ["--objective.queue=8"] if getattr(objective, "version", None) == "v2" else []
    return [*overrides, *SMALL_OBJECTIVES[objective.method], *queue]


def resolved(name, overrides=()):
    return load_recipe(RECIPES, name, CONFIGS[kind(name)], overrides)


def header(name):
    """The rows of a recipe's header by their first word; indented lines continue a row."""
    rows, key = {}, None
    with find_recipe(RECIPES, name) as path:
        lines = path.read_text().splitlines()
    for line in lines[1:]:
        if not line.startswith("#"):
            return rows
        if match := re.match(r"# (\w+) +(.+)", line):
            key, rows[match[1]] = match[1], match[2]
        elif key is not None and line != "#":
            rows[key] += f" {line[1:].strip()}"
    raise AssertionError(f"{name} has no settings")


def arguments_in(command):
    """The arguments of map-vision in a header's command."""
    words = shlex.split(re.sub(r" {4}\(.*", "", command))
    program = words.index("map-vision") if "map-vision" in words else words.index("map_vision")
    return words[program + 1 :]


MODEL_CACHE = {}  # most recipes share a few models


def on_meta_device(create, model, **options):
    """A model on the meta device, created once for all recipes that use it."""
    key = create, repr(model), repr(options)
    if key not in MODEL_CACHE:
        with torch.device("meta"):
            MODEL_CACHE[key] = create(model, **options)
    return MODEL_CACHE[key]


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, image_folder):
    """A run of pretrain_base_in1k, shrunken."""
    out = tmp_path_factory.mktemp("recipes") / "pretrained"
    config = resolved("pretrain_base_in1k", shrunken("pretrain_base_in1k", image_folder))
    train(PretrainTask(DOMAIN, config), config.training, out, run_config=config)
    return out


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the pictures of runs empty: drawing them takes longer than the two steps."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: Path(path).touch())


def test_the_packaged_recipes_are_the_promised_ones():
    assert tuple(recipe_names(RECIPES)) == NAMES


def test_the_module_lists_every_recipe_as_the_program_does():
    output = subprocess.run(
        [sys.executable, "-m", "map_vision", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert output.startswith("usage: map-vision COMMAND")
    assert set(NAMES) <= set(output.split())


@pytest.mark.parametrize("name", NAMES)
def test_the_command_in_the_header_runs_this_recipe(name):
    command, *arguments = arguments_in(header(name)["command"])
    assert command == COMMAND_NAMES[kind(name)]
    by_name = {entry.name: entry for entry in COMMANDS}
    config = parse("map-vision", by_name[command], COMMANDS, RECIPES, arguments)
    recipe = resolved(name)
    assert arguments[arguments.index("--config") + 1] == name
    assert config.model == recipe.model
    assert config.objective == recipe.objective
    assert Path(config.out).name == name
    assert config.init is None or Path(config.init).name in NAMES
    config.training.validate()


@pytest.mark.parametrize("name", IN1K)
def test_the_launch_in_the_header_splits_the_batch_evenly(name):
    command = header(name)["command"]
    processes = int(re.search(r"--(?:nproc_per_node|num_processes) (\d+)", command)[1])
    _, *arguments = arguments_in(command)
    entry = next(entry for entry in COMMANDS if entry.name == COMMAND_NAMES[kind(name)])
    config = parse("map-vision", entry, COMMANDS, RECIPES, arguments)
    micro_batch = config.training.micro_batch(processes)
    assert micro_batch % 2 == 0 or not getattr(config.objective, "mixup", 0)
    images = re.search(r"(\d+) images", header(name)["hardware"])[1]
    assert micro_batch == int(images)


@pytest.mark.parametrize("name", IN1K)
def test_the_header_says_what_was_run_and_what_to_expect(name):
    rows = header(name)
    assert {"command", "data", "model", "settings", "hardware", "expected", "status"} <= set(rows)
    assert "not run here" in rows["hardware"]
    assert "not reproduced here" in rows["expected"]
    assert "never run at full size" in rows["status"]


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "mambavision" not in name and "then" in header(name)]
)
def test_the_finetuning_command_in_the_header_fits_the_encoder(name):
    command, *arguments = arguments_in(header(name)["then"])
    assert command == "finetune"
    entry = next(entry for entry in COMMANDS if entry.name == command)
    config = parse("map-vision", entry, COMMANDS, RECIPES, arguments)
    encoder = on_meta_device(create_backbone, resolved(name).model)
    classifier = on_meta_device(create_model, config.model, num_classes=1000)
    missing = set(without_unused(encoder.state_dict(), classifier)) - set(classifier.state_dict())
    assert not missing
    peers = 0.75**24 if "large" in name else 0.65**12
    assert config.training.layer_decay ** len(classifier.encoder.blocks) == pytest.approx(peers, rel=0.02)
    assert Path(config.init).name == name


@pytest.mark.parametrize("name", NAMES)
def test_the_model_has_the_parameters_of_the_header(name):
    config = resolved(name)
    if kind(name) == "finetune":
        counts = [parameters(on_meta_device(create_model, config.model, num_classes=1000))]
    else:
        encoder = on_meta_device(create_backbone, config.model)
        counts = [parameters(encoder), encoder.embed_dim * 1000 + 1000]
    if kind(name) == "pretrain":
        with torch.device("meta"):
            counts[1] = parameters(build_objective(encoder, config.objective))
    if name in IN1K:
        stated = re.findall(r"\d{1,3}(?:,\d{3})+", header(name)["model"])
        assert stated == [f"{count:,}" for count in counts]
    if name in CLASSIFIER_PARAMETERS:
        assert counts == [CLASSIFIER_PARAMETERS[name]]


@pytest.mark.parametrize(
    ("name", "attention", "ratio"),
    [
        ("pretrain_tiny_in1k", "map", 0.5),
        ("pretrain_small_in1k", "map", 0.5),
        ("pretrain_base_in1k", "map", 0.5),
        ("pretrain_large_in1k", "map", 0.5),
        ("pretrain_base_in1k_mae", "mae", 0.5),
        ("pretrain_base_in1k_local_mae", "local_mae", 0.5),
        ("pretrain_base_in1k_ar", "ar", 0.2041),
        ("pretrain_base_in1k_ar_table6", "ar", 0.5),
        ("pretrain_base_in1k_mae_table8", "mae", 0.75),
        ("pretrain_mambar_base_in1k", "map", 0.5),
        ("pretrain_vit_base_in1k", "map", 0.5),
    ],
)
def test_pretraining_recipes_differ_in_what_their_names_say_alone(name, attention, ratio):
    config, base = resolved(name), resolved("pretrain_base_in1k")
    assert (config.objective.attention, config.objective.mask_ratio) == (attention, ratio)
    assert config.training == base.training
    assert config.data == base.data
    assert config.training.epochs == 1600
    assert config.data.augmentation == "crop_flip"


@pytest.mark.parametrize(
    ("name", "hidden", "decoder"),
    [
        ("pretrain_base_in1k", 98, (4, 192)),
        ("pretrain_base_in1k_mae", 98, (4, 192)),
        ("pretrain_base_in1k_local_mae", 98, (4, 192)),
        ("pretrain_base_in1k_ar_table6", 98, (4, 192)),
        ("pretrain_base_in1k_ar", 40, (4, 192)),
        ("pretrain_base_in1k_mae_table8", 147, (8, 512)),
    ],
)
def test_table_6_changes_the_mask_alone_and_table_8_hides_what_each_method_hides(name, hidden, decoder):
    objective = resolved(name).objective
    assert hidden_count(objective.mask_ratio, 196) == hidden
    assert (objective.decoder_depth, objective.decoder_dim) == decoder


@pytest.mark.parametrize("size", ["mambar_base", "mambar_large", "vim_base"])
def test_the_recipes_of_mamba_models_crop_at_evaluation_as_the_models_say(size):
    for name in (f"finetune_{size}_in1k", f"finetune_{size}_in1k_scratch"):
        config = resolved(name)
        cropped = resolve_preprocessing(config.data, in_chans=3).crop_pct
        assert cropped == default_cfgs[config.model.name].default.crop_pct


def test_the_authors_recipe_draws_ratios_between_their_bounds():
    objective = resolved("pretrain_base_in1k_authors").objective
    ratios = [objective.masking.step_ratio(Draw.of_batch(1, step=step)) for step in range(200)]
    assert min(ratios) > 0.3
    assert max(ratios) < 0.7
    assert torch.tensor(ratios).std().item() == pytest.approx(0.111, abs=0.02)  # of the authors' distribution


@pytest.mark.parametrize(
    ("name", "peer", "layers"),
    [
        ("finetune_tiny_in1k", 0.65, 12),
        ("finetune_small_in1k", 0.65, 12),
        ("finetune_base_in1k", 0.65, 12),
        ("finetune_large_in1k", 0.75, 24),
    ],
)
def test_layer_decay_slows_the_first_layer_as_the_peers_do(name, peer, layers):
    config = resolved(name)
    depth = len(on_meta_device(create_backbone, config.model).encoder.blocks)
    assert config.training.layer_decay**depth == pytest.approx(peer**layers, rel=0.02)
    assert config.training.epochs == 400


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith("finetune") and "scratch" in name]
)
def test_from_scratch_no_layer_learns_slower_than_another(name):
    training = resolved(name).training
    assert training.layer_decay is None
    assert (training.peak_lr, training.min_lr) == (pytest.approx(1e-3), 1e-5)


@pytest.mark.parametrize(
    ("row", "letters"),
    [
        ("", "MMMT" * 8),
        ("_tmmm", "TMMM" * 8),
        ("_ttmmmmmm", "T" * 8 + "M" * 24),
        ("_mmmmmmtt", "M" * 24 + "T" * 8),
        ("_deit_star", "T" * 32),
        ("_mambar_star", "M" * 32),
    ],
)
def test_table_4_changes_the_layout_alone(row, letters):
    config, base = resolved(f"finetune_base_in1k_scratch{row}"), resolved("finetune_base_in1k_scratch")
    assert expand_layout(MODELS.resolved(config.model)["layout"]) == letters
    assert replace(config, model=base.model, out=base.out) == base


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        ("ratio0", {"mask_ratio": 0.0}),
        ("ratio25", {"mask_ratio": 0.25}),
        ("ratio75", {"mask_ratio": 0.75}),
        ("sequential", {"mask_strategy": "sequential"}),
        ("diagonal", {"mask_strategy": "diagonal"}),
    ],
)
def test_table_5_changes_what_is_hidden_alone(row, changed):
    config, base = resolved(f"pretrain_base_in1k_{row}"), resolved("pretrain_base_in1k")
    assert config.objective == replace(base.objective, **changed)
    assert replace(config, objective=base.objective, out=base.out) == base


@pytest.mark.parametrize(
    ("row", "predicted", "scanned"),
    [
        ("", "row", "row"),
        ("_columns", "column", "row"),
        ("_column_scan", "column", "column"),
        ("_column_scan_rows", "row", "column"),
    ],
)
def test_table_2_predicts_in_the_order_of_the_scan_or_in_another(row, predicted, scanned, caplog):
    config = resolved(f"pretrain_vim_base_in1k_autoregression{row}")
    assert (config.objective.region, config.model.order) == (predicted, scanned)
    with torch.device("meta"):
        build_objective(create_backbone(config.model), config.objective)
    assert ("Table 2" in caplog.text) == (predicted != scanned)


@pytest.mark.parametrize("name", NAMES)
def test_a_shrunken_recipe_takes_two_steps(name, tmp_path, image_folder, undrawn):
    overrides = [*shrunken(name, image_folder), f"--out={tmp_path / 'run'}"]
    if kind(name) == "linear":
        model = resolved(name, overrides).model
        state = DOMAIN.models.create_backbone(model).state_dict()
        save_weights(tmp_path / "model.safetensors", state, DOMAIN.models.describe(model, holds="encoder"))
        overrides.append(f"--init={tmp_path / 'model.safetensors'}")
    config = resolved(name, overrides)
    task = TASKS[kind(name)](DOMAIN, config)
    assert task.data.train.transform is not task.data.plain_train.transform
    follows = "slow."  # the momentum encoder, which no gradient reaches
    frozen = {
        key: value.clone()
        for key, value in task.model.named_parameters()
        if not value.requires_grad and not key.startswith(follows)
    }
    summary = train(task, config.training, tmp_path / "run", run_config=config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [1, 2]
    assert summary["loss"] == steps[-1]["loss"]
    after = dict(task.model.named_parameters())
    assert all(torch.equal(after[key], value) for key, value in frozen.items())
    assert bool(frozen) == (kind(name) == "linear")
    learning = {key for key in after.keys() - frozen.keys() if not key.startswith(follows)}
    without_gradient = {key for key in learning if not torch.any(after[key].grad != 0)}
    if name.endswith("_ratio0"):
        without_gradient.remove("decoder.mask_token")  # nothing is hidden
    if name.endswith("_diffusion"):
        # modulations begin at zero, so that conditions count for nothing at first; test_diffusion.py looks later
        without_gradient = {key for key in without_gradient if key.startswith("head.net.final_layer.linear")}
    assert not without_gradient, "nothing is learned by what the loss does not reach"


def test_from_pretraining_to_384_by_command_line(tmp_path, image_folder, pretrained):
    """Sizes come from the run that --init names; the recipe's own settings override them."""
    runs = {name: str(tmp_path / name) for name in ("finetune_base_in1k", "finetune_base_in1k_384")}
    data = f"--data.root={image_folder}"
    first = ["finetune", "--config", "finetune_base_in1k", "--init", str(pretrained), data, *SHORT]
    assert main("map-vision", COMMANDS, RECIPES, [*first, "--out", runs["finetune_base_in1k"]]) == 0
    second = [
        "finetune",
        "--config",
        "finetune_base_in1k_384",
        "--init",
        runs["finetune_base_in1k"],
        data,
        *SHORT,
    ]
    second += ["--model.img_size=32", "--out", runs["finetune_base_in1k_384"]]
    assert main("map-vision", COMMANDS, RECIPES, second) == 0
    config = read_yaml(Path(runs["finetune_base_in1k_384"]) / "config.yaml")
    assert config["model"]["embed_dim"] == 32
    assert config["model"]["name"] == "hybridnet_base_patch16_384"
    assert config["data"]["augmentation"] == "timm"


def test_lars_adapts_the_step_of_the_probes_weight_and_not_of_its_bias(image_folder, pretrained):
    """timm's LARS adapts only weights with decay, and none if the decay is 0: hence the recipe's 1e-12."""
    rate = resolved("linear_base_in1k").training.peak_lr
    assert rate == pytest.approx(6.4)
    overrides = [*shrunken("linear_base_in1k", image_folder), f"--init={pretrained}", f"--training.lr={rate}"]
    config = resolved("linear_base_in1k", overrides)
    task = LinearProbeTask(DOMAIN, config)
    optimizer = build_optimizer(task.parameter_groups(config.training), config.training)
    head = task.model.head
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    images = torch.stack([task.train_data[index][0] for index in range(4)])
    task.model.train()(images).square().sum().backward()
    optimizer.step()
    step = config.training.peak_lr
    assert (head.weight - weight).norm().item() == pytest.approx(
        0.001 * step * weight.norm().item(), rel=1e-3
    )
    torch.testing.assert_close(head.bias - bias, -step * head.bias.grad)
