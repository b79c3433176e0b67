"""Checkpoints of other projects that image models can start from, one file per kind of encoder."""

from map_vision.checkpoints.arm import ARM
from map_vision.checkpoints.authors import AUTHORS
from map_vision.checkpoints.mamba import MAMBA_R, VIM
from map_vision.checkpoints.mambavision import MAMBAVISION
from map_vision.checkpoints.vit import DINO, MAE, MOCO_V3, VIT

FAMILIES = (VIT, MAE, DINO, MOCO_V3, MAMBA_R, VIM, AUTHORS, ARM, MAMBAVISION)

__all__ = ["FAMILIES"]
