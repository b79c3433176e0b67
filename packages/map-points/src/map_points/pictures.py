"""Pictures of what a pretrained model reconstructs: cloud, visible patches, reconstruction."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from map_core.objective import ReconstructingObjective
from map_core.runs.pictures import save_picture
from map_core.tasks.pretraining import hide_and_reconstruct
from map_core.tokens import gather_tokens
from map_points.data.config import Axis

COLORS = {"visible": "tab:blue", "predicted": "tab:red"}
CAPTION = "Predicted points stand around the true centres of the hidden patches; nothing else hidden is used."
CELL = 2.1  # distance between the middles of two clouds of radius 1
UP_LAST: dict[str, list[int]] = {"x": [1, 2, 0], "y": [2, 0, 1], "z": [0, 1, 2]}


@dataclass(frozen=True)
class CloudViews:
    """Three views of each cloud, in its own coordinates.

    Attributes:
        cloud: All points.
        visible: Points of the visible patches.
        predicted: Points that the model predicts where the hidden patches are.
    """

    cloud: Float[Tensor, "b n 3"]
    visible: Float[Tensor, "b v 3"]
    predicted: Float[Tensor, "b p 3"]


def reconstruct(
    objective: ReconstructingObjective,
    points: Float[Tensor, "b n c"],
    *,
    ratio: float | None = None,
    seed: int = 0,
) -> CloudViews:
    """Hide patches of clouds and reconstruct them."""
    result = hide_and_reconstruct(objective, points, ratio=ratio, seed=seed)
    tokens, mask = result.tokens, result.mask
    assert tokens.target is not None

    def at_centers(patches: Tensor, index: Tensor) -> Tensor:
        return (patches + gather_tokens(tokens.position, index).unsqueeze(2)).flatten(1, 2)

    predicted = result.prediction.to(points.dtype).unflatten(-1, (-1, 3))
    return CloudViews(
        cloud=points[..., :3],
        visible=at_centers(gather_tokens(tokens.target, mask.keep), mask.keep),
        predicted=at_centers(predicted, result.index),
    )


def draw_reconstructions(
    objective: ReconstructingObjective,
    points: Float[Tensor, "b n c"],
    path: Path,
    *,
    up_axis: Axis = "z",
    ratio: float | None = None,
    seed: int = 0,
) -> None:
    """Write a picture with one row per cloud: cloud, visible patches, reconstruction (predicted points red).

    Args:
        objective: A pretrained objective.
        points: Clouds as the model sees them.
        path: Picture to write, PNG unless its suffix says otherwise.
        up_axis: Axis drawn upright.
        ratio: Share of patches to hide; the objective's when None.
        seed: Chooses the hidden patches.
    """
    device = next(objective.parameters()).device
    views = reconstruct(objective, points.to(device), ratio=ratio, seed=seed)
    save_picture(figure_of(views, up_axis=up_axis), path, dpi=100)


def figure_of(views: CloudViews, *, up_axis: Axis = "z") -> Figure:
    """One row per cloud: cloud, visible patches, reconstruction; legend and caption say what is predicted and where."""
    points_by_name: dict[str, list[np.ndarray]] = {name: [] for name in COLORS}
    num_outside = 0
    for row, cloud in enumerate(views.cloud):
        middle, radius = middle_and_radius(cloud)
        panels = ([cloud], [views.visible[row]], [views.visible[row], views.predicted[row]])
        for column, parts in enumerate(panels):
            for part, name in zip(parts, COLORS, strict=False):
                points = oblique_view((part - middle).cpu().numpy() / radius, up_axis)
                # a model that has learned little predicts points that would lie in other cells
                is_outside = (np.abs(points[:, :2]) > CELL / 2).any(axis=1)
                points[is_outside] = np.nan
                num_outside += int(is_outside.sum())
                points_by_name[name].append(points + np.array([CELL * column, -CELL * row, 0]))
    columns, rows = len(panels), len(views.cloud)
    figure = Figure(figsize=(2.5 * columns, 2.5 * rows + 0.8), layout="constrained")
    left_out = (
        f"\n{num_outside} predicted points lie beyond their cell and are left out." if num_outside else ""
    )
    figure.supxlabel(CAPTION + left_out, fontsize="x-small")
    axis = figure.add_subplot(aspect="equal", xlim=(-1, CELL * columns - 1), ylim=(1 - CELL * rows, 1.3))
    axis.axis("off")
    for name, color in COLORS.items():
        x, y, depth = np.concatenate(points_by_name[name]).T
        shade = np.nan_to_num(np.interp(depth, [-1, 1], [0.3, 1]))  # near points are darker
        axis.scatter(x, y, s=1.5, color=color, alpha=shade, linewidths=0)
    for column, title in enumerate(("cloud", "visible patches", "reconstruction")):
        axis.text(CELL * column, 1.1, title, ha="center", va="bottom", fontsize="large")
    handles = [
        Line2D([], [], linestyle="", marker=".", color=color, label=name) for name, color in COLORS.items()
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure


def middle_and_radius(points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "3"], float]:
    """The middle of a cloud's bounding box, and the distance of the farthest point from it."""
    middle = (points.amax(0) + points.amin(0)) / 2
    return middle, max(float((points - middle).norm(dim=1).max()), 1e-12)


def oblique_view(points: Float[np.ndarray, "n 3"], up_axis: Axis) -> Float[np.ndarray, "n 3"]:
    """Points as seen obliquely from above: how far to the right, up, and towards the viewer."""
    upright = points[:, UP_LAST[up_axis]]
    across, up = np.deg2rad(-60), np.deg2rad(25)
    right = upright[:, 0] * np.cos(across) - upright[:, 1] * np.sin(across)
    away = upright[:, 0] * np.sin(across) + upright[:, 1] * np.cos(across)
    upwards = upright[:, 2] * np.cos(up) - away * np.sin(up)
    return np.stack((right, upwards, away * np.cos(up) + upright[:, 2] * np.sin(up)), axis=1)


def draw_cloud(
    points: Float[Tensor, "n c"], *, up_axis: Axis = "z", side: int = 96
) -> UInt8[np.ndarray, "h w 3"]:
    """A cloud seen obliquely from above, near points darker; drawn without matplotlib, which takes 0.1 s per cloud."""
    xyz = points[:, :3].double()
    middle, radius = middle_and_radius(xyz)
    x, y, depth = oblique_view((xyz - middle).numpy() / radius, up_axis).T
    picture = np.full((side, side, 3), 255, dtype=np.uint8)
    order = np.argsort(depth)  # far points first
    column, line = (
        ((1 + sign * coordinate[order]) / 2 * (side - 3)).astype(int)
        for sign, coordinate in ((1, x), (-1, y))
    )
    shade = np.interp(depth[order], [-1, 1], [0, 1])[:, None]
    colors = ((1 - shade) * (190, 205, 222) + shade * (22, 66, 112)).astype(np.uint8)
    for right in (0, 1, 2):
        for down in (0, 1, 2):
            picture[line + down, column + right] = colors
    return picture
