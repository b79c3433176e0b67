"""The objectives over images: their settings, their effect down to the pixel, and the files of runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from map_core import Draw, UserError
from map_core.commands.parser import load_recipe
from map_core.commands.standard import configs
from map_core.tasks.classification import FinetuneTask
from map_core.tasks.domain import OpenedData
from map_core.tasks.pretraining import PretrainTask, hide_and_reconstruct, load_objective
from map_core.tasks.weights import read_description
from map_core.training import train
from map_vision.domain import DOMAIN
from map_vision.factory import ModelConfig, create_backbone, create_model
from map_vision.mambavision import MambaVision
from map_vision.pictures import reconstruct
from map_vision.pretraining import OBJECTIVES, ImageObjectiveConfig, ImageSimMIMConfig, build_objective
from map_vision.targets import Neighborhoods
from map_vision.tokenizer import tokenize_images
from map_vision.views import ViewColors, view_colors

DRAW = Draw.of_batch(2, seed=0)
SMALL = (
    "--model.embed_dim=32", "--model.layout=MT", "--training.batch_size=32", "--data.subset=96", "--training.epochs=2",
    "--training.warmup_epochs=0", "--training.device=cpu", "--training.progress=false",
    "--training.tensorboard=false", "--training.log_steps=1",
)  # fmt: skip
METHODS = {
    "masked_autoregression": (),
    "causal": ("--objective.encoder=causal", "--model.bidirectional=false"),
    "autoregression": ("--objective.method=autoregression", "--model.bidirectional=false"),
    "simmim": ("--objective.method=simmim", "--objective.mask_unit=2"),
    "masked_diffusion": (
        "--objective.method=masked_diffusion", "--objective.diffusion_dim=16", "--objective.sampling_steps=3",
    ),
    "mamba_decoder": ("--objective.decoder=mamba",),
    "scales": ("--objective.target_scales=[1,3]",),
    "ratio0": ("--objective.mask_ratio=0",),
    "moco_v2": (
        "--objective.method=contrastive", "--objective.version=v2", "--objective.queue=48",
        "--objective.colors=moco_v2",
    ),
    "moco_v3": ("--objective.method=contrastive", "--objective.hidden_dim=16"),
}  # fmt: skip


def recipe(name, *more):
    return load_recipe(
        DOMAIN.recipes, "pretrain_digits", configs(DOMAIN).pretrain, [*SMALL, *METHODS[name], *more]
    )


def build(name, *more):
    torch.manual_seed(0)
    config = recipe(name, *more)
    return build_objective(create_backbone(config.model), config.objective)


@pytest.fixture
def digits():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def pretrain(name, out, *more):
    config = recipe(name, f"--out={out}", *more)
    task = PretrainTask(DOMAIN, config)
    train(task, config.training, out, run_config=config)
    return task


# ---- choosing


def test_every_method_has_its_section():
    assert list(OBJECTIVES) == [
        "masked_autoregression",
        "autoregression",
        "simmim",
        "masked_diffusion",
        "contrastive",
    ]
    for method, form in OBJECTIVES.items():
        assert form().method == method
        form().validate()
        assert type(recipe(method if method != "contrastive" else "moco_v3").objective) is form


@pytest.mark.parametrize(
    ("method", "setting", "having"),
    [
        ("simmim", "decoder_depth=2", "masked_autoregression, autoregression, masked_diffusion"),
        ("simmim", "region=row", "masked_autoregression, autoregression, masked_diffusion"),
        ("moco_v3", "mixup=0.5", "masked_autoregression, autoregression, simmim, masked_diffusion"),
        ("masked_autoregression", "queue=8", "contrastive"),
        ("autoregression", "mask_ratio=0.5", "masked_autoregression, simmim, masked_diffusion"),
    ],
)
def test_a_setting_of_another_method_is_refused_by_name(method, setting, having):
    name = setting.partition("=")[0]
    with pytest.raises(
        UserError, match=rf"--objective.{name} is not a setting of objective.method \w+ \(but of {having}\)"
    ):
        recipe(method, f"--objective.{setting}")


@pytest.mark.parametrize("name", METHODS)
def test_a_run_learns_is_described_and_comes_back(name, tmp_path):
    task = pretrain(name, tmp_path, "--training.epochs=1")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if line["kind"] == "train")
    trained = load_objective(DOMAIN, tmp_path)
    assert trained.settings == task.config.objective
    state = trained.objective.state_dict()
    assert state.keys() == task.model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in task.model.state_dict().items())
    has_picture = (tmp_path / "reconstructions.png").is_file()
    assert has_picture == (not name.startswith("moco"))
    assert read_description(tmp_path)["holds"] == "encoder"


@pytest.mark.parametrize("name", ["moco_v2", "moco_v3", "masked_diffusion"])
def test_a_resumed_run_is_the_run(name, tmp_path):
    """The queue, the momentum encoder and its schedule, and the noise of diffusion are those of the step."""
    whole = pretrain(name, tmp_path / "whole", "--training.checkpoint_steps=2")
    config = recipe(
        name, f"--out={tmp_path / 'parts'}", "--training.checkpoint_steps=2", "--training.max_steps=3"
    )
    train(PretrainTask(DOMAIN, config), config.training, tmp_path / "parts", run_config=config)
    config.training.max_steps = None
    task = PretrainTask(DOMAIN, config)
    train(task, config.training, tmp_path / "parts", resume="auto", run_config=config)
    resumed = task.model.state_dict()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed[key]), key


# ---- to the pixel


BLOCKS = ("region=block", "block_size=[2,2]")


@pytest.mark.parametrize("name", ["autoregression", "causal"])
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("--objective.region=column",),
        (*(f"--objective.{block}" for block in BLOCKS), "--model.order=block", "--model.block_size=[2,2]"),
    ],
    ids=["rows", "columns", "blocks"],
)
def test_no_pixel_of_a_later_region_reaches_a_prediction(name, settings, digits):
    objective = build(name, *settings).eval()
    images = digits.requires_grad_()
    result = objective(images, DRAW)
    region = objective.regions(result.tokens, result.mask).index[0]
    positions = result.tokens.position[0].long().tolist()
    for h, prediction in enumerate(result.prediction.unbind(1)):
        (gradient,) = torch.autograd.grad(prediction[0].square().sum(), images, retain_graph=True)
        own_region = region[result.index[0, h]]
        for token, (row, col) in enumerate(positions):
            window = gradient[0, 0, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
            if region[token] > own_region or (name == "autoregression" and region[token] == own_region):
                assert not window.any()
            elif name == "autoregression":
                assert window.any()


def test_hidden_squares_are_painted_whole(digits):
    objective = build("simmim").eval()
    result = objective(digits.requires_grad_(), DRAW)
    hidden = result.mask.hidden.reshape(2, 2, 2, 2, 2).transpose(2, 3).flatten(3)
    assert torch.equal(hidden.all(-1), hidden.any(-1))
    result.prediction.square().sum().backward()
    patches = digits.grad.unflatten(3, (4, 2)).unflatten(2, (4, 2)).abs().sum((1, 3, 5)).flatten(1)
    assert torch.equal(patches > 0, ~result.mask.hidden)


def test_simmim_of_a_pyramid_paints_pixels_before_its_stem():
    backbone = MambaVision(
        64, num_classes=0, embed_dim=64, stem_dim=4, depths=(1, 1, 2, 2), num_heads=2, window_size=2, mask_token=True
    ).eval()  # fmt: skip
    objective = build_objective(backbone, ImageSimMIMConfig(mask_ratio=0.5)).eval()
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    result = objective(images, Draw.of_batch(1))
    result.prediction.square().sum().backward()
    cells = images.grad.unflatten(3, (2, 32)).unflatten(2, (2, 32)).abs().sum((1, 3, 5)).flatten(1)
    assert torch.equal(cells > 0, ~result.mask.hidden)
    assert not any(name == "mask_token" for name, _ in objective.named_parameters())


# ---- targets of several scales


@pytest.mark.parametrize("order", ["row", "hilbert"])
def test_a_neighbourhood_is_the_mean_of_what_lies_around_a_patch(order):
    from map_vision.patches import PatchEmbed

    images = torch.randn(2, 3, 12, 8)
    tokens = tokenize_images(images, PatchEmbed((4, 2), 3, 8), order=order, targets=True)
    (targets,) = Neighborhoods((4, 2), (3,))(images, tokens)
    for token, (row, col) in enumerate(tokens.position[0].long().tolist()):
        for y in range(4):
            for x in range(2):
                rows = [min(max(4 * row - 4 + 3 * y + i, 0), 11) for i in range(3)]
                cols = [min(max(2 * col - 2 + 3 * x + i, 0), 7) for i in range(3)]
                expected = images[:, :, rows][:, :, :, cols].mean((2, 3))
                value = targets[:, token].unflatten(1, (4, 2, 3))[:, y, x]
                torch.testing.assert_close(value, expected)


def test_even_scales_have_no_middle():
    with pytest.raises(UserError, match=r"objective.target_scales of images are odd, .*; got \[2\]"):
        build("masked_autoregression", "--objective.target_scales=[1,2]")


# ---- orders


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ((), False),
        (("--model.order=column",), True),
        (("--model.order=snake",), False),
        (("--objective.region=column",), True),
        (("--objective.region=column", "--model.order=column"), False),
        (("--model.order=hilbert", "--objective.attention=mae"), False),
        (("--model.order=hilbert", "--objective.encoder=causal", "--model.bidirectional=false"), True),
        (("--model.order=hilbert", "--objective.region=block", "--objective.block_size=[2,2]"), True),
    ],
)
def test_a_causal_objective_over_another_order_than_the_scans_is_warned_of(settings, warns, caplog):
    build("masked_autoregression", *settings)
    text = "what is predicted in one order is scanned in another, a mismatch that costs accuracy by the paper's Table 2"
    assert (text in caplog.text) == warns


# ---- pictures


@pytest.mark.parametrize("name", ["autoregression", "ratio0"])
def test_a_picture_shows_predictions_of_all_patches_where_all_are_predicted(name, digits):
    objective = build(name).eval()
    pictures = reconstruct(objective, digits)
    result = objective(digits, Draw.of_batch(2))
    patches = objective.loss.to_values(result.prediction, result.tokens.target)
    pixels = (
        pictures.reconstruction.unflatten(3, (4, 2)).unflatten(2, (4, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3)
    )
    torch.testing.assert_close(pixels.flatten(1, 2), patches)


def test_a_ratio_for_an_objective_that_draws_no_mask_is_refused(digits):
    with pytest.raises(UserError, match=r"Autoregression hides no share of tokens: leave --mask_ratio out"):
        hide_and_reconstruct(build("autoregression"), digits, ratio=0.5)


def test_pictures_of_diffusion_are_drawn_not_regressed(digits):
    objective = build("masked_diffusion").eval()
    pictures = [reconstruct(objective, digits, seed=0).reconstruction for _ in range(2)]
    assert torch.equal(*pictures)
    assert pictures[0].isfinite().all()


# ---- one direction to two


def test_layers_that_scan_four_ways_encode_nothing_causally():
    model = create_backbone(ModelConfig("map_arm_base_patch16_224", embed_dim=32, layout="Fx1", img_size=32))
    with pytest.raises(UserError, match=r"scans one way, .* choose a layout of M and T"):
        build_objective(model, ImageObjectiveConfig(encoder="causal", decoder_dim=16, decoder_heads=2))


def test_a_one_directional_run_starts_a_bidirectional_model_and_says_so(tmp_path, caplog):
    pretrain("autoregression", tmp_path / "run", "--training.max_steps=1")
    config = load_recipe(
        DOMAIN.recipes, "finetune_digits", configs(DOMAIN).finetune,
        [*SMALL, f"--init={tmp_path / 'run'}", "--model.bidirectional=true"],
    )  # fmt: skip
    task = FinetuneTask(DOMAIN, config)
    mixer = task.model.encoder.blocks[0].mixer
    assert mixer.scan_backward.reverse
    for (name, forward), (_, backward) in zip(
        mixer.scan_forward.named_parameters(), mixer.scan_backward.named_parameters(), strict=True
    ):
        assert torch.equal(forward, backward), name
    assert (
        "scans one way and the model both: its 1 layers start their backward scan from the forward weights"
        in (caplog.text)
    )


# ---- views


def test_views_are_two_augmentations_of_one_image():
    data = DOMAIN.open_data(recipe("moco_v3").data, recipe("moco_v3").model, "pretrain")
    samples = recipe("moco_v3").objective.training_samples(data, batch_size=32, micro_batch=32)
    torch.manual_seed(0)
    views, label = samples[3]
    assert views.shape == (2, 1, 8, 8)
    assert not torch.equal(views[0], views[1])
    assert label == data.train[3][1]
    torch.manual_seed(0)
    assert torch.equal(samples[3][0], views)


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_pixels_not_places(channels):
    """A plain image stays plain, whatever jitter, grey, blur and solarisation do to its colour."""
    mean, std = [0.4] * channels, [0.2] * channels
    image = torch.full((channels, 16, 16), 0.5)
    image[0] += 0.5
    changed = ViewColors(mean, std, (0.4, 0.4, 0.2, 0.1), blur=1.0, solarize=1.0)(image)
    torch.testing.assert_close(changed, changed[:, :1, :1].expand_as(changed), rtol=0, atol=1e-4)
    assert not torch.allclose(changed, image)
    pixels = changed * 0.2 + 0.4
    assert -1e-5 <= pixels.min() <= pixels.max() <= 1 + 1e-5


def test_the_two_views_of_moco_v3_are_changed_differently():
    first, second = view_colors("moco_v3", [0.5], [0.5])
    assert (first.blur, first.solarize, second.blur, second.solarize) == (1.0, 0.0, 0.1, 0.2)
    same, other = view_colors("moco_v2", [0.5], [0.5])
    assert same == other
    for mean in ([0.5], [0.5] * 4):
        with pytest.raises(
            UserError, match=rf"'moco_v3' changes colours, which stored values of {len(mean)} channels"
        ):
            view_colors("moco_v3", mean, mean, stored=True)


def test_a_users_images_need_a_normalisation_only_where_colours_change():
    images = [(image,) for image in torch.rand(4, 1, 8, 8)]
    config = replace(recipe("moco_v3").objective, colors="none")
    views = config.make_views(OpenedData("my own", (), images, None, None))
    assert torch.equal(views[1][0], torch.stack([images[1][0], images[1][0]]))
    for preprocessing, missing in (({}, "no mean and no std"), ({"mean": [0.5]}, "no std")):
        data = OpenedData("my own", (), images, None, None, preprocessing=preprocessing)
        with pytest.raises(
            UserError,
            match=rf"objective.colors 'moco_v3' changes .* preprocessing of my own has {missing}: add them to "
            r"OpenedData.preprocessing, or set objective.colors none",
        ):
            replace(config, colors="moco_v3").make_views(data)


def test_a_queue_larger_than_the_epoch_is_refused_before_training():
    with pytest.raises(UserError, match=r"objective.queue \(97\) is larger than the epoch of 96 samples"):
        PretrainTask(DOMAIN, recipe("moco_v2", "--objective.queue=97"))


def test_wrong_settings_of_images_are_named():
    with pytest.raises(UserError, match=r"objective.block_size must be at least 1x1; got 0x2"):
        replace(ImageObjectiveConfig(), block_size=(0, 2)).validate()


def test_scales_of_a_model_with_a_class_token_are_those_of_its_patches():
    images = torch.randn(2, 3, 12, 8)
    for order in ("row", "column"):
        config = ModelConfig(
            name="map_vit_tiny_patch16_224", img_size=(12, 8), patch_size=4, embed_dim=32, num_heads=2, layout="Tx1",
            keep_registers=True, order=order,
        )  # fmt: skip
        model = create_backbone(config)
        tokens = model.tokenize(images, targets=True)
        assert tokens.num_global == 1
        (targets,) = Neighborhoods((4, 4), (1,))(images, tokens)
        torch.testing.assert_close(targets[:, 1:], tokens.target[:, 1:])
    objective = build_objective(
        create_backbone(config),
        ImageObjectiveConfig(decoder_depth=1, decoder_dim=16, decoder_heads=2, target_scales=(1, 3)),
    )
    objective(images, DRAW).loss.backward()


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        (
            ModelConfig(
                name="map_vit_tiny_patch16_224", img_size=32, embed_dim=32, num_heads=2, layout="Tx1",
                keep_registers=True, pool_norm=True,
            ),
            ImageObjectiveConfig(decoder_depth=1, decoder_dim=16, decoder_heads=2),
        ),
        (
            ModelConfig(name="map_mambavision_tiny", embed_dim=64, stem_dim=8, depths=(1, 1, 2, 2), num_heads=(2, 4)),
            OBJECTIVES["contrastive"](hidden_dim=16, out_dim=8),
        ),
    ],
    ids=["pooling", "contrastive"],
)  # fmt: skip
def test_all_that_is_trained_has_a_gradient(model, objective):
    """A process would wait for a missing gradient, and an optimizer would have no state for it to resume from."""
    built = build_objective(create_backbone(model), objective)
    images = torch.randn(2, 2, 3, 32, 32) if objective.method == "contrastive" else torch.randn(2, 3, 32, 32)
    built(images, DRAW).loss.backward()
    assert not [name for name, p in built.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_classifiers_head_is_frozen(objective):
    small = {"decoder_depth": 1, "decoder_dim": 16, "decoder_heads": 2}
    settings = OBJECTIVES[objective]
    changes = {name: value for name, value in small.items() if hasattr(settings, name)}
    model = ModelConfig(
        "hybridnet_nano_patch4_32", layout="MT", embed_dim=32, num_heads=2, num_registers=0, global_pool="avg",
        bidirectional=objective != "autoregression",
    )  # fmt: skip
    built = build_objective(create_model(model, 5), settings(**changes))
    images = torch.randn(2, 2, 3, 32, 32) if objective == "contrastive" else torch.randn(2, 3, 32, 32)
    built(images, DRAW).loss.backward()
    without_gradient = [name for name, p in built.named_parameters() if p.requires_grad and p.grad is None]
    assert not without_gradient
    built.backbone.reset_classifier(5)
    assert built.backbone.head.weight.requires_grad


def test_a_norm_that_the_decoder_has_not_is_refused():
    with pytest.raises(
        UserError, match=r"objective.decoder_norm \(layer\) is of a Mamba decoder; .*\.decoder mamba"
    ):
        ImageObjectiveConfig(decoder_norm="layer").validate()
