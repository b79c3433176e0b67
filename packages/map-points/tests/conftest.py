"""Shared fixtures; every test starts from the same random numbers."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

from map_core.commands.standard import configs
from map_core.tasks.domain import OpenedData
from map_core.tasks.pretraining import PretrainTask
from map_core.training import TrainingConfig, train
from map_points.data import PointDataConfig, write_part_shapes
from map_points.data.clouds import ArrayClouds
from map_points.domain import DOMAIN, as_opened_data
from map_points.factory import PointModelConfig
from map_points.pretraining import PointObjectiveConfig


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the type checks of the test run off, to see our own message about a value of the wrong kind."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def two_part_shapes(tmp_path_factory) -> Path:
    """A small set of two-part shapes in ShapeNetPart's layout."""
    pytest.importorskip("trimesh")
    root = tmp_path_factory.mktemp("part_shapes") / "set"
    write_part_shapes(root, train=3, val=1, test=2, points=200)
    return root


@pytest.fixture(scope="session")
def tiny_model() -> PointModelConfig:
    """The smallest model with both kinds of blocks."""
    return PointModelConfig(
        embed_dim=16, patch_hidden_dim=8, num_heads=2, num_patches=16, patch_size=4, layout="MMT", neighbors=3
    )


@pytest.fixture(scope="session")
def tiny_objective() -> PointObjectiveConfig:
    """The smallest objective."""
    return PointObjectiveConfig(decoder_dim=16, decoder_heads=2, decoder_depth=1)


@pytest.fixture(scope="session")
def short_training() -> TrainingConfig:
    """Two steps over eight clouds, on the CPU."""
    return TrainingConfig(
        epochs=1,
        batch_size=4,
        lr=1e-3,
        warmup_epochs=0.5,
        workers=0,
        device="cpu",
        progress=False,
        tensorboard=False,
    )


@pytest.fixture(scope="session")
def two_classes() -> OpenedData:
    """Eight training clouds and four to evaluate on, of 64 points: round ones and flat ones."""
    generator, config = np.random.default_rng(0), PointDataConfig(num_points=64)

    def split(count):
        points = generator.normal(size=(count, 64, 3)).astype(np.float32)
        points[count // 2 :, :, 2] *= 0.1
        return ArrayClouds(np.arange(count) // (count // 2), ("round", "flat"), points, "made up")

    return as_opened_data(config, "made up", split(8), split(4), "test split")


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, tiny_model, tiny_objective, short_training, two_classes):
    """A finished pretraining run (its directory) and its task."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    config = configs(DOMAIN).pretrain(model=tiny_model, objective=tiny_objective, training=short_training)
    task = PretrainTask(DOMAIN, config, two_classes)
    train(task, config.training, out, run_config=config)
    return out, task
