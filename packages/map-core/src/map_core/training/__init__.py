"""The training engine: a visible loop over Hugging Face Accelerate, exact to resume."""

from map_core.training.config import TrainingConfig
from map_core.training.loop import train
from map_core.training.task import Task

__all__ = ["Task", "TrainingConfig", "train"]
