"""Colour changes of the views in contrastive learning; crops and flips come from ``data.augmentation``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision import transforms as tv

from map_core.errors import UserError

Colors = Literal["moco_v2", "moco_v3"]
SIGMA = (0.1, 2.0)
MAX_KERNEL = 13  # reaches three deviations of the widest blur


@dataclass(frozen=True)
class ViewColors:
    """Jitter, grey, blur and solarisation of a normalised image, drawn from torch's global generator.

    Attributes:
        mean, std: Normalisation of the image.
        jitter: Strengths of brightness, contrast, saturation and hue, with probability .8.
        blur, solarize: Their probabilities.
    """

    mean: Sequence[float]
    std: Sequence[float]
    jitter: tuple[float, float, float, float]
    blur: float
    solarize: float = 0.0

    def __call__(self, image: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
        mean, std = (torch.tensor(list(values)).reshape(-1, 1, 1) for values in (self.mean, self.std))
        pixels = (image * std + mean).clamp(0, 1)
        for change in self._changes(min(image.shape[1:])):
            pixels = change(pixels)
        return (pixels - mean) / std

    def _changes(self, side: int) -> list[torch.nn.Module]:
        kernel = min(MAX_KERNEL, 2 * side - 1)
        return [
            tv.RandomApply([tv.ColorJitter(*self.jitter)], 0.8),
            tv.RandomGrayscale(0.2),
            tv.RandomApply([tv.GaussianBlur(kernel, SIGMA)], self.blur),
            tv.RandomSolarize(0.5, self.solarize),
        ]


def view_colors(
    colors: Colors, mean: Sequence[float], std: Sequence[float], *, stored: bool = False
) -> tuple[ViewColors, ViewColors]:
    """The colour changes of the first and the second view, as in MoCo v2 or v3.

    Raises:
        UserError: colour changes of images that are neither gray nor RGB pictures.
    """
    if stored or len(mean) not in (1, 3):
        raise UserError(
            f"objective.colors '{colors}' changes colours, which stored values of {len(mean)} channels do not have: "
            "pass --objective.colors none"
        )
    if colors == "moco_v2":
        changes = ViewColors(mean, std, (0.4, 0.4, 0.4, 0.1), blur=0.5)
        return changes, changes
    jitter = (0.4, 0.4, 0.2, 0.1)
    return ViewColors(mean, std, jitter, blur=1.0), ViewColors(mean, std, jitter, blur=0.1, solarize=0.2)
