"""How a cloud becomes what the model sees: centring, choice of points, augmentation."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from map_core.errors import UserError
from map_points.data.config import Axis, PointDataConfig
from map_points.patches.sampling import farthest_point_sample

PROBE = 16
SURPLUS = 1200 / 1024  # farthest points of which a training step takes a random part


def to_unit_sphere(points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Shift the centroid to the origin and scale the farthest point to distance 1."""
    centred = points - points.mean(dim=0)
    radius = centred.norm(dim=-1).max()
    return centred / radius if radius > 0 else centred


def farthest(points: Float[Tensor, "n 3"], count: int) -> Float[Tensor, "{count} 3"]:
    """The first ``count`` farthest points.

    Published files often hold farthest points already, in the order of picking; then these are the first
    ones. Sixteen that agree by chance have odds below n to the minus fifteen.
    """
    probe = farthest_point_sample(points.unsqueeze(0), min(count, PROBE))[0]
    if torch.equal(probe, torch.arange(len(probe))):
        return points[:count]
    return points[farthest_point_sample(points.unsqueeze(0), count)[0]]


def take_points(
    points: Float[Tensor, "n 3"], count: int, *, training: bool, surplus: bool, name: str
) -> Float[Tensor, "{count} 3"]:
    """Choose ``count`` points: in training a random choice in random order, else farthest points.

    A cloud of ``count`` points is kept whole; in training it is shuffled, which moves the first centre.

    Raises:
        UserError: the cloud has fewer points.
    """
    n = len(points)
    if n < count:
        raise UserError(f"{name} has {n} points, fewer than data.num_points ({count}); lower it")
    if not training:
        return points if n == count else farthest(points, count)
    if surplus and n > count:
        points = farthest(points, min(n, round(SURPLUS * count)))
    return points[torch.randperm(len(points))[:count]]


def rotate(points: Float[Tensor, "n 3"], axis: Axis) -> Float[Tensor, "n 3"]:
    """Turn by a random angle about an axis."""
    angle = float(torch.rand(())) * 2 * math.pi
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    turned = points.clone()
    turned[:, i] = math.cos(angle) * points[:, i] - math.sin(angle) * points[:, j]
    turned[:, j] = math.sin(angle) * points[:, i] + math.cos(angle) * points[:, j]
    return turned


def scale_translate(
    points: Float[Tensor, "n 3"], scale: tuple[float, float], translate: float
) -> Float[Tensor, "n 3"]:
    """Scale and shift every axis by its own random amount."""
    factor = scale[0] + (scale[1] - scale[0]) * torch.rand(3)
    return points * factor + translate * (2 * torch.rand(3) - 1)


def augment(points: Float[Tensor, "n 3"], config: PointDataConfig, up_axis: Axis) -> Float[Tensor, "n 3"]:
    """Apply the configured augmentation, drawing from torch's global generator."""
    if config.augmentation == "rotate":
        return rotate(points, up_axis)
    if config.augmentation == "scale_translate":
        return scale_translate(points, config.scale, config.translate)
    return points
