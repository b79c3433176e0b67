"""The classification loss over images."""

from dataclasses import dataclass

import map_core.tasks.classification
from map_vision.mixing import BatchMixer, MixingConfig


@dataclass
class ClassificationConfig(MixingConfig, map_core.tasks.classification.ClassificationConfig):
    """The classification loss.

    Args:
        smoothing: Label smoothing.
    """

    smoothing: float = 0.1

    def mixer(self, num_classes: int) -> BatchMixer | None:
        return self.make_mixer(num_classes, self.smoothing)
