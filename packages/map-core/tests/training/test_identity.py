"""What identifies a run: a resumed one may change how it computes, and nothing on which its weights depend."""

from dataclasses import fields

import pytest
from toy_task import toy_config

from map_core import UserError
from map_core.runs.saved_state import refuse_another_run
from map_core.training import TrainingConfig
from map_core.training.identity import run_settings
from map_core.training.plan import RunPlan

DECIDES = {
    "sample_budget": 100, "epochs": 5, "batch_size": 14, "base_lr": 1.0, "lr": 0.5, "warmup_epochs": 2.0,
    "warmup_lr": 0.1, "min_lr": 0.1, "optimizer": "sgd", "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3,
    "layer_decay": 0.5, "clip_grad": None, "precision": "bf16", "ema_decay": 0.5, "repeated_augmentation": 2,
    "seed": 1,
}  # fmt: skip
FREE = {
    "accumulation_steps": 2, "activation_checkpointing": True, "recompute_every": 2, "compile": "blocks",
    "compile_mode": "max-autotune", "workers": 1, "checkpoint_steps": 5, "checkpoint_epochs": 2,
    "keep_checkpoints": 3, "evaluate_epochs": 2, "log_steps": 3, "device": "auto", "max_steps": 9,
    "progress": False, "tensorboard": True, "trackers": ("wandb",),
}  # fmt: skip


def identity(**changes):
    config = toy_config(**changes)
    return run_settings("toy", RunPlan.of(config, 70, 1, 0), config, None, {})


def test_every_setting_is_one_or_the_other():
    assert sorted([*DECIDES, *FREE]) == sorted(field.name for field in fields(TrainingConfig))


@pytest.mark.parametrize("name", DECIDES)
def test_a_setting_on_which_weights_depend_makes_another_run(name, tmp_path):
    with pytest.raises(UserError, match=rf"training\.{name} was .* and is "):
        refuse_another_run(identity(), identity(**{name: DECIDES[name]}), tmp_path)


@pytest.mark.parametrize("name", FREE)
def test_a_setting_on_which_no_weight_depends_may_change(name, tmp_path):
    refuse_another_run(identity(), identity(**{name: FREE[name]}), tmp_path)
