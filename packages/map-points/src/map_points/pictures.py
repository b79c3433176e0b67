"""Pictures of what a pretrained model reconstructs: cloud, visible patches, reconstruction."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from torch import Tensor

from map_core.objective import ReconstructingObjective
from map_core.runs.pictures import save_picture
from map_core.tasks.pretraining import hide_and_reconstruct
from map_core.tokens import gather_tokens
from map_points.data.config import Axis

COLORS = {"visible": "tab:blue", "predicted": "tab:red"}
CAPTION = "Predicted points stand around the true centres of the hidden patches; nothing else hidden is used."
UP_LAST: dict[str, list[int]] = {"x": [1, 2, 0], "y": [2, 0, 1], "z": [0, 1, 2]}


@dataclass(frozen=True)
class CloudViews:
    """Three views of each cloud, in its own coordinates.

    Attributes:
        cloud: All points.
        visible: Points of the visible patches.
        predicted: Points that the model puts where the hidden patches are.
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

    def placed(patches: Tensor, index: Tensor) -> Tensor:
        return (patches + gather_tokens(tokens.position, index).unsqueeze(2)).flatten(1, 2)

    predicted = result.prediction.to(points.dtype).unflatten(-1, (-1, 3))
    return CloudViews(
        cloud=points[..., :3],
        visible=placed(gather_tokens(tokens.target, mask.keep), mask.keep),
        predicted=placed(predicted, result.index),
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
    """Write a picture with one row a cloud: cloud, visible patches, reconstruction (predicted points red).

    Args:
        objective: A pretrained objective.
        points: Clouds as the model sees them.
        path: Picture to write, PNG unless its ending says otherwise.
        up_axis: Axis drawn upright.
        ratio: Share to hide; the objective's own when None.
        seed: Chooses the hidden patches.
    """
    device = next(objective.parameters()).device
    views = reconstruct(objective, points.to(device), ratio=ratio, seed=seed)
    save_picture(figure_of(views, up_axis=up_axis), path, dpi=100)


def figure_of(views: CloudViews, *, up_axis: Axis = "z") -> Figure:
    """A row a cloud: cloud, visible patches, reconstruction; legend and caption say what is predicted, and where."""
    turn = UP_LAST[up_axis]
    cloud, visible, predicted = (
        view.cpu().numpy()[..., turn] for view in (views.cloud, views.visible, views.predicted)
    )
    figure = Figure(figsize=(7.5, 2.5 * len(cloud) + 0.8), layout="constrained")
    figure.supxlabel(CAPTION, fontsize="x-small")
    axes = figure.subplots(len(cloud), 3, squeeze=False, subplot_kw={"projection": "3d"})
    for title, axis in zip(("cloud", "visible patches", "reconstruction"), axes[0], strict=True):
        axis.set_title(title)
    for row, cells in enumerate(axes):
        middle = (cloud[row].max(axis=0) + cloud[row].min(axis=0)) / 2
        half = float((cloud[row].max(axis=0) - cloud[row].min(axis=0)).max()) / 2
        for cell, parts in zip(cells, ([cloud], [visible], [visible, predicted]), strict=True):
            for part, (name, color) in zip(parts, COLORS.items(), strict=False):
                xyz: np.ndarray = part[row]
                cell.scatter(xyz[:, 0], xyz[:, 1], xyz[:, 2], s=1.5, c=color, linewidths=0, label=name)
            for axis, limit in zip("xyz", middle, strict=True):
                getattr(cell, f"set_{axis}lim")(limit - half, limit + half)
            cell.set_box_aspect((1, 1, 1), zoom=1.5)
            cell.set_axis_off()
    figure.legend(*axes[0, -1].get_legend_handles_labels(), loc="outside upper right", ncols=2, markerscale=4)
    return figure


def draw_cloud(
    points: Float[Tensor, "n 3"], *, up_axis: Axis = "z", side: int = 96
) -> UInt8[np.ndarray, "h w 3"]:
    """A cloud seen obliquely from above, near points darker; drawn without matplotlib, which takes 0.1 s a cloud."""
    turned = points.double().numpy()[:, UP_LAST[up_axis]]
    turned = turned - (turned.max(axis=0) + turned.min(axis=0)) / 2
    turned = turned / max(np.linalg.norm(turned, axis=1).max(), 1e-12)
    across, up = np.deg2rad(-60), np.deg2rad(25)
    x = turned[:, 0] * np.cos(across) - turned[:, 1] * np.sin(across)
    away = turned[:, 0] * np.sin(across) + turned[:, 1] * np.cos(across)
    y = turned[:, 2] * np.cos(up) - away * np.sin(up)
    depth = away * np.cos(up) + turned[:, 2] * np.sin(up)
    picture = np.full((side, side, 3), 255, dtype=np.uint8)
    order = np.argsort(depth)  # the far ones first
    column, line = (
        ((1 + sign * place[order]) / 2 * (side - 3)).astype(int) for sign, place in ((1, x), (-1, y))
    )
    shade = np.interp(depth[order], [-1, 1], [0, 1])[:, None]
    colors = ((1 - shade) * (190, 205, 222) + shade * (22, 66, 112)).astype(np.uint8)
    for right in (0, 1, 2):
        for down in (0, 1, 2):
            picture[line + down, column + right] = colors
    return picture
