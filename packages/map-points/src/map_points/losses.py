"""Chamfer distances between sets of points, as sums of squared differences in plain PyTorch."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from map_core.errors import UserError
from map_points.patches.sampling import squared_distance

ChamferKind = Literal["l1", "l2"]


def chamfer_distance(
    a: Float[Tensor, "*s n 3"], b: Float[Tensor, "*s m 3"], kind: ChamferKind = "l2"
) -> Float[Tensor, "*s"]:
    """Distance between two sets of points, in float32.

    ``l2``: the mean squared distance of each point to the nearest of the other set, summed over both ways.
    ``l1``: the mean distance likewise, averaged over both ways. Source: Fan et al. 2017; both as the
    point-cloud literature since PoinTr defines them.

    Raises:
        UserError: an unknown kind.
    """
    if kind not in ("l1", "l2"):
        raise UserError(f"chamfer distance must be 'l1' or 'l2'; got {kind!r}")
    squared = squared_distance(a.float().unsqueeze(-2), b.float().unsqueeze(-3))  # (*s, n, m)
    there, back = squared.amin(dim=-1), squared.amin(dim=-2)
    if kind == "l2":
        return there.mean(-1) + back.mean(-1)
    # the root's slope is infinite at 0, where a point is reproduced exactly
    tiny = 1e-12
    return 0.5 * ((there + tiny).sqrt().mean(-1) + (back + tiny).sqrt().mean(-1))


def masked_chamfer(
    prediction: Float[Tensor, "b h f"], target: Float[Tensor, "b h k 3"], *, kind: ChamferKind = "l2"
) -> Float[Tensor, ""]:
    """Mean Chamfer distance over hidden patches; the head predicts as many points as a patch has.

    Args:
        prediction: The head's output, f = 3 * k.
        target: Points of the hidden patches, relative to their centres.
        kind: See :func:`chamfer_distance`.
    """
    return chamfer_distance(prediction.unflatten(-1, (-1, 3)), target, kind).mean()
