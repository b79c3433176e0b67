"""The objective over images: what a prediction depends on, what is hidden, exported and drawn."""

from dataclasses import replace

import pytest
import torch
from map_core.pretraining import split_state
from map_vision.reconstruction import draw_reconstructions, reconstruct

from map_core import UserError, mask_noise
from map_core.commands.parser import load_recipe
from map_core.training import Step
from map_vision.factory import create_backbone
from map_vision.pretraining import (
    ImageObjectiveConfig,
    PretrainConfig,
    PretrainTask,
    build_objective,
    load_pretraining,
)

TOKENS = 16  # digits of 8 x 8 pixels in patches of 2 x 2


@pytest.fixture
def recipe():
    return load_recipe("map_vision.recipes", "pretrain_digits", PretrainConfig)


@pytest.fixture
def build(recipe):
    """Build the objective of pretrain_digits with changes to its model and objective sections."""

    def make(*, order="row", **objective):
        torch.manual_seed(0)
        backbone = create_backbone(replace(recipe.model, order=order))
        return build_objective(backbone, replace(recipe.objective, **objective)).eval()

    return make


@pytest.fixture
def digits():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def noise(seed=0, step=0, batch=2):
    return mask_noise(seed, step, slice(None), (batch, TOKENS))


def influence(objective, images, monkeypatch):
    """Run the objective; whether prediction i of a sample has a gradient from decoder input j, (b, h, l)."""
    inputs = []
    lay_out = objective.decoder.sequence

    def recorded(*arguments):
        inputs.append(lay_out(*arguments))
        return inputs[0]

    monkeypatch.setattr(objective.decoder, "sequence", recorded)
    result = objective(images, noise=noise())
    weight = torch.randn_like(result.prediction)
    found = torch.zeros(*result.prediction.shape[:2], TOKENS, dtype=torch.bool)
    for sample in range(found.shape[0]):
        for i in range(found.shape[1]):
            value = (weight[sample, i] * result.prediction[sample, i]).sum()
            (gradient,) = torch.autograd.grad(value, inputs, retain_graph=True)
            assert not gradient[1 - sample].any(), "another sample's tokens"
            found[sample, i] = (gradient[sample] != 0).any(-1)
    return found, result


MAY_SEE = {  # of (region, sequence index) of the query and of the key
    "map": lambda query, key: key[0] <= query[0],
    "mae": lambda query, key: True,
    "local_mae": lambda query, key: key[0] == query[0],
    "ar": lambda query, key: key <= query,
}


@pytest.mark.parametrize("attention", MAY_SEE)
@pytest.mark.parametrize(
    ("order", "region"),
    [("row", "row"), ("column", "column"), ("row", "column"), ("column", "row"), ("row", "block")],
)
def test_prediction_has_gradient_from_exactly_what_it_may_see(
    build, digits, monkeypatch, attention, order, region
):
    objective = build(order=order, attention=attention, region=region, block_size=(2, 2))
    found, result = influence(objective, digits, monkeypatch)
    region_of = result.tokens.region[0].tolist()
    assert len(set(region_of)) == 4
    for sample in range(2):
        for i, token in enumerate(result.mask.drop[sample].tolist()):
            query = (region_of[token], token)
            expected = [MAY_SEE[attention](query, (region_of[j], j)) for j in range(TOKENS)]
            assert found[sample, i].tolist() == expected


def test_recipe_predicts_rows_in_order(build, digits, monkeypatch):
    """As packaged: exactly zero gradient from later rows, non-zero from the own and every earlier row."""
    objective = build()
    assert objective.attention == "map"
    found, result = influence(objective, digits, monkeypatch)
    for sample in range(2):
        for i, token in enumerate(result.mask.drop[sample].tolist()):
            row = token // 4
            assert not found[sample, i, 4 * (row + 1) :].any()
            assert found[sample, i, : 4 * (row + 1)].all()


@pytest.mark.parametrize("order", ["row", "column"])
def test_hidden_pixels_reach_the_target_only(build, digits, order):
    objective = build(order=order)
    before = objective(digits, noise=noise())
    places = before.tokens.position[0].long()
    changed = digits.clone()
    for sample in range(2):
        for token in before.mask.drop[sample]:
            row, col = places[token].tolist()
            changed[sample, :, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2] = torch.randn(1, 2, 2)
    after = objective(changed, noise=noise())
    assert torch.equal(before.prediction, after.prediction)
    assert before.loss != after.loss


def test_loss_is_the_mean_over_hidden_normalised_patches(build, digits):
    objective = build()
    result = objective(digits, noise=noise())
    errors = []
    for sample in range(2):
        for i, token in enumerate(result.mask.drop[sample].tolist()):
            row, col = divmod(token, 4)
            patch = digits[sample, 0, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].flatten()
            patch = (patch - patch.mean()) / (patch.var(unbiased=True) + 1e-6).sqrt()
            errors.append((result.prediction[sample, i] - patch).square().mean())
    torch.testing.assert_close(result.loss, torch.stack(errors).mean())
    assert len(errors) == 2 * 8


def test_pretraining_has_no_registers(build, make_tiny):
    with pytest.raises(
        UserError, match=r"pretraining has no registers: create the model with num_registers=0"
    ):
        build_objective(make_tiny(), ImageObjectiveConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 1.5}, r"objective.mask_ratio must lie inside \(0, 1\); got 1.5"),
        ({"mask_ratio": 0.0}, r"objective.mask_ratio must lie inside \(0, 1\); got 0.0"),
        (
            {"decoder_heads": 7},
            r"objective.decoder_dim \(64\) must be a multiple of objective.decoder_heads \(7\)",
        ),
        ({"block_size": (0, 2), "region": "block"}, r"objective.block_size must be at least 1x1; got 0x2"),
    ],
)
def test_wrong_settings_are_named(build, changes, message):
    with pytest.raises(UserError, match=message):
        build(**changes)


def step(index=0, samples=slice(0, 8), seed=0):
    return Step(index=index, total=10, epoch=0, seed=seed, global_batch=8, samples=samples)


class TestTask:
    @pytest.fixture
    def task(self, recipe):
        task = PretrainTask(recipe)
        task.model.eval()
        return task

    @pytest.fixture
    def batch(self, task):
        samples = [task.data.train_unaugmented()[i] for i in range(8)]
        return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])

    def test_mask_is_keyed_by_seed_and_step(self, task, batch):
        loss = task.loss(task.model, batch, step())["loss"]
        assert torch.equal(task.loss(task.model, batch, step())["loss"], loss)
        assert not torch.equal(task.loss(task.model, batch, step(index=1))["loss"], loss)
        assert not torch.equal(task.loss(task.model, batch, step(seed=1))["loss"], loss)

    def test_two_processes_hide_what_one_does(self, task, batch):
        whole = task.loss(task.model, batch, step())["loss"]
        halves = [
            task.loss(task.model, tuple(part[part_of] for part in batch), step(samples=part_of))["loss"]
            for part_of in (slice(0, 4), slice(4, 8))
        ]
        torch.testing.assert_close(sum(halves) / 2, whole)

    def test_drawn_ratio_is_keyed_and_bounded(self, recipe):
        drawn = replace(recipe.objective, mask_ratio_std=0.25)
        ratios = [drawn.ratio(0, index) for index in range(50)]
        assert ratios == [drawn.ratio(0, index) for index in range(50)]
        assert len(set(ratios)) == 50
        assert 0.3 <= min(ratios) < 0.4 < 0.6 < max(ratios) <= 0.7

    def test_mixing_is_keyed(self, recipe, batch):
        task = PretrainTask(replace(recipe, objective=replace(recipe.objective, mixup=0.8)))
        task.model.eval()
        loss = task.loss(task.model, batch, step())["loss"]
        assert torch.equal(task.loss(task.model, batch, step())["loss"], loss)

    def test_seed_decides_the_initial_weights(self, recipe, task):
        other = PretrainTask(recipe).model.state_dict()
        assert all(torch.equal(value, other[key]) for key, value in task.model.state_dict().items())


def test_export_splits_and_loads_back_to_the_same_loss(recipe, digits, tmp_path):
    objective = ImageObjectiveConfig(
        attention="local_mae",
        region="block",
        block_size=(2, 1),
        mask_ratio=0.25,
        decoder_dim=32,
        decoder_depth=1,
    )
    config = replace(recipe, objective=objective, model=replace(recipe.model, order="column"))
    task = PretrainTask(config)
    task.model.eval()
    task.export(task.model, tmp_path, "raw")
    loaded, settings = load_pretraining(tmp_path)
    assert settings == objective
    loss = task.model(digits, noise=noise()).loss
    assert torch.equal(loaded.eval()(digits, noise=noise()).loss, loss)
    task.export(task.model, tmp_path, "ema")
    averaged, _ = load_pretraining(tmp_path / "model_ema.safetensors")
    assert torch.equal(averaged.eval()(digits, noise=noise()).loss, loss)

    encoder, rest = split_state(task.model.state_dict())
    assert set(encoder) == set(create_backbone(config.model).state_dict())
    assert {key.split(".")[0] for key in rest} == {"decoder", "head"}
    assert len(encoder) + len(rest) == len(task.model.state_dict())


def test_activation_checkpointing_reaches_the_encoder(recipe):
    recipe.training.activation_checkpointing = True
    assert PretrainTask(recipe).model.encoder.activation_checkpointing


def test_run_without_its_decoder_cannot_be_reconstructed(recipe, tmp_path):
    task = PretrainTask(recipe)
    task.export(task.model, tmp_path, "raw")
    (tmp_path / "pretraining.safetensors").unlink()
    (tmp_path / "pretraining.json").unlink()
    with pytest.raises(
        UserError,
        match=r"has no pretraining.safetensors with its description beside it: .* pretraining run holds",
    ):
        load_pretraining(tmp_path)


class TestReconstruction:
    @pytest.mark.parametrize("order", ["row", "column"])
    @pytest.mark.parametrize("normalized", [True, False])
    def test_visible_patches_are_the_images_and_hidden_ones_predicted(self, build, digits, order, normalized):
        objective = build(order=order)
        pictures = reconstruct(objective, digits, normalized_targets=normalized, seed=3)
        result = objective(digits, noise=noise(seed=3))
        assert torch.equal(pictures.original, digits)
        places = result.tokens.position[0].long().tolist()
        for sample in range(2):
            hidden = result.mask.drop[sample].tolist()
            for token, (row, col) in enumerate(places):
                window = (sample, 0, slice(2 * row, 2 * row + 2), slice(2 * col, 2 * col + 2))
                patch = digits[window]
                if token in hidden:
                    predicted = result.prediction[sample, hidden.index(token)].reshape(2, 2)
                    if normalized:
                        predicted = predicted * (patch.var(unbiased=True) + 1e-6).sqrt() + patch.mean()
                    torch.testing.assert_close(pictures.reconstruction[window], predicted)
                    assert not pictures.masked[window].any()
                else:
                    assert torch.equal(pictures.reconstruction[window], patch)
                    assert torch.equal(pictures.masked[window], patch)

    def test_channels_stay_apart(self, make_tiny):
        backbone = make_tiny(img_size=(16, 24), num_registers=0, global_pool="avg", num_classes=0, layout="T")
        objective = build_objective(backbone, ImageObjectiveConfig(decoder_dim=32, decoder_depth=1))
        images = torch.zeros(1, 3, 16, 24) + torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
        torch.nn.init.zeros_(objective.head.weight)
        with torch.no_grad():
            objective.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]).repeat(64))
        assert torch.equal(reconstruct(objective, images, normalized_targets=False).reconstruction, images)

    def test_ratio_and_seed_choose_what_is_hidden(self, build, digits):
        objective = build()

        def hidden(**choice):
            return (reconstruct(objective, digits, **choice).masked == 0).sum().item()

        assert hidden() == 2 * 8 * 4
        assert hidden(ratio=0.75) == 2 * 12 * 4
        first, again, other = (reconstruct(objective, digits, seed=seed).masked for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_training_mode_is_kept(self, build, digits):
        objective = build().train()
        reconstruct(objective, digits)
        assert objective.training

    def test_picture_is_written(self, build, digits, tmp_path):
        draw_reconstructions(build(), digits, tmp_path / "a.png", mean=(0.3,), std=(0.4,))
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
