"""Masked autoregressive pretraining for images; importing it registers the models with timm."""

import map_vision.registry as registry  # registers
from map_vision.model import HybridNet

__version__ = "0.1.0"
__all__ = ["HybridNet", "registry"]
