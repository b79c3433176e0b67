"""The objective over images: what a prediction depends on, what is hidden, and what a run exports."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from map_core import Draw, Masking, UserError
from map_core.commands.parser import load_recipe
from map_core.commands.standard import configs
from map_core.tasks.domain import OpenedData
from map_core.tasks.pretraining import PretrainTask, load_objective
from map_core.testing import decoder_dependencies
from map_core.training import train
from map_vision.backbone import PARTS, require_image_backbone
from map_vision.domain import DOMAIN
from map_vision.factory import ModelConfig, create_backbone
from map_vision.pretraining import (
    ImageAutoregressionConfig,
    ImageContrastiveConfig,
    ImageObjectiveConfig,
    ImageSimMIMConfig,
    build_objective,
)

TOKENS = 16  # digits of 8 x 8 pixels in patches of 2 x 2
DRAW = Draw.of_batch(2, seed=0)


@pytest.fixture
def recipe():
    return load_recipe(DOMAIN.recipes, "pretrain_digits", configs(DOMAIN).pretrain)


@pytest.fixture
def build(recipe):
    """Build the objective of pretrain_digits with changes to its model and objective sections."""

    def make(*, order="row", **objective):
        torch.manual_seed(0)
        backbone = create_backbone(replace(recipe.model, order=order, block_size=(2, 2)))
        if objective.get("region") == "block":
            objective = {"block_size": (2, 2), **objective}
        return build_objective(backbone, replace(recipe.objective, **objective)).eval()

    return make


@pytest.fixture
def digits():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))


MAY_SEE = {  # of (region, sequence index) of the query and of the key
    "map": lambda query, key: key[0] <= query[0],
    "mae": lambda query, key: True,
    "local_mae": lambda query, key: key[0] == query[0],
    "ar": lambda query, key: key <= query,
}
ORDERS_AND_REGIONS = [
    ("row", "row"),
    ("column", "column"),
    ("block", "block"),
    ("row", "column"),
    ("column", "row"),
    ("row", "block"),
    ("block", "row"),
    ("hilbert", "block"),
]


@pytest.mark.parametrize("attention", MAY_SEE)
@pytest.mark.parametrize(("order", "region"), ORDERS_AND_REGIONS)
def test_prediction_has_gradient_from_exactly_what_it_may_see(build, digits, attention, order, region):
    objective = build(order=order, attention=attention, region=region)
    dependencies = decoder_dependencies(objective, digits, DRAW)
    region_of = dependencies.region[0].tolist()
    assert set(region_of) == {0, 1, 2, 3}
    for sample in range(2):
        for i, token in enumerate(dependencies.mask.drop[sample].tolist()):
            query = (region_of[token], token)
            expected = [MAY_SEE[attention](query, (region_of[j], j)) for j in range(TOKENS)]
            assert dependencies.depends[sample, i].tolist() == expected


@pytest.mark.parametrize("attention", MAY_SEE)
def test_no_prediction_reads_another_image(build, digits, attention):
    objective = build(attention=attention)
    images = digits.requires_grad_()
    result = objective(images, DRAW)
    for sample in range(2):
        prediction = result.prediction[sample].square().sum()
        (gradient,) = torch.autograd.grad(prediction, images, retain_graph=True)
        assert gradient[sample].any()
        assert not gradient[1 - sample].any()


def test_recipe_predicts_rows_in_order(build, digits):
    """As packaged: exactly zero gradient from later rows, non-zero from its own and every earlier row."""
    objective = build()
    assert objective.attention == "map"
    dependencies = decoder_dependencies(objective, digits, DRAW)
    for sample in range(2):
        for i, token in enumerate(dependencies.mask.drop[sample].tolist()):
            row = token // 4
            assert not dependencies.depends[sample, i, 4 * (row + 1) :].any()
            assert dependencies.depends[sample, i, : 4 * (row + 1)].all()


@pytest.mark.parametrize("order", ["row", "column", "block"])
def test_hidden_pixels_reach_the_target_only(build, digits, order):
    objective = build(order=order)
    before = objective(digits, DRAW)
    places = before.tokens.position[0].long()
    changed = digits.clone()
    for sample in range(2):
        for token in before.mask.drop[sample]:
            row, col = places[token].tolist()
            changed[sample, :, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2] = torch.randn(1, 2, 2)
    after = objective(changed, DRAW)
    assert torch.equal(before.prediction, after.prediction)
    assert before.loss != after.loss


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("order", ["row", "block"])
def test_loss_is_the_mean_over_hidden_patches(build, digits, order, normalized):
    objective = build(order=order, normalize_targets=normalized)
    result = objective(digits, DRAW)
    places, errors = result.tokens.position[0].long().tolist(), []
    for sample in range(2):
        for i, token in enumerate(result.mask.drop[sample].tolist()):
            row, col = places[token]
            patch = digits[sample, 0, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].flatten()
            if normalized:
                patch = (patch - patch.mean()) / (patch.var(unbiased=True) + 1e-6).sqrt()
            errors.append((result.prediction[sample, i] - patch).square().mean())
    torch.testing.assert_close(result.loss, torch.stack(errors).mean())
    assert len(errors) == 2 * 8


def test_pretraining_has_no_registers(make_tiny):
    with pytest.raises(
        UserError,
        match=r"pretraining has no registers among the patches: create the model with num_registers=0, "
        r"global_pool='avg' \(leave --model.keep_registers out\)",
    ):
        build_objective(make_tiny(), ImageObjectiveConfig())


def test_a_model_without_what_a_backbone_has_is_refused_by_name():
    with pytest.raises(
        UserError,
        match=r"Linear is not an image backbone: it lacks embed_dim, tokenize, encode, img_size, patch_size, "
        r"in_chans, num_prefix_tokens, num_global; create a model of map_vision, or add them as docs/your_own_code.md",
    ):
        build_objective(torch.nn.Linear(3, 3), ImageObjectiveConfig())


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_backbone_is_required(part):
    class Incomplete(torch.nn.Module):
        pass

    for name in PARTS:
        if name != part:
            setattr(Incomplete, name, 1)
    with pytest.raises(UserError, match=f"Incomplete is not an image backbone: it lacks {part};"):
        require_image_backbone(Incomplete())
    setattr(Incomplete, part, 1)
    assert require_image_backbone(Incomplete())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 1.5}, r"objective.mask_ratio must lie in \[0, 1\); got 1.5"),
        ({"mask_ratio": -0.5}, r"objective.mask_ratio must lie in \[0, 1\); got -0.5"),
        (
            {"decoder_heads": 7},
            r"objective.decoder_dim \(64\) must be a multiple of objective.decoder_heads \(7\)",
        ),
        ({"block_size": (0, 2), "region": "block"}, r"objective.block_size must be at least 1x1; got 0x2"),
        (
            {"block_size": (2, 2), "region": "column"},
            r"objective.block_size \(2, 2\) has no effect with objective.region column: leave it at \(4, 4\)",
        ),
        (
            {"mix_prob": 0.5},
            r"objective.mix_prob 0.5 has no effect with objective.mixup 0 and objective.cutmix 0: leave it at 1.0",
        ),
        (
            {"mix_switch_prob": 0.1},
            r"objective.mix_switch_prob 0.1 has no effect with objective.mixup 0 and .*: leave it at 0.5",
        ),
        (
            {"cutmix": 1.0, "mix_prob": 0.5, "mix_switch_prob": 0.1},
            r"objective.mix_switch_prob 0.1 has no effect with objective.cutmix alone: leave it at 0.5",
        ),
        ({"mask_ratio": 0.99}, r"mask ratio 0.99 of 16 tokens hides 16"),
        (
            {"mask_ratio_std": 0.25, "mask_ratio_bounds": (0.01, 0.5)},
            r"mask ratio 0.01 of 16 tokens hides 0: .*objective.mask_ratio_bounds",
        ),
        (
            {"mask_ratio_std": 0.25, "mask_ratio_bounds": (0.5, 0.99)},
            r"mask ratio 0.99 of 16 tokens hides 16: .*objective.mask_ratio_bounds",
        ),
        (
            {"decoder": "mamba", "region": "block", "block_size": (3, 3)},
            r"needs regions of equal size, but these 4 regions of 16 tokens differ",
        ),
    ],
)
def test_wrong_settings_are_named(build, changes, message):
    with pytest.raises(UserError, match=message):
        build(**changes)


def test_a_single_block_is_refused_for_autoregression_before_the_first_step(recipe):
    backbone = create_backbone(replace(recipe.model, bidirectional=False))
    with pytest.raises(UserError, match=r"but these 16 tokens are one: choose smaller regions"):
        build_objective(backbone, ImageAutoregressionConfig(region="block"))


def test_squares_that_do_not_tile_the_grid_are_refused_before_the_first_step(recipe):
    with pytest.raises(UserError, match=r"mask unit 3 does not tile a grid of 4x4"):
        build_objective(create_backbone(recipe.model), ImageSimMIMConfig(mask_unit=3))


@pytest.mark.parametrize(
    "objective",
    [ImageObjectiveConfig(), ImageAutoregressionConfig(), ImageSimMIMConfig()],
    ids=lambda o: o.method,
)
def test_overlapping_patches_are_refused_before_the_first_step(recipe, objective):
    backbone = create_backbone(replace(recipe.model, patch_stride=1, bidirectional=False))
    with pytest.raises(UserError, match=r"overlap, so visible .* \(leave --model.patch_stride out\)"):
        build_objective(backbone, objective)


def test_a_class_token_is_refused_for_a_mamba_decoder_before_the_first_step(recipe):
    model = {"embed_dim": 32, "num_heads": 2, "layout": "Tx1", "img_size": 32, "keep_registers": True}
    backbone = create_backbone(ModelConfig("map_vit_tiny_patch16_224", **model))
    with pytest.raises(UserError, match="a Mamba decoder has no place for global tokens"):
        build_objective(backbone, replace(recipe.objective, decoder="mamba"))


def test_building_draws_nothing_more_than_weights(recipe):
    """The rehearsal is keyed, so that seeds keep their meaning."""
    backbone = create_backbone(recipe.model)
    torch.manual_seed(0)
    build_objective(backbone, recipe.objective)
    after = torch.rand(())
    torch.manual_seed(0)
    recipe.objective.build(backbone)
    assert torch.rand(()) == after


def test_a_ratio_that_some_step_could_not_hide_is_refused_before_the_first(recipe):
    """Blocks of 3x3 on 4x4 patches leave one of a single patch at the corner."""
    uneven_blocks = {"mask_scope": "region", "region": "block", "block_size": (3, 3), "mask_ratio": 0.25}
    backbone = create_backbone(recipe.model)
    build_objective(backbone, replace(recipe.objective, **uneven_blocks))
    random_ratio = {"mask_ratio_std": 0.1, "mask_ratio_bounds": (0.2, 0.4)}
    with pytest.raises(UserError, match=r"must hide up to 2 tokens of every region, but the smallest has 1"):
        build_objective(backbone, replace(recipe.objective, **uneven_blocks, **random_ratio))


def step(index=0, samples=slice(0, 8), seed=0):
    return Draw(seed, index, samples, 8)


class TestTask:
    @pytest.fixture
    def task(self, recipe):
        task = PretrainTask(DOMAIN, recipe)
        task.model.eval()
        return task

    @pytest.fixture
    def batch(self, task):
        samples = [task.data.plain_train[i] for i in range(8)]
        return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])

    def test_mask_is_keyed_by_seed_and_step(self, task, batch):
        loss = task.loss(task.model, batch, step()).loss
        assert torch.equal(task.loss(task.model, batch, step()).loss, loss)
        assert not torch.equal(task.loss(task.model, batch, step(index=1)).loss, loss)
        assert not torch.equal(task.loss(task.model, batch, step(seed=1)).loss, loss)

    @pytest.mark.parametrize("std", [None, 0.25])
    def test_two_processes_hide_what_one_does(self, recipe, batch, std):
        task = PretrainTask(DOMAIN, replace(recipe, objective=replace(recipe.objective, mask_ratio_std=std)))
        model = task.model.eval()
        whole = task.loss(model, batch, step()).loss
        halves = [
            task.loss(model, tuple(part[part_of] for part in batch), step(samples=part_of)).loss
            for part_of in (slice(0, 4), slice(4, 8))
        ]
        torch.testing.assert_close(sum(halves) / 2, whole)

    def test_drawn_ratio_is_keyed_and_bounded(self, recipe, digits):
        masking = replace(recipe.objective, mask_ratio_std=0.25).masking
        ratios = [masking.step_ratio(step(index)) for index in range(50)]
        assert ratios == [masking.step_ratio(step(index)) for index in range(50)]
        assert len(set(ratios)) == 50
        assert 0.3 <= min(ratios) < 0.4 < 0.6 < max(ratios) <= 0.7

    @pytest.mark.parametrize("index", range(3))
    def test_drawn_ratio_is_what_a_step_hides(self, build, digits, index):
        objective = build(mask_ratio_std=0.25)
        draw = Draw.of_batch(2, step=index)
        hidden = objective(digits, draw).mask.drop.shape[1]
        assert hidden == round(objective.masking.step_ratio(draw) * TOKENS)

    def test_mixing_is_keyed_and_changes_the_batch(self, recipe, task, batch):
        mixing = PretrainTask(DOMAIN, replace(recipe, objective=replace(recipe.objective, mixup=0.8)))
        mixing.model.eval()
        loss = mixing.loss(mixing.model, batch, step()).loss
        assert torch.equal(mixing.loss(mixing.model, batch, step()).loss, loss)
        assert not torch.equal(mixing.loss(mixing.model, batch, step(seed=1)).loss, loss)
        assert not torch.equal(task.loss(task.model, batch, step()).loss, loss)

    def test_seed_decides_the_initial_weights(self, recipe, task):
        again = PretrainTask(DOMAIN, recipe).model.state_dict()
        assert all(torch.equal(value, again[key]) for key, value in task.model.state_dict().items())
        recipe.training.seed += 1
        other = PretrainTask(DOMAIN, recipe).model.state_dict()
        key = "backbone.patch_embed.proj.weight"
        assert not torch.equal(other[key], again[key])

    @pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}], ids=str)
    def test_odd_micro_batches_cannot_be_mixed(self, recipe, mixing):
        recipe.training.batch_size, recipe.training.accumulation_steps = 6, 2
        PretrainTask(DOMAIN, recipe)
        with pytest.raises(
            UserError, match=r"batch_size \(6\) must .* in pairs \(1 \* 2 \* 2 = 4\); set .* 8"
        ):
            PretrainTask(DOMAIN, replace(recipe, objective=replace(recipe.objective, **mixing)))

    def test_micro_batches_of_one_sample_cannot_be_compared(self, recipe):
        recipe.training.batch_size, recipe.training.accumulation_steps = 6, 6
        with pytest.raises(UserError, match=r"compares .* here it has 1: raise training.batch_size \(6\)"):
            PretrainTask(DOMAIN, replace(recipe, objective=ImageContrastiveConfig()))

    def test_activation_checkpointing_reaches_the_encoder_and_changes_no_gradient(self, recipe, task, batch):
        recipe.training.activation_checkpointing, recipe.training.recompute_every = True, 2
        recomputing = PretrainTask(DOMAIN, recipe)
        encoder = recomputing.model.backbone.encoder
        assert (encoder.activation_checkpointing, encoder.recompute_every) == (True, 2)
        for one in (task, recomputing):
            one.model.train()
            one.loss(one.model, batch, step()).loss.backward()
        for (name, a), b in zip(
            task.model.named_parameters(), recomputing.model.named_parameters(), strict=True
        ):
            torch.testing.assert_close(b[1].grad, a.grad, msg=name)


BLOCKS = ImageObjectiveConfig(
    attention="local_mae",
    region="block",
    block_size=(2, 1),
    mask_ratio=0.25,
    decoder_dim=32,
    decoder_depth=1,
)


class TestExport:
    """A pretraining run's files: the unchanged backbone, and beside it what reconstruction needs."""

    @pytest.fixture(params=["column", "block"])
    def task(self, recipe, request):
        model = replace(recipe.model, order=request.param, block_size=(2, 1))
        task = PretrainTask(DOMAIN, replace(recipe, objective=BLOCKS, model=model))
        task.model.eval()
        return task

    def test_model_file_is_the_backbones_state(self, task, tmp_path):
        task.export(task.model, tmp_path, "raw")
        written, backbone = load_file(tmp_path / "model.safetensors"), task.model.backbone.state_dict()
        assert set(written) == set(backbone) == set(create_backbone(task.config.model).state_dict())
        assert all(torch.equal(written[key], value) for key, value in backbone.items())

    def test_files_hold_the_whole_objective_once(self, task, tmp_path):
        task.export(task.model, tmp_path, "raw")
        backbone, rest = (load_file(tmp_path / f"{name}.safetensors") for name in ("model", "pretraining"))
        state = {f"backbone.{key}": value for key, value in backbone.items()} | rest
        assert {key.split(".")[0] for key in rest} == {"decoder", "head"}
        assert set(state) == set(task.model.state_dict())
        assert all(torch.equal(state[key], value) for key, value in task.model.state_dict().items())

    @pytest.mark.parametrize(("weights", "name"), [("raw", ""), ("ema", "model_ema.safetensors")])
    def test_loads_back_to_the_same_loss(self, task, digits, tmp_path, weights, name):
        task.export(task.model, tmp_path, weights)
        loaded = load_objective(DOMAIN, tmp_path / name)
        assert loaded.settings == BLOCKS
        assert loaded.model == task.config.model
        loss = task.model(digits, DRAW).loss
        assert torch.equal(loaded.objective.eval()(digits, DRAW).loss, loss)

    def test_descriptions_say_what_inference_needs(self, task, tmp_path):
        task.export(task.model, tmp_path, "raw")
        model = json.loads((tmp_path / "model.json").read_text())
        settings = {key: value for key, value in vars(task.config.model).items() if value is not None}
        assert {"name": settings.pop("name"), "arguments": json.loads(json.dumps(settings))} == {
            key: model[key] for key in ("name", "arguments")
        }
        assert (model["task"], model["holds"], model["weights"]) == ("pretrain", "encoder", "raw")
        assert (model["mean"], model["std"]) == tuple(
            list(task.data.preprocessing[key]) for key in ("mean", "std")
        )
        pretraining = json.loads((tmp_path / "pretraining.json").read_text())
        assert pretraining["objective"] == json.loads(json.dumps(vars(BLOCKS)))
        assert (pretraining["holds"], pretraining["weights"]) == ("decoder and head", "raw")

    def test_a_run_that_has_not_finished_is_to_be_resumed(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(UserError, match=r"no weights at .* \(the run has not finished: resume it\)"):
            load_objective(DOMAIN, tmp_path)

    def test_run_without_its_decoder_cannot_be_reconstructed(self, task, tmp_path):
        task.export(task.model, tmp_path, "raw")
        (tmp_path / "pretraining.safetensors").unlink()
        (tmp_path / "pretraining.json").unlink()
        with pytest.raises(
            UserError,
            match=r"has no pretraining.safetensors with its description beside it: .* pretraining run holds",
        ):
            load_objective(DOMAIN, tmp_path)

    def test_decoder_of_another_shape_is_refused(self, task, tmp_path):
        task.export(task.model, tmp_path, "raw")
        file = tmp_path / "pretraining.json"
        described = json.loads(file.read_text())
        described["objective"]["decoder_depth"] = 2
        file.write_text(json.dumps(described))
        with pytest.raises(
            UserError, match=r"pretraining.safetensors does not fit the objective that it describes: decoder."
        ):
            load_objective(DOMAIN, tmp_path)


def test_masking_is_the_configurations(recipe):
    config = replace(
        recipe.objective, mask_ratio=0.25, mask_ratio_std=0.1, mask_ratio_bounds=(0.2, 0.4),
        mask_strategy="diagonal", mask_scope="region",
    )  # fmt: skip
    assert config.masking == Masking(0.25, 0.1, (0.2, 0.4), "diagonal", "region")


def test_a_users_data_set_is_trained_on_up_to_the_picture(recipe, tmp_path):
    """Bare tensors without names, and nothing about their preprocessing."""
    images = list(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    quick = {
        "epochs": 1,
        "batch_size": 8,
        "warmup_epochs": 0.0,
        "workers": 0,
        "device": "cpu",
        "tensorboard": False,
    }
    recipe = replace(recipe, training=replace(recipe.training, **quick))
    task = PretrainTask(DOMAIN, recipe, OpenedData("my own", (), images, None, None))
    train(task, recipe.training, str(tmp_path / "run"), run_config=recipe)
    assert (tmp_path / "run/reconstructions.png").stat().st_size > 0
    assert load_objective(DOMAIN, tmp_path / "run").model.patch_size == 2
