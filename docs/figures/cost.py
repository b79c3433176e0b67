"""Draw docs/images/cost.png: cost of a training pass against length, batch and depth, measured and fitted.

python docs/figures/cost.py
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS))
from peers_tables import Row, cost_fit, memory_fit, select_rows  # noqa: E402

OUT = DOCS / "images" / "cost.png"
PANELS = {
    "tokens": {"batch": 1, "depth": 8},
    "batch": {"tokens": 196, "depth": 8},
    "depth": {"tokens": 196, "batch": 1},
}
TICKS = (30, 100, 300, 1000, 3000)


def predict(row: Row) -> tuple[float, float]:
    """Milliseconds and MB according to the fitted laws."""
    (fixed, linear, quadratic), _ = cost_fit()
    kilobytes, constant = memory_fit()
    blocks = row["depth"] * row["batch"]
    time = row["depth"] * fixed + blocks * (linear * row["tokens"] + quadratic * row["tokens"] ** 2)
    return time, constant + kilobytes * blocks * row["tokens"] / 1024


def main() -> None:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (variable, fixed) in zip(figure.subplots(1, 3, sharey=True), PANELS.items(), strict=True):
        rows = sorted(select_rows("cost", **fixed), key=lambda row: row[variable])
        sizes = [row[variable] for row in rows]
        dense = np.geomspace(sizes[0], sizes[-1], 100)
        predictions = [predict({**fixed, variable: value}) for value in dense]
        axes.plot(sizes, [row["ms"] for row in rows], "o", color="tab:blue", label="time, ms")
        axes.plot(dense, [prediction[0] for prediction in predictions], color="tab:blue", linewidth=1)
        axes.plot(sizes, [row["MB"] for row in rows], "s", color="tab:orange", label="memory, MB")
        axes.plot(dense, [prediction[1] for prediction in predictions], color="tab:orange", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_yticks(TICKS, [f"{value:,}" for value in TICKS])
        axes.set_xticks(sizes, [str(value) for value in sizes], rotation=45 if variable == "tokens" else 0)
        axes.set(xlabel=variable, title=", ".join(f"{key} {value}" for key, value in fixed.items()))
        axes.grid(True, alpha=0.3)
        axes.minorticks_off()
    figure.axes[0].legend()
    figure.savefig(OUT, dpi=120)


if __name__ == "__main__":
    main()
