"""A diffusion head in place of a regression: the process, the network, and the objective with its settings."""

from map_core.objectives.diffusion.head import DiffusionHead
from map_core.objectives.diffusion.objective import MaskedDiffusion, MaskedDiffusionConfig
from map_core.objectives.diffusion.process import Process

__all__ = ["DiffusionHead", "MaskedDiffusion", "MaskedDiffusionConfig", "Process"]
