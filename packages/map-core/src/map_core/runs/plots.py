"""curves.png: how a run went, at a glance."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from map_core.runs.metrics import read_metrics
from map_core.runs.pictures import save_picture

NOT_PLOTTED = {"kind", "step", "epoch", "seconds", "samples_per_second"}
FIRST = ("loss", "lr", "grad_norm")
COLUMNS = 3


def plot_curves(directory: Path) -> Path | None:
    """Plot every metric of ``directory``'s metrics.jsonl over epochs; return the picture's path, if any.

    A metric and that of the moving average (``ema_...``), in training and evaluation, share a panel.
    """
    panels: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for line in read_metrics(directory):
        for name, value in line.items():
            if name not in NOT_PLOTTED and value is not None:
                panels[name.removeprefix("ema_")][label(line, name)].append((line["epoch"], value))
    if not panels:
        return None
    names = sorted(panels, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(axes, names, strict=False):
        draw(axis, name, panels[name])
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    save_picture(figure, directory / "curves.png", dpi=120)
    return directory / "curves.png"


def label(line: dict[str, Any], name: str) -> str:
    """Name a curve."""
    return line["kind"] + (" (moving average)" if name.startswith("ema_") else "")


def draw(axis: Axes, name: str, curves: dict[str, list[tuple[float, float]]]) -> None:
    """Draw the curves of one metric."""
    for kind, points in curves.items():
        marker = "o" if kind.startswith("evaluation") or len(points) == 1 else None
        epochs, values = zip(*points, strict=True)
        axis.plot(epochs, values, marker=marker, markersize=3, linewidth=1.4, label=kind)
        if len(points) == 1:
            axis.annotate(
                f"{values[0]:.4g}",
                points[0],
                xytext=(-4, 6),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
    axis.set_xlim(left=0)
    if "accuracy" in name:  # in percent
        axis.set_ylim(top=min(100.0, axis.get_ylim()[1]))
    axis.set_title(
        {"lr": "learning rate", "grad_norm": "gradient norm"}.get(name, name.replace("_", " ")), fontsize=10
    )
    axis.set_xlabel("epoch", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axis.legend(fontsize=8, frameon=False)
