"""Clouds to tokens: patches in scan order, with their centres and points."""

from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from map_core.errors import UserError, unknown_name
from map_core.float64 import at_least_float32
from map_core.orders import ScanOrder, hilbert_code, scan_order
from map_core.tokens import Tokens, gather_tokens
from map_core.tracing import fx_leaf
from map_points.patches import PatchEmbedding, group_points
from map_points.patches.grouping import require_clouds
from map_points.patches.neighbors import gather_neighbors

PointOrder = Literal["fps", "z_order", "hilbert", "random", "hilbert_cells", "hilbert_cells_swapped"]
SCAN_ORDERS: dict[str, ScanOrder] = {
    "fps": "given",  # the order of farthest-point sampling
    "z_order": "z_order",
    "hilbert": "hilbert",
    "random": "random",
}
CELL_ORDERS = {"hilbert_cells": (0, 1, 2), "hilbert_cells_swapped": (1, 0, 2)}  # axes, slowest first
CELL = 0.02
# per axis: enough for a cloud 2.56 wide; with one more, for any enlarged cloud of the unit sphere
CELL_BITS = 7


def require_point_order(name: str, order: str) -> None:
    """Check that an order is a :data:`PointOrder`; ``name`` is the setting's, for the message.

    Raises:
        UserError: it is none.
    """
    if order not in get_args(PointOrder):
        raise unknown_name(name, order, get_args(PointOrder))


def order_of_centers(order: PointOrder) -> ScanOrder:
    """The scan order that a point order names.

    Raises:
        UserError: the order is unknown, or PointMamba's alone.
    """
    if order in CELL_ORDERS:
        raise UserError(
            f"order {order!r} is a model's alone: regions are cut along it only where the model scans in it "
            "(model.order)"
        )
    if order not in SCAN_ORDERS:
        raise unknown_name("order", order, SCAN_ORDERS)
    return SCAN_ORDERS[order]


def order_patches(center: Float[Tensor, "b l 3"], order: PointOrder) -> Int[Tensor, "b l"]:
    """Indices that bring centres from the order of sampling into scan order.

    ``hilbert_cells`` follows a Hilbert curve through cells of fixed size, as PointMamba does; ``hilbert_cells_swapped``
    does so with x and y exchanged. See :func:`cell_code`.

    Raises:
        UserError: an unknown order.
    """
    require_point_order("order", order)
    if order not in CELL_ORDERS:
        return scan_order(center, order_of_centers(order))
    code = cell_code(center.detach()[..., CELL_ORDERS[order]])
    return torch.argsort(code, dim=1, stable=True)


def cell_code(center: Float[Tensor, "b l 3"]) -> Int[Tensor, "b l"]:
    """Distance of centres along a Hilbert curve through cells of side 0.02.

    The curve has 128 cells per axis, or 256 for a cloud that needs them (beyond 5.12 they coincide). PointMamba
    takes as many as the largest cloud of a batch needs, which is the same in batches of clouds that fill the unit
    sphere; here no cloud's order depends on the rest of its batch.

    Source: PointMamba (arXiv 2402.10739, section 4.2).
    """
    cell = torch.div(at_least_float32(center), CELL, rounding_mode="floor").long()
    cell = (cell - cell.amin(dim=1, keepdim=True)).clamp(max=2 ** (CELL_BITS + 1) - 1)
    is_wide = cell.amax(dim=(1, 2), keepdim=False).unsqueeze(1) >= 2**CELL_BITS
    narrow_code = hilbert_code(cell.clamp(max=2**CELL_BITS - 1), CELL_BITS)
    return torch.where(is_wide, hilbert_code(cell, CELL_BITS + 1), narrow_code)


@fx_leaf
def coordinates(points: Float[Tensor, "b n c"], in_chans: int) -> Float[Tensor, "b n 3"]:
    """The coordinates of clouds.

    Raises:
        UserError: points are no batch of clouds, or do not have ``in_chans`` values.
    """
    require_clouds(points)
    if points.shape[-1] != in_chans:
        raise UserError(
            f"points have {points.shape[-1]} values, the model takes in_chans={in_chans}: x, y and z, and one for each "
            "of data.channels; change one of them"
        )
    return points[..., :3] if in_chans > 3 else points


def tokenize_clouds(
    points: Float[Tensor, "b n c"],
    patch_embed: PatchEmbedding,
    *,
    num_patches: int = 64,
    patch_size: int = 32,
    order: PointOrder = "fps",
    skip_origin: bool = False,
    targets: bool = False,
) -> Tokens:
    """Cut clouds into patches, embed them and lay them out in scan order.

    Args:
        points: Clouds of one size: coordinates, then further channels, which are embedded but are not targets.
        patch_embed: Embeds the patches.
        num_patches, patch_size: Number of patches, and of points in each.
        order: Order of the sequence.
        skip_origin: See :func:`~map_points.patches.group_points`.
        targets: Attach the points of each patch, relative to its centre, as targets.
    """
    xyz = coordinates(points, patch_embed.in_chans)
    patches = group_points(xyz, num_patches=num_patches, patch_size=patch_size, skip_origin=skip_origin)
    origin = order_patches(patches.center, order)
    scanned_points = gather_tokens(patches.points, origin)
    inputs = scanned_points
    if patch_embed.in_chans > 3:
        index = gather_tokens(patches.index, origin)
        inputs = torch.cat([scanned_points, gather_neighbors(points[..., 3:], index)], dim=-1)
    return Tokens(
        embedding=patch_embed(inputs),
        position=gather_tokens(patches.center, origin),
        target=scanned_points if targets else None,
        origin=origin,
    )


def scan_again(tokens: Tokens, order: PointOrder) -> Tokens:
    """Lay the same patches out in another order, without targets."""
    assert tokens.origin is not None
    sampling_order = tokens.origin.argsort(dim=1)
    center = gather_tokens(tokens.position, sampling_order)
    origin = order_patches(center, order)
    index = gather_tokens(sampling_order, origin)  # positions in the first sequence
    return Tokens(gather_tokens(tokens.embedding, index), gather_tokens(center, origin), origin=origin)


def concatenate_scans(first: Tokens, second: Tokens) -> Tokens:
    """Join two scans to one sequence; the second's origins continue the count of the first's."""
    assert first.origin is not None
    assert second.origin is not None
    return replace(
        first,
        embedding=torch.cat([first.embedding, second.embedding], dim=1),
        position=torch.cat([first.position, second.position], dim=1),
        origin=torch.cat([first.origin, first.length + second.origin], dim=1),
    )
