"""metrics.jsonl: whole lines only, means that no checkpoint interrupts, and nothing twice."""

import json

import pytest
import torch

from map_core import UserError
from map_core.runs.metrics import MetricsLog, Window, read_metrics, truncate_metrics


def alone(values):
    """The mean over one process."""
    return {name: value.item() for name, value in values.items()}


def line_of(step):
    """A line of metrics."""
    return json.dumps({"kind": "train", "step": step, "epoch": 0.5, "loss": 1.0})


def test_the_last_line_may_be_cut_short(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f"{line_of(1)}\n{line_of(2)}\n{line_of(3)[:5]}")
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "broken",
    [
        '{"ste',
        "[]",
        "3",
        '{"kind": "train"}',
        '{"step": "1", "epoch": 1, "kind": "train"}',
        "[" * 20_000,
        "\x00",
        '{"step": 2, "kind": "train"}',
        '{"step": 2, "epoch": 1, "kind": "train", "loss": "low"}',
    ],
)
def test_no_other_line_may(tmp_path, broken):
    (tmp_path / "metrics.jsonl").write_text(f"{line_of(1)}\n{broken}\n{line_of(3)}\n")
    with pytest.raises(UserError, match=r"metrics.jsonl is broken in line 2 .* repair or remove that line"):
        read_metrics(tmp_path)


def test_a_run_without_lines_has_none(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_number_that_is_not_finite_is_written_as_null(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False, step=0)
    log.write("train", 1, 0.5, {"loss": float("nan"), "lr": 0.1})
    log.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == {"kind": "train", "step": 1, "epoch": 0.5, "loss": None, "lr": 0.1}


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path, evaluated):
    """Of the checkpoint's own step a training line stays, and an evaluation that came before it."""
    lines = [
        {"kind": kind, "step": step, "epoch": step / 2}
        for step in (2, 4, 6)
        for kind in ("train", "evaluation")
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    truncate_metrics(tmp_path, 4, evaluated=evaluated)
    assert read_metrics(tmp_path) == lines[: 4 if evaluated else 3]


@pytest.mark.parametrize("checkpoint_at", [0, 1, 3, 5])
def test_a_window_is_the_mean_of_its_steps_wherever_a_checkpoint_falls(checkpoint_at):
    """Scalars may also come and go: each is averaged over the steps that have it."""
    steps = [{"loss": torch.rand(())} | ({"extra": torch.rand(())} if i % 2 else {}) for i in range(6)]
    window = Window()
    for i, scalars in enumerate(steps):
        if i == checkpoint_at:
            window = Window(**json.loads(json.dumps(window.state(alone))))
        window.add(scalars)
    means = window.take(alone)
    for name in ("loss", "extra"):
        values = [scalars[name].double() for scalars in steps if name in scalars]
        assert means[name] == pytest.approx(torch.stack(values).mean().item(), rel=1e-12)
    assert window.take(alone) == {}
