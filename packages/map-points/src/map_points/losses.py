"""Distances between sets of points in plain PyTorch: to the nearest point, or matched so that none is left over."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from map_core.errors import UserError, unknown_name
from map_points.patches.sampling import squared_distance

ChamferKind = Literal["l1", "l2"]
Matching = Literal["nearest", "transport"]
TINY = 1e-12  # added under a root, whose slope is infinite at 0, where a point is reproduced exactly
SOFTNESS = torch.logspace(0, -2, 20).tolist()  # of the matching in each step, relative to the mean cost


def chamfer_distance(
    a: Float[Tensor, "*s n 3"], b: Float[Tensor, "*s m 3"], kind: ChamferKind = "l2"
) -> Float[Tensor, "*s"]:
    """Distance between two sets of points, in float32.

    ``l2``: the mean squared distance of each point to the nearest of the other set, summed over both ways.
    ``l1``: the mean distance likewise, averaged over both ways. Source: Fan et al. 2017; both as the
    point-cloud literature since PoinTr defines them.

    Raises:
        UserError: an unknown kind, or a set without points.
    """
    _check_kind(kind)
    _check_points(a, b)
    squared = squared_distance(a.float().unsqueeze(-2), b.float().unsqueeze(-3))  # (*s, n, m)
    there, back = squared.amin(dim=-1), squared.amin(dim=-2)
    if kind == "l2":
        return there.mean(-1) + back.mean(-1)
    return 0.5 * ((there + TINY).sqrt().mean(-1) + (back + TINY).sqrt().mean(-1))


def _check_kind(kind: str) -> None:
    if kind not in ("l1", "l2"):
        raise UserError(f"a distance of points must be 'l1' or 'l2'; got {kind!r}")


def _check_points(a: Tensor, b: Tensor) -> None:
    if not a.shape[-2] or not b.shape[-2]:
        raise UserError(
            f"a distance is between sets that have points; got {a.shape[-2]} and {b.shape[-2]} points"
        )


def transport_distance(
    a: Float[Tensor, "*s n 3"], b: Float[Tensor, "*s m 3"], kind: ChamferKind = "l2"
) -> Float[Tensor, "*s"]:
    """Cost of moving one set of points onto another, each point its equal share: the earth mover's distance.

    In the units of :func:`chamfer_distance`, and never below it: twice the mean squared length of the moves
    (``l2``), or their mean length (``l1``), in float32. Sinkhorn's iterations, with ever less softness (Cuturi
    2013), give the plan, which is not differentiated: near the best plan the cost changes by the moves alone. The cost
    is about 2 % from the best while errors are as large as the patch; where they are a twentieth of it, ``l2`` blurs
    the plan and is a quarter above, ``l1`` is not.

    Where the surface is uncertain, a predicted point has the smallest Chamfer distance near the patch's centre, where
    there is always some surface, so predictions bunch there; here each has its own part of the target.

    Raises:
        UserError: an unknown kind, or a set without points.
    """
    _check_kind(kind)
    _check_points(a, b)
    cost = squared_distance(a.float().unsqueeze(-2), b.float().unsqueeze(-3))  # (*s, n, m)
    if kind == "l1":
        cost = (cost + TINY).sqrt()
    total = (transport_plan(cost.detach()) * cost).sum(dim=(-1, -2))
    return 2 * total if kind == "l2" else total


def transport_plan(cost: Float[Tensor, "*s n m"]) -> Float[Tensor, "*s n m"]:
    """How much of each point of one set goes to each point of the other; the plan sums to 1."""
    cost = cost / cost.mean(dim=(-1, -2), keepdim=True).clamp_min(TINY)
    target_potential = torch.zeros_like(cost[..., :1, :])
    for softness in SOFTNESS:
        source_potential = -softness * torch.logsumexp(
            (target_potential - cost) / softness, dim=-1, keepdim=True
        )
        target_potential = -softness * torch.logsumexp(
            (source_potential - cost) / softness, dim=-2, keepdim=True
        )
    plan = ((source_potential + target_potential - cost) / softness).exp()
    return plan / plan.sum(dim=(-1, -2), keepdim=True)


def masked_distance(
    prediction: Float[Tensor, "b h f"],
    target: Float[Tensor, "b h k 3"],
    *,
    kind: ChamferKind = "l2",
    matching: Matching = "nearest",
) -> Float[Tensor, ""]:
    """Mean distance over hidden patches; the head predicts as many points as a patch has.

    Args:
        prediction: The head's output, f = 3 * k.
        target: Points of the hidden patches, relative to their centres.
        kind: See :func:`chamfer_distance`.
        matching: Chamfer's nearest points, or the plan of :func:`transport_distance`.

    Raises:
        UserError: an unknown kind or matching, or a prediction that is no number of points.
    """
    if matching not in get_args(Matching):
        raise unknown_name("matching", matching, get_args(Matching))
    if prediction.shape[-1] % 3:
        raise UserError(
            f"a prediction holds x, y and z of its points, a multiple of 3 values; got {prediction.shape[-1]}: give "
            "the head 3 * patch_size outputs"
        )
    distance = chamfer_distance if matching == "nearest" else transport_distance
    return distance(prediction.unflatten(-1, (-1, 3)), target, kind).mean()
