"""A MambaVision of 64 channels at 64 pixels: four cells, one block per convolution stage, two per token stage."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

from map_vision.mambavision import MambaVision

TINY: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": 64,
    "stem_dim": 4,
    "depths": (1, 1, 2, 2),
    "num_heads": (2, 4),
    "window_size": (4, 2),
    "mlp_ratio": 3.0,
    "num_classes": 10,
}


@pytest.fixture
def make_pyramid() -> Callable[..., MambaVision]:
    """Create a small version of a registered pyramid, with all weights perturbed unless they come from a file."""

    def make(**changes: Any) -> MambaVision:
        torch.manual_seed(0)
        model = timm.create_model("map_mambavision_tiny", **{**TINY, **changes}).eval()
        if "checkpoint_path" in changes:
            return model
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.add_(0.1 * torch.randn(value.shape, generator=generator))
        return model

    return make
