"""Orders of the patches of a cloud: the sequence that Mamba scans."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from map_core.errors import UserError, near_matches
from map_core.randomness import keyed_generator

PointOrder = Literal["fps", "z_order", "hilbert", "random"]
BITS = 10  # cells of an axis: 2 ** BITS


def order_patches(center: Float[Tensor, "b l 3"], order: PointOrder) -> Int[Tensor, "b l"]:
    """Indices that bring patches from the order of sampling into scan order.

    ``fps`` keeps the order of sampling (Mamba3D). ``z_order`` and ``hilbert`` follow space-filling curves
    through the cloud's bounding cube; centres in one cell keep their order. ``random`` is one fixed
    permutation for each number of patches, so that it needs no generator at evaluation.

    Raises:
        UserError: an unknown order.
    """
    batch, length, _ = center.shape
    if order == "fps":
        return torch.arange(length, device=center.device).expand(batch, -1)
    if order == "random":
        permutation = torch.randperm(length, generator=keyed_generator(0, "patch order", length))
        return permutation.to(center.device).expand(batch, -1)
    curves: dict[str, Callable[[Tensor], Tensor]] = {"z_order": z_code, "hilbert": hilbert_code}
    if order not in curves:
        raise UserError(f"order {order!r} is unknown; {near_matches(order, get_args(PointOrder))}")
    return torch.argsort(curves[order](quantize(center)), dim=1, stable=True)


def quantize(center: Float[Tensor, "b l 3"]) -> Int[Tensor, "b l 3"]:
    """Cells of the centres in a grid over their bounding cube."""
    center = center.detach().float()
    low = center.amin(dim=1, keepdim=True)
    extent = (center - low).amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return ((center - low) / extent * (2**BITS - 1)).round().long()


def z_code(cell: Int[Tensor, "*s 3"]) -> Int[Tensor, "*s"]:
    """Interleave the bits of a cell, x highest (Morton 1966)."""
    return _interleave(cell.unbind(-1))


def hilbert_code(cell: Int[Tensor, "*s 3"]) -> Int[Tensor, "*s"]:
    """Distance of a cell along the Hilbert curve (Skilling 2004, "Programming the Hilbert curve")."""
    axes = list(cell.unbind(-1))
    for bit in range(BITS - 1, 0, -1):
        low = (1 << bit) - 1
        for i in range(3):
            upper = (axes[i] >> bit) & 1 == 1
            swapped = torch.where(upper, 0, (axes[0] ^ axes[i]) & low)
            axes[0] = axes[0] ^ torch.where(upper, low, swapped)
            axes[i] = axes[i] ^ swapped if i else axes[i]
    axes[1] = axes[1] ^ axes[0]
    axes[2] = axes[2] ^ axes[1]
    flips = torch.zeros_like(axes[0])
    for bit in range(BITS - 1, 0, -1):
        flips = flips ^ torch.where((axes[2] >> bit) & 1 == 1, (1 << bit) - 1, 0)
    return _interleave([axis ^ flips for axis in axes])


def _interleave(axes: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    code = torch.zeros_like(axes[0])
    for bit in range(BITS - 1, -1, -1):
        for axis in axes:
            code = (code << 1) | ((axis >> bit) & 1)
    return code
