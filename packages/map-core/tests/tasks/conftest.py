"""One run of each kind on the toy domain, for every test of this folder."""

import dataclasses

import pytest
from toy_domain import DOMAIN

from map_core.commands.standard import configs
from map_core.tasks.classification import FinetuneTask, LinearProbeTask
from map_core.tasks.pretraining import PretrainTask
from map_core.training import TrainingConfig, train


def short_training(**changes):
    """Three steps an epoch."""
    settings = {"epochs": 2, "batch_size": 8, "warmup_epochs": 0.0, "lr": 1e-2, "workers": 0, "device": "cpu"}
    return TrainingConfig(**(settings | {"tensorboard": False, "progress": False} | changes))


def configuration(command, **sections):
    """The configuration of a command of the toy domain, with short training."""
    config = getattr(configs(DOMAIN), command)()
    return dataclasses.replace(config, **{"training": short_training(), **sections})


@pytest.fixture
def make_config():
    return configuration


def train_task(task, out):
    """Train a task; return its run's directory and the task."""
    train(task, task.config.training, out, run_config=task.config)
    return out, task


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    config = configuration("pretrain", training=short_training(ema_decay=0.5))
    return train_task(PretrainTask(DOMAIN, config), tmp_path_factory.mktemp("pretrained") / "run")


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory, pretrained):
    config = configuration("finetune", init=str(pretrained[0]))
    return train_task(FinetuneTask(DOMAIN, config), tmp_path_factory.mktemp("finetuned") / "run")


@pytest.fixture(scope="session")
def probed(tmp_path_factory, pretrained):
    config = configuration("finetune", init=str(pretrained[0]))
    return train_task(LinearProbeTask(DOMAIN, config), tmp_path_factory.mktemp("probed") / "run")
