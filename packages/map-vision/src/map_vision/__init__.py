"""Masked autoregressive pretraining for images; importing it registers the models with timm."""

import map_vision.models as models  # registers
from map_vision.hybridnet import HybridNet

__version__ = "0.1.0"
__all__ = ["HybridNet", "models"]
