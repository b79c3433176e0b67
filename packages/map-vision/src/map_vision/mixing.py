"""Mixup and CutMix, keyed by the step."""

from dataclasses import dataclass

import numpy as np
from timm.data import Mixup
from torch import Tensor

from map_core.errors import UserError
from map_core.objectives.settings import Settings
from map_core.randomness import Draw, derive_seed
from map_core.ranges import check, refuse_without_effect


@dataclass
class MixingConfig(Settings):
    """Mixup and CutMix of a batch; batches are left alone if both are 0.

    Args:
        mixup: Alpha of Mixup.
        cutmix: Alpha of CutMix.
        mix_prob: Probability of mixing a batch.
        mix_switch_prob: Probability of CutMix if both are on.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5

    def validate(self) -> None:
        super().validate()
        check("objective", self, not_negative=("mixup", "cutmix"), shares=("mix_prob", "mix_switch_prob"))
        if not (self.mixup or self.cutmix):
            because = "objective.mixup 0 and objective.cutmix 0"
            refuse_without_effect("objective", self, "mix_prob", "mix_switch_prob", because=because)
        elif not (self.mixup and self.cutmix):
            only = "mixup" if self.mixup else "cutmix"
            because = f"objective.{only} alone"
            refuse_without_effect("objective", self, "mix_switch_prob", because=because)

    def make_mixer(self, num_classes: int, smoothing: float = 0.0) -> "BatchMixer | None":
        """The mixer of these settings; None if both are 0."""
        if self.mixup <= 0 and self.cutmix <= 0:
            return None
        return BatchMixer(self, num_classes=num_classes, smoothing=smoothing)


class BatchMixer:
    """Mix the images and labels of a micro-batch, in the same way whenever the step is repeated.

    Args:
        config: Settings of Mixup and CutMix.
        num_classes: Width of the soft labels.
        smoothing: Label smoothing.
    """

    def __init__(self, config: MixingConfig, *, num_classes: int, smoothing: float = 0.0) -> None:
        self.mixup = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            prob=config.mix_prob,
            switch_prob=config.mix_switch_prob,
            label_smoothing=smoothing,
            num_classes=max(num_classes, 1),
        )

    def __call__(self, images: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return mixed images and soft labels (b, num_classes).

        Raises:
            UserError: an odd micro-batch, whose images cannot be paired.
        """
        if len(images) % 2:
            raise UserError(
                f"mixup and cutmix pair images, but a micro-batch has {len(images)}: choose an even "
                "training.batch_size / (processes * accumulation_steps)"
            )
        state = np.random.get_state()  # noqa: NPY002 (timm's Mixup draws from numpy's global generator)
        np.random.seed(derive_seed(draw.seed, "mixup", draw.step, draw.samples.start) % 2**32)  # noqa: NPY002
        try:
            return self.mixup(images.clone(), labels)
        finally:
            np.random.set_state(state)  # noqa: NPY002
