"""Small models and small folders of images, for every test of this package."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from map_vision import HybridNet

TINY: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 32,
    "layout": "(MMMT)x1",
    "num_heads": 4,
    "num_registers": 4,
    "num_classes": 10,
}


@pytest.fixture
def make_tiny() -> Callable[..., HybridNet]:
    """Create a small version of a registered model: 16 patches, 4 layers of width 32, in evaluation mode."""

    def make(name: str = "hybridnet_tiny_patch16_224", **changes: Any) -> HybridNet:
        torch.manual_seed(0)
        return timm.create_model(name, **{**TINY, **changes}).eval()

    return make


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of different brightness, with 6 training and 4 evaluation images of 18 x 20 each."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for level, name in enumerate(("bright", "dark", "gray")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(80 * level, 80 * level + 60, (18, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch off the test run's type checks, to see our own message about a value of the wrong kind."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
