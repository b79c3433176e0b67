"""From a cloud to the input of a model: centring, choice of points, augmentation."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from map_core.errors import UserError
from map_points.data.columns import vectors
from map_points.data.config import Axis, PointDataConfig
from map_points.data.files import BROKEN_CLOUD, START_ANEW

PROBE = 16  # farthest points that show whether a cloud is already in the order of picking
FARTHEST = 1e30  # squares of distances stay finite in float64, coordinates in float32
ROUNDING = 1e-12  # an extent below this part of the coordinates is float64's rounding
STRAY = 1e-5  # with half of the points within this part of the extent, there is no shape any more
OFFSET = 1e-3  # an extent above this part of the coordinates keeps 4 digits in float32
SURPLUS = 1200 / 1024  # farthest points of which a training step takes a random part


def to_unit_sphere(points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Shift the centroid to the origin and scale the farthest point to distance 1."""
    centered = points - points.mean(dim=0)
    radius = centered.norm(dim=-1).max()
    return centered / radius if radius > 0 else centered


def prepare(points: np.ndarray, *, unit_sphere: bool, name: str) -> Float[Tensor, "n c"]:
    """Centre and scale a cloud if ``unit_sphere``, in float64: far from the origin float32 would round its shape away.

    Channels stay unchanged.

    Raises:
        UserError: the cloud's shape would not survive in float32.
    """
    exact = torch.from_numpy(points)
    xyz, channels = exact[:, :3], exact[:, 3:]
    check_extent(xyz, name, centered=unit_sphere)
    return torch.cat([to_unit_sphere(xyz) if unit_sphere else xyz, channels], dim=1).float()


def check_extent(points: Float[Tensor, "n 3"], name: str, *, centered: bool) -> None:
    """Check that a cloud has a shape that float32 can hold.

    Args:
        points: The cloud, float64.
        name: Name of the cloud, for messages.
        centered: Whether the cloud is centred and scaled before it is rounded.

    Raises:
        UserError: all points are identical, coordinates are beyond all bounds, a point lies so far out that it alone
            would be seen, or the cloud is too far from the origin to be left uncentred.
    """
    reach = float(points.abs().max())
    extent = float((points.amax(dim=0) - points.amin(dim=0)).max())
    if not reach < FARTHEST:
        raise UserError(f"{name} has coordinates up to {reach:.3g}; {BROKEN_CLOUD}")
    if extent <= ROUNDING * reach:
        raise UserError(
            f"{name}: its {len(points)} points are all the same, and a cloud needs a shape; {BROKEN_CLOUD}"
        )
    distance = (points - points.median(dim=0).values).norm(dim=-1)
    spread = float(distance.median())
    if 0 < spread < STRAY * extent:
        raise UserError(
            f"{name}: point {int(distance.argmax())} lies {float(distance.max()):.3g} from the others, which "
            f"lie within {spread:.3g}; remove that point"
        )
    if not centered and extent < OFFSET * reach:
        raise UserError(
            f"{name} is {extent:.3g} wide but {reach:.3g} from the origin, too far for float32; centre it, or give "
            "--data.unit_sphere true"
        )


def farthest(points: Float[Tensor, "n c"], count: int) -> Float[Tensor, "{count} c"]:
    """The first ``count`` farthest points.

    Published files often hold farthest points already, in the order of picking; then the first points are the
    farthest ones. The odds that sixteen agree by chance are below n to the minus fifteen.
    """
    xyz = points[:, :3].numpy()
    probe = farthest_indices(xyz, min(count, PROBE))
    if np.array_equal(probe, np.arange(len(probe))):
        return points[:count]
    return points[torch.from_numpy(farthest_indices(xyz, count))]


def farthest_indices(xyz: Float[np.ndarray, "n 3"], count: int) -> Int[np.ndarray, " {count}"]:
    """The points of one cloud that :func:`~map_points.patches.sampling.farthest_point_sample` picks, to the last bit.

    For one cloud in memory, small operations on arrays that are used again take a fraction of its time.
    """
    x, y, z = np.ascontiguousarray(xyz.T)
    distance, square = np.empty_like(x), np.empty_like(x)
    nearest = np.full_like(x, np.inf)  # squared distance to the nearest of the points picked so far
    indices = np.zeros(count, dtype=np.int64)
    with np.errstate(over="ignore"):  # far out, a square is infinite, and so the farthest
        for i in range(1, count):
            last = indices[i - 1]
            np.subtract(x, x[last], out=distance)
            np.multiply(distance, distance, out=distance)
            for axis in (y, z):  # added in the order x, y, z, so that every path rounds alike
                np.subtract(axis, axis[last], out=square)
                np.multiply(square, square, out=square)
                np.add(distance, square, out=distance)
            np.minimum(nearest, distance, out=nearest)
            indices[i] = nearest.argmax()  # of ties, the lower index
    return indices


def take_points(
    points: Float[Tensor, "n c"], count: int, *, training: bool, surplus: bool, name: str
) -> Float[Tensor, "{count} c"]:
    """Choose ``count`` points: in training a random choice in random order, else farthest points.

    A cloud of exactly ``count`` points is kept whole; in training it is shuffled, which changes the first centre.

    Raises:
        UserError: the cloud has fewer points.
    """
    check_count(len(points), count, name)
    n = len(points)
    if not training:
        return points if n == count else farthest(points, count)
    if surplus and n > count:
        points = farthest(points, min(n, round(SURPLUS * count)))
    return points[torch.randperm(len(points))[:count]]


def check_count(available: int, count: int, name: str) -> None:
    """Check that a cloud has as many points as are taken from it.

    Raises:
        UserError: it has fewer.
    """
    if available < count:
        raise UserError(
            f"{name} has {available} points, fewer than data.num_points ({count}); add points to it, or lower that or "
            f"remove it ({START_ANEW})"
        )


def rotate(points: Float[Tensor, "n c"], axis: Axis, channels: Sequence[str] = ()) -> Float[Tensor, "n c"]:
    """Turn by a random angle about an axis; normals and velocities turn with the points."""
    angle = float(torch.rand(())) * 2 * math.pi
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    rotated = points.clone()
    for columns in ([0, 1, 2], vectors(channels, "normal"), vectors(channels, "velocity")):
        if columns is not None:
            first, second = points[:, columns[i]], points[:, columns[j]]
            rotated[:, columns[i]] = math.cos(angle) * first - math.sin(angle) * second
            rotated[:, columns[j]] = math.sin(angle) * first + math.cos(angle) * second
    return rotated


def scale_translate(
    points: Float[Tensor, "n c"],
    scale: tuple[float, float],
    translate: float,
    channels: Sequence[str] = (),
) -> Float[Tensor, "n c"]:
    """Scale and shift every axis by its own random amount.

    Normals stay perpendicular to the surface (they are divided by the factors and keep their length); velocities are
    scaled like distances.
    """
    factor = scale[0] + (scale[1] - scale[0]) * torch.rand(3)
    coordinates = points[:, :3] * factor + translate * (2 * torch.rand(3) - 1)
    if points.shape[1] == 3:
        return coordinates
    result = torch.cat([coordinates, points[:, 3:]], dim=1)
    if (columns := vectors(channels, "velocity")) is not None:
        result[:, columns] = points[:, columns] * factor
    if (columns := vectors(channels, "normal")) is not None:
        length = points[:, columns].norm(dim=1, keepdim=True)
        result[:, columns] = torch.nn.functional.normalize(points[:, columns] / factor, dim=1) * length
    return result


def augment(points: Float[Tensor, "n c"], config: PointDataConfig) -> Float[Tensor, "n c"]:
    """Apply the configured augmentation, drawing from torch's global generator."""
    channels = config.channels or ()
    if config.augmentation in ("rotate", "rotate_scale_translate"):
        points = rotate(points, config.upward, channels)
    if config.augmentation in ("scale_translate", "rotate_scale_translate"):
        points = scale_translate(points, config.scale, config.translate, channels)
    if config.channel_dropout and float(torch.rand(())) < config.channel_dropout:
        points = torch.cat([points[:, :3], torch.zeros_like(points[:, 3:])], dim=1)
    return points
