"""Draw docs/images/evidence.png: what pretraining gained in the studies that ask whether it pays, arm by arm.

Those of the paper's tables compare ways of pretraining, share their runs with these or lack an arm from scratch for the
whole compute; they are left out, as is ``digits_labels``, which tried one learning rate.

python docs/figures/evidence.py
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS))
from tables import load_study  # noqa: E402

from map_core.study.definition import Arm  # noqa: E402
from map_core.study.report import is_pretrained, scores  # noqa: E402
from map_core.study.results import Result  # noqa: E402
from map_core.study.statistics import Estimate, estimate  # noqa: E402

OUT = DOCS / "images" / "evidence.png"
PANELS = {
    "same": "gain over scratch, same finetuning",
    "whole": "gain over scratch for the whole compute",
}
BLUE, RED, GREY = "tab:blue", "tab:red", "0.55"


class Group(NamedTuple):
    """The arms of a study that are compared with each other.

    Attributes:
        study: Its name.
        title: What was pretrained on and finetuned with.
        labels: Number of labels.
        same, whole: Names of the arms from scratch: with the same finetuning, and with the whole compute.
        stage: What is measured.
        model: Beginning of the names of its arms, which have several models.
    """

    study: str
    title: str
    labels: int | None
    same: str = "from scratch"
    whole: str = "from scratch, equal compute"
    stage: str = "finetune"
    model: str = ""


HYBRID = {"same": "hybrid, from scratch", "whole": "hybrid, from scratch, equal compute", "model": "hybrid, "}
MAMBA = {"same": "Mamba3D, from scratch", "model": "Mamba3D, "}
GROUPS = (
    Group("cifar10_all_images", "CIFAR-10, 50,000 images for 6 epochs;\n1,000 labels for 16 epochs", 1000),
    Group("cifar10_nano", "CIFAR-10, 50,000 images for 9.3 epochs,\nonce; 1,000 labels for 16 epochs", 1000),
    Group("cifar10_longer", "CIFAR-10, 10,000 images for 6 epochs;\n1,000 labels for 60 epochs", 1000),
    Group("cifar10_table6", "CIFAR-10, 10,000 images for 6 epochs;\n1,000 labels for 10 epochs", 1000),
    Group("digits_compute", "digits for 24 epochs; 50 labels", 50),
    Group("digits_compute", "digits for 24 epochs; 200 labels", 200),
    Group("modelnet40_pretraining", "ModelNet40 for 12 epochs;\n98 labels for 100 epochs", 98, **HYBRID),
    Group("modelnet40_pretraining", "the same, Mamba alone", 98, **MAMBA),
    Group("modelnet40_longer", "ModelNet40, one pretraining of each\nlength; 98 labels for 100 epochs", 98),
    Group("modelnet40_long_finetuning", "the same; 98 labels for 1,323 epochs", 98),
    Group("camvid_pretraining", "CamVid, 36 scenes, one pretraining; mIoU", None, stage="segment"),
)  # fmt: skip


def gain(results: Sequence[Result], group: Group, arm: Arm, baseline: str) -> Estimate | None:
    """The paired difference of two arms over seeds, in points; None where fewer than two seeds have both."""
    ours, theirs = (scores(results, name, group.stage, group.labels) for name in (arm.name, baseline))
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return estimate(differences) if len(differences) > 1 else None


def draw(axes: Axes, row: float, difference: Estimate) -> None:
    """Draw a difference and its 95 % interval, in grey where that contains 0."""
    is_apart = abs(difference.mean) > difference.half_width
    color = (BLUE if difference.mean > 0 else RED) if is_apart else GREY
    axes.errorbar(
        difference.mean, row, xerr=difference.half_width, fmt="o", color=color, markersize=5, capsize=2.5
    )


def main() -> None:
    rows: list[tuple[float, str]] = []
    headings: list[tuple[float, str]] = []
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = dict(zip(PANELS, figure.subplots(1, 2, sharex=True, sharey=True), strict=True))
    y = 0.0
    for group in GROUPS:
        study, results, _ = load_study(group.study)
        headings.append((y, group.title))
        for arm in study.arms:
            if not (is_pretrained(arm) and arm.name.startswith(group.model)):
                continue
            differences = {key: gain(results, group, arm, getattr(group, key)) for key in PANELS}
            if not any(differences.values()):
                continue
            for key, difference in differences.items():
                if difference is not None:
                    draw(panels[key], y, difference)
            rows.append((y, arm.name.removeprefix(group.model)))
            y += 1
        y += 0.9
    for key, axes in panels.items():
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(PANELS[key], loc="left", fontsize=11)
        axes.set_xlabel("points, with 95 % intervals; grey: not told apart")
        axes.grid(True, axis="x", alpha=0.25)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    left = panels["same"]
    left.set_yticks([place for place, _ in rows], [name for _, name in rows])
    left.set_ylim(y - 0.4, -0.9)
    for place, title in headings:
        left.text(
            -0.38, place, title, transform=left.get_yaxis_transform(), ha="right", va="center", fontsize=9
        )
    figure.savefig(OUT, dpi=120)


if __name__ == "__main__":
    main()
