"""Targets and losses of the reconstruction."""

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def normalize_targets(target: Float[Tensor, "b h t"], eps: float = 1e-6) -> Float[Tensor, "b h t"]:
    """Subtract each patch's mean, divide by its standard deviation (unbiased variance, eps inside the root).

    A patch of a single value has no variance and becomes zero.
    """
    centred = target - target.mean(-1, keepdim=True)
    if target.shape[-1] == 1:
        return centred
    return centred / (target.var(-1, keepdim=True) + eps).sqrt()


def denormalize_prediction(
    prediction: Float[Tensor, "b h t"], target: Float[Tensor, "b h t"], eps: float = 1e-6
) -> Float[Tensor, "b h t"]:
    """Undo :func:`normalize_targets` with the target's own statistics, to look at a prediction in pixels."""
    mean = target.mean(-1, keepdim=True)
    if target.shape[-1] == 1:
        return prediction + mean
    return prediction * (target.var(-1, keepdim=True) + eps).sqrt() + mean


def masked_mse(
    prediction: Float[Tensor, "b h t"],
    target: Float[Tensor, "b h t"],
    *,
    normalize: bool = True,
    eps: float = 1e-6,
) -> Float[Tensor, ""]:
    """Mean squared error over hidden tokens, in float32, on per-patch-normalised targets by default.

    Source: paper section 4 (MSE beats the diffusion loss, Table 7).

    Args:
        prediction, target: Values of the hidden tokens only.
        normalize: Compare with :func:`normalize_targets` of the target.
        eps: Added to the variance.
    """
    target = target.float()
    if normalize:
        target = normalize_targets(target, eps)
    return F.mse_loss(prediction.float(), target)


@dataclass(frozen=True)
class MaskedMSE:
    """:func:`masked_mse` with its settings, as a loss of (prediction, target).

    Attributes:
        normalize: Compare with per-patch-normalised targets.
    """

    normalize: bool = True

    def __call__(
        self, prediction: Float[Tensor, "b h t"], target: Float[Tensor, "b h t"]
    ) -> Float[Tensor, ""]:
        return masked_mse(prediction, target, normalize=self.normalize)

    def to_values(
        self, prediction: Float[Tensor, "b h t"], target: Float[Tensor, "b h t"]
    ) -> Float[Tensor, "b h t"]:
        """The prediction in the target's own values, with the target's statistics where they were taken out."""
        return denormalize_prediction(prediction, target) if self.normalize else prediction
