"""Draw docs/images/cost.png: what a training pass costs against length, batch and depth, measured and fitted.

python docs/figures/cost.py
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS))
from peers_tables import Row, cost_fit, memory_fit, of_part  # noqa: E402

OUT = DOCS / "images" / "cost.png"
PANELS = {
    "tokens": {"batch": 1, "depth": 8},
    "batch": {"tokens": 196, "depth": 8},
    "depth": {"tokens": 196, "batch": 1},
}
TICKS = (30, 100, 300, 1000, 3000)


def fitted(row: Row) -> tuple[float, float]:
    """Milliseconds and MB of the laws."""
    (fixed, linear, quadratic), _ = cost_fit()
    kilobytes, rest = memory_fit()
    places = row["depth"] * row["batch"]
    time = row["depth"] * fixed + places * (linear * row["tokens"] + quadratic * row["tokens"] ** 2)
    return time, rest + kilobytes * places * row["tokens"] / 1024


def main() -> None:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (what, kept) in zip(figure.subplots(1, 3, sharey=True), PANELS.items(), strict=True):
        rows = sorted(of_part("cost", **kept), key=lambda row: row[what])
        at = [row[what] for row in rows]
        dense = np.geomspace(at[0], at[-1], 100)
        laws = [fitted({**kept, what: value}) for value in dense]
        axes.plot(at, [row["ms"] for row in rows], "o", color="tab:blue", label="time, ms")
        axes.plot(dense, [law[0] for law in laws], color="tab:blue", linewidth=1)
        axes.plot(at, [row["MB"] for row in rows], "s", color="tab:orange", label="memory, MB")
        axes.plot(dense, [law[1] for law in laws], color="tab:orange", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_yticks(TICKS, [f"{value:,}" for value in TICKS])
        axes.set_xticks(at, [str(value) for value in at], rotation=45 if what == "tokens" else 0)
        axes.set(xlabel=what, title=", ".join(f"{key} {value}" for key, value in kept.items()))
        axes.grid(True, alpha=0.3)
        axes.minorticks_off()
    figure.axes[0].legend()
    figure.savefig(OUT, dpi=120)


if __name__ == "__main__":
    main()
