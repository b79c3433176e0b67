"""curves.png holds every curve of a run."""

import json

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from map_core.runs.plots import plot_curves


@pytest.fixture
def curves(monkeypatch):
    """The plotted epochs and values, by panel and label."""
    curves_by_axis, panels = {}, {}
    plot, title = Axes.plot, Axes.set_title

    def remember_curve(axis, epochs, values, **options):
        curves_by_axis.setdefault(axis, {})[options["label"]] = (list(epochs), list(values))
        return plot(axis, epochs, values, **options)

    def remember_title(axis, name, **options):
        panels[name] = curves_by_axis[axis]
        return title(axis, name, **options)

    monkeypatch.setattr(Axes, "plot", remember_curve)
    monkeypatch.setattr(Axes, "set_title", remember_title)
    return panels


def write(directory, *lines):
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_metric_has_a_panel_shared_with_its_moving_average(tmp_path, curves, curves_drawn):
    write(
        tmp_path,
        {"kind": "train", "step": 1, "epoch": 0.5, "loss": 2.0, "lr": 0.1, "seconds": 3.0},
        {"kind": "train", "step": 2, "epoch": 1.0, "loss": None, "lr": 0.2, "seconds": 4.0},
        {"kind": "evaluation", "step": 2, "epoch": 1.0, "loss": 1.5, "ema_loss": 1.25, "test_accuracy": 50.0},
        {"kind": "train", "step": 3, "epoch": 1.5, "loss": 1.0, "lr": 0.3, "seconds": 5.0},
    )
    with curves_drawn():
        assert plot_curves(tmp_path) == tmp_path / "curves.png"
    assert curves == {
        "loss": {
            "train": ([0.5, 1.5], [2.0, 1.0]),
            "evaluation": ([1.0], [1.5]),
            "evaluation (moving average)": ([1.0], [1.25]),
        },
        "learning rate": {"train": ([0.5, 1.0, 1.5], [0.1, 0.2, 0.3])},
        "test accuracy": {"evaluation": ([1.0], [50.0])},
    }
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert picture.std() > 5, "curves.png is blank"


def test_a_single_value_is_written_beside_its_dot(tmp_path, curves_drawn, monkeypatch):
    """And no axis goes beyond 100 %, or starts after the run's start."""
    annotations = []
    annotate = Axes.annotate
    monkeypatch.setattr(
        Axes,
        "annotate",
        lambda axis, text, *a, **k: (annotations.append((axis, text)), annotate(axis, text, *a, **k)),
    )
    write(tmp_path, {"kind": "evaluation", "step": 9, "epoch": 32.0, "test_accuracy_top5": 98.765})
    with curves_drawn():
        plot_curves(tmp_path)
    ((axis, text),) = annotations
    assert text == "98.77"
    assert (axis.get_xlim()[0], axis.get_ylim()[1]) == (0, 100)


def test_a_run_without_lines_has_no_picture(tmp_path):
    assert plot_curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()
