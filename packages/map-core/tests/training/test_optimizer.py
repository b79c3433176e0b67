"""Parameter groups, optimizers, and settings that no run can have."""

from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from toy_task import ToyTask

from map_core import UserError
from map_core.training import TrainingConfig
from map_core.training.optimizer import build_optimizer, default_parameter_groups, set_learning_rate


def test_layer_decay_slows_early_layers_and_spares_vectors_from_decay():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, num_classes=5)
    groups = default_parameter_groups(model, weight_decay=0.05, layer_decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    assert settings.keys() == dict(model.named_parameters()).keys()
    assert settings["head.weight"] == (1.0, 0.05)
    assert settings["blocks.3.mlp.fc1.weight"] == (0.5, 0.05)
    assert settings["blocks.0.mlp.fc1.weight"] == (0.5**4, 0.05)
    assert settings["blocks.0.mlp.fc1.bias"] == (0.5**4, 0.0)
    assert settings["patch_embed.proj.weight"] == (0.5**5, 0.05)
    assert settings["pos_embed"] == (0.5**5, 0.0)
    optimizer = build_optimizer(groups, TrainingConfig())
    set_learning_rate(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1 * 0.5**i for i in range(6)}


def test_layer_decay_of_a_model_without_layers():
    with pytest.raises(
        UserError, match=r"layer_decay needs a model with group_matcher\(\), which Linear lacks"
    ):
        default_parameter_groups(nn.Linear(2, 2), 0.05, 0.5)


def one_group():
    return [{"params": [nn.Parameter(torch.ones(2))]}]


def test_betas_and_eps_reach_an_optimizer_that_has_them():
    adamw = build_optimizer(one_group(), TrainingConfig(betas=(0.8, 0.7), eps=1e-3))
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.8, 0.7), 1e-3)


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("lamb", "Lamb"), ("adamw", "AdamW")])
def test_any_optimizer_of_timm_goes_downhill(name, kind):
    groups = one_group()
    optimizer = build_optimizer(groups, TrainingConfig(optimizer=name, lr=0.1))
    assert type(optimizer).__name__ == kind
    (parameter,) = groups[0]["params"]
    for _ in range(3):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
    assert (parameter < 1).all()


@pytest.mark.parametrize(
    ("name", "fused"), [("adamw", True), ("adam", True), ("AdamW", True), ("sgd", False)]
)
def test_adam_is_fused_so_that_a_broken_step_can_be_passed_over(name, fused):
    optimizer = build_optimizer(one_group(), TrainingConfig(optimizer=name))
    assert bool(optimizer.defaults.get("fused")) is fused


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("adafactorbv", "keeps momentum_dtype as a dtype"),
        ("adahessian", "needs gradients of gradients"),
        ("kron", "keeps rng_state beside the state of parameters"),
    ],
)
def test_an_optimizer_that_no_run_could_end_with_is_refused(name, problem):
    with pytest.raises(UserError, match=f"training.optimizer {name} {problem}.*; choose another"):
        build_optimizer(one_group(), TrainingConfig(optimizer=name))


@pytest.mark.skipif(torch.cuda.is_available(), reason="it can be used there, where its package is")
def test_an_optimizer_that_needs_a_gpu_says_so():
    with pytest.raises(
        UserError,
        match=r"training.optimizer fusedadamw cannot be used here: CUDA required .*; choose another",
    ):
        build_optimizer(one_group(), TrainingConfig(optimizer="fusedadamw"))


def test_an_unknown_optimizer_names_its_near_matches():
    with pytest.raises(UserError, match=r"training.optimizer 'adamww' is unknown; did you mean .*adamw"):
        build_optimizer(one_group(), TrainingConfig(optimizer="adamww"))


def test_a_budget_of_samples_overrides_epochs_and_warmup():
    config = TrainingConfig(sample_budget=1000, epochs=1, warmup_epochs=5.0, batch_size=10)
    config.validate()
    resolved = config.resolved_for(100)
    assert resolved.epochs == 10
    assert resolved.warmup_epochs < resolved.epochs
    with pytest.raises(UserError, match=r"training.warmup_epochs must be below epochs \(1\)"):
        replace(config, sample_budget=None).validate()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "training.epochs must be at least 1; got 0; change --training.epochs"),
        ("lr", -1.0, "training.lr must be a positive number; got -1.0"),
        ("warmup_epochs", 100.0, r"training.warmup_epochs must be below epochs \(100\); got 100.0"),
        ("ema_decay", 1.0, r"training.ema_decay must lie inside \(0, 1\); got 1.0"),
        ("layer_decay", 1.5, "training.layer_decay must be at most 1; got 1.5"),
        ("device", "gpu", "training.device 'gpu' is unknown; did you mean cpu"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_impossible_settings(field, value, message):
    with pytest.raises(UserError, match=message):
        TrainingConfig(**{field: value}).validate()


def test_the_groups_of_a_task_have_both_decays_of_its_training():
    task = ToyTask()
    task.model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    groups = task.parameter_groups(TrainingConfig(weight_decay=0.2, layer_decay=0.5))
    assert {group["weight_decay"] for group in groups} == {0.0, 0.2}
    assert {group["lr_scale"] for group in groups} == {0.5**i for i in range(4)}
