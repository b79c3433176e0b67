"""Learning rates by step and by layer."""

import pytest
import timm
import torch
from torch import nn

from map_core import UserError
from map_core.training import TrainingConfig
from map_core.training.optimizer import build_optimizer, default_parameter_groups, set_learning_rate
from map_core.training.schedule import Schedule


def test_the_schedule_rises_linearly_and_falls_as_a_cosine():
    config = TrainingConfig(epochs=10, warmup_epochs=2.0, lr=1.0, warmup_lr=0.1, min_lr=0.2)
    rate = Schedule.of(config, steps_per_epoch=5)
    assert [rate(0), rate(5), rate(10)] == pytest.approx([0.1, 0.55, 1.0])
    assert [rate(20), rate(30), rate(50)] == pytest.approx([0.2 + 0.8 * 0.8535533906, 0.6, 0.2])
    assert all(rate(step) >= rate(step + 1) for step in range(10, 50))


def test_base_lr_scales_with_the_global_batch_and_absolute_rates_stay_below_it():
    config = TrainingConfig(batch_size=64, base_lr=1e-3, min_lr=1.0, warmup_lr=1.0)
    assert config.peak_lr == pytest.approx(2.5e-4)
    rate = Schedule.of(config, steps_per_epoch=1)
    assert max(rate(step) for step in range(101)) <= config.peak_lr
    assert TrainingConfig(batch_size=64, lr=0.5).peak_lr == 0.5


def test_layer_decay_slows_early_layers_and_spares_vectors_from_decay():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, num_classes=5)
    groups = default_parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    assert found.keys() == dict(model.named_parameters()).keys()
    assert found["head.weight"] == (1.0, 0.05)
    assert found["blocks.3.mlp.fc1.weight"] == (0.5, 0.05)
    assert found["blocks.0.mlp.fc1.weight"] == (0.5**4, 0.05)
    assert found["blocks.0.mlp.fc1.bias"] == (0.5**4, 0.0)
    assert found["patch_embed.proj.weight"] == (0.5**5, 0.05)
    assert found["pos_embed"] == (0.5**5, 0.0)
    optimizer = build_optimizer(groups, TrainingConfig())
    set_learning_rate(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1 * 0.5**i for i in range(6)}


def test_layer_decay_of_a_model_without_layers():
    with pytest.raises(
        UserError, match=r"layer_decay needs a model with group_matcher\(\), which Linear has not"
    ):
        default_parameter_groups(nn.Linear(2, 2), 0.05, 0.5)


def test_any_optimizer_of_timm_and_an_unknown_one():
    parameters = [{"params": [nn.Parameter(torch.ones(2))]}]
    adamw = build_optimizer(parameters, TrainingConfig(betas=(0.8, 0.7), eps=1e-3))
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.8, 0.7), 1e-3)
    build_optimizer(parameters, TrainingConfig(optimizer="sgd"))
    build_optimizer(parameters, TrainingConfig(optimizer="lamb"))
    with pytest.raises(UserError, match=r"training.optimizer 'adamww' is unknown; did you mean .*adamw"):
        build_optimizer(parameters, TrainingConfig(optimizer="adamww"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "training.epochs must be at least 1; got 0; change --training.epochs"),
        ("lr", -1.0, "training.lr must be a positive number; got -1.0"),
        ("warmup_epochs", 100.0, r"training.warmup_epochs must be below epochs \(100\); got 100.0"),
        ("ema_decay", 1.0, r"training.ema_decay must lie inside \(0, 1\); got 1.0"),
        ("layer_decay", 1.5, "training.layer_decay must be at most 1; got 1.5"),
        ("device", "gpu", "training.device must be one of auto, cpu, cuda, mps; got gpu"),
    ],
)
def test_impossible_settings(field, value, message):
    with pytest.raises(UserError, match=message):
        TrainingConfig(**{field: value}).validate()
