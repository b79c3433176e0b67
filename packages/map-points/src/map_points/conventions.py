"""Choices about a point model on which projects differ and which no weight's shape shows."""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor, cat

from map_core.errors import unknown_name
from map_core.positions import MlpActivation
from map_points.blocks import SpreadKind

PoolKind = Literal["max_plus_mean", "max", "mean", "mean_and_max"]


@dataclass(frozen=True)
class Conventions:
    """Choices beyond a model's sizes; the defaults are this project's.

    Attributes:
        position_activation: Activation of the MLP that embeds the centres' coordinates.
        repeat_position: Add positions before every block, not once.
        pool: How patches are pooled, see :func:`pool_patches`; the class token, if there is one, comes first.
        local_spread: What Mamba3D's local norm divides by, see :class:`~map_points.blocks.LocalNormPool`.
        local_class_token: The local step adds the class token's norm to it, instead of leaving it unchanged.
        skip_origin: Never sample a centre within sqrt(1e-3) of the origin, as in ``pointnet2_ops``.
        order_scale: Scale and shift the tokens by learned numbers, separate for each order in which they are read.
    """

    position_activation: MlpActivation = "gelu"
    repeat_position: bool = True
    pool: PoolKind = "max_plus_mean"
    local_spread: SpreadKind = "variance"
    local_class_token: bool = False
    skip_origin: bool = False
    order_scale: bool = False

    def __post_init__(self) -> None:
        if self.pool not in get_args(PoolKind):
            raise unknown_name("pool", self.pool, get_args(PoolKind))

    @property
    def pooled_parts(self) -> int:
        """How many vectors pooling the patches gives."""
        return 2 if self.pool == "mean_and_max" else 1


CONVENTIONS = tuple(field.name for field in fields(Conventions))


def pool_patches(patches: Float[Tensor, "b l d"], kind: PoolKind) -> Float[Tensor, "b f"]:
    """Pool patches: the sum of maximum and mean, one of the two, or the mean joined to the maximum."""
    if kind == "max":
        return patches.amax(dim=1)
    if kind == "mean":
        return patches.mean(dim=1)
    if kind == "mean_and_max":
        return cat([patches.mean(dim=1), patches.amax(dim=1)], dim=-1)
    return patches.amax(dim=1) + patches.mean(dim=1)
