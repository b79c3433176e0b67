"""Draw docs/images/idea.png: what masked autoregressive pretraining does, in one picture.

python docs/figures/idea.py
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from map_core import Draw, GridRegions, Masking, region_attention_mask
from map_core.testing import toy_tokens

GRID = (4, 4)  # patches of 2 x 2 pixels
ROWS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
OUT = Path(__file__).parents[1] / "images" / "idea.png"


def show_patches(axis: Axes, pixels: np.ndarray, hidden: np.ndarray, upto: int) -> None:
    """Draw the image; hidden patches are grey in rows from ``upto`` on, in their row's colour before."""
    axis.imshow(pixels, cmap="gray_r", vmin=0, vmax=16)
    for place in range(16):
        row, col = divmod(place, 4)
        left, top = 2 * col - 0.5, 2 * row - 0.5
        if hidden[place] and row >= upto:
            axis.add_patch(_square(left, top, facecolor="0.8", edgecolor="white"))
        elif hidden[place]:
            axis.add_patch(
                _square(left, top, facecolor="none", edgecolor=ROWS[row], linewidth=2.5, inset=0.12)
            )
    axis.set_axis_off()


def _square(left: float, top: float, *, inset: float = 0.0, **style: object):  # type: ignore[no-untyped-def]
    from matplotlib.patches import Rectangle

    return Rectangle((left + inset, top + inset), 2 - 2 * inset, 2 - 2 * inset, **style)


def show_mask(axis: Axes, allowed: np.ndarray) -> None:
    """Draw which patches may attend to which, rows of patches in their colours."""
    picture = np.ones((16, 16, 3))
    for query in range(16):
        color = np.array(_rgb(ROWS[query // 4]))
        picture[query, allowed[query]] = 0.35 + 0.65 * color
    axis.imshow(picture)
    for edge in (3.5, 7.5, 11.5):
        axis.axhline(edge, color="white", linewidth=2)
        axis.axvline(edge, color="white", linewidth=2)
    axis.set(xlabel="sees", ylabel="a patch of row 1, 2, 3, 4", xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _rgb(name: str) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    return to_rgb(name)


def main() -> None:
    pixels = load_digits().images[3]
    tokens = toy_tokens(grid=GRID)
    mask = Masking(0.5)(tokens, Draw.of_batch(1, seed=4))
    hidden = mask.hidden[0].numpy()
    regions = GridRegions("row")(tokens)
    allowed = region_attention_mask(regions.index, "map")[0].numpy()

    figure = Figure(figsize=(12.5, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 6, width_ratios=[1, 1, 0.8, 0.8, 0.8, 0.8])
    show_patches(axes[0], pixels, hidden, upto=0)
    axes[0].set_title("1  hide half of the patches;\nthe encoder reads the rest", fontsize=9)
    show_mask(axes[1], allowed)
    axes[1].set_title("2  the decoder: a row sees itself\nand the rows before it", fontsize=9)
    for step in range(1, 5):
        show_patches(axes[1 + step], pixels, hidden, upto=step)
        axes[1 + step].set_title(
            f"row {step}" if step > 1 else "3  predicted (drawn with\nthe true pixels): row 1", fontsize=9
        )
    figure.savefig(OUT, dpi=130)
    print(OUT)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
