"""Clouds to tokens: patches in scan order, with their centres and points."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from map_core.errors import UserError, near_matches
from map_core.orders import ScanOrder, scan_order
from map_core.tokens import Tokens, gather_tokens
from map_points.patches import PatchEmbedding, group_points

PointOrder = Literal["fps", "z_order", "hilbert", "random"]
SCAN_ORDERS: dict[str, ScanOrder] = {
    "fps": "given",  # the order of farthest-point sampling
    "z_order": "z_order",
    "hilbert": "hilbert",
    "random": "random",
}


def order_of_centers(order: PointOrder) -> ScanOrder:
    """The scan order that a point order names.

    Raises:
        UserError: an unknown order.
    """
    if order not in SCAN_ORDERS:
        raise UserError(f"order {order!r} is unknown; {near_matches(order, SCAN_ORDERS)}")
    return SCAN_ORDERS[order]


def tokenize_clouds(
    points: Float[Tensor, "b n 3"],
    patch_embed: PatchEmbedding,
    *,
    num_patches: int = 64,
    patch_size: int = 32,
    order: PointOrder = "fps",
    targets: bool = False,
) -> Tokens:
    """Cut clouds into patches, embed them and lay them out in scan order.

    Args:
        points: Clouds of one size.
        patch_embed: Embeds the patches.
        num_patches, patch_size: How many patches of how many points.
        order: Order of the sequence.
        targets: Attach the points of each patch, relative to its centre, as target.
    """
    patches = group_points(points, num_patches=num_patches, patch_size=patch_size)
    origin = scan_order(patches.center, order_of_centers(order))
    scanned = gather_tokens(patches.points, origin)
    return Tokens(
        embedding=patch_embed(scanned),
        position=gather_tokens(patches.center, origin),
        target=scanned if targets else None,
        origin=origin,
    )
