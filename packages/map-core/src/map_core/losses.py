"""Targets and losses of the reconstruction."""

import abc
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
    """Undo :func:`normalize_targets` with the target's statistics, to view a prediction in pixels."""
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
    """Mean squared error over hidden tokens, in float32; targets are normalised per patch by default.

    Source: paper section 4 (MSE beats the diffusion loss, Table 7).

    Args:
        prediction, target: Values of the hidden tokens only.
        normalize: Normalise the target by :func:`normalize_targets` first.
        eps: Added to the variance.
    """
    target = target.float()
    if normalize:
        target = normalize_targets(target, eps)
    return F.mse_loss(prediction.float(), target)


@dataclass(frozen=True)
class PatchLoss(abc.ABC):
    """A loss of (prediction, target) over the values of tokens, with or without normalising each target.

    Attributes:
        normalize: Normalise the targets per patch first.
    """

    normalize: bool = True

    @abc.abstractmethod
    def __call__(
        self, prediction: Float[Tensor, "b h t"], target: Float[Tensor, "b h t"]
    ) -> Float[Tensor, ""]: ...

    def to_values(
        self, prediction: Float[Tensor, "b h t"], target: Float[Tensor, "b h t"]
    ) -> Float[Tensor, "b h t"]:
        """The prediction in the units of the target, with the target's statistics put back if they were removed."""
        return denormalize_prediction(prediction, target) if self.normalize else prediction


@dataclass(frozen=True)
class MaskedMSE(PatchLoss):
    """:func:`masked_mse` with its settings."""

    def __call__(
        self, prediction: Float[Tensor, "b h t"], target: Float[Tensor, "b h t"]
    ) -> Float[Tensor, ""]:
        return masked_mse(prediction, target, normalize=self.normalize)


@dataclass(frozen=True)
class MaskedL1(PatchLoss):
    """Mean absolute error over hidden tokens, in float32.

    Source: SimMIM (arXiv 2111.09886), whose targets are not normalised.
    """

    normalize: bool = False

    def __call__(
        self, prediction: Float[Tensor, "b h t"], target: Float[Tensor, "b h t"]
    ) -> Float[Tensor, ""]:
        target = target.float()
        return F.l1_loss(prediction.float(), normalize_targets(target) if self.normalize else target)
