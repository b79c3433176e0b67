"""The first losses and gradient norms of small runs, written by this program and compared by ``test_golden.py``.

    python tests/golden_curves.py            compare with tests/golden_curves.json, to the last bit
    python tests/golden_curves.py --write    replace that file: only if numerics were meant to change

One thread, float32 and the plain ``torch`` implementation of every op, so that the numbers hold on any processor, up
to the rounding of its matrix products.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import map_points.cli
import map_vision.cli
from map_core.ops.registry import Registry

FILE = Path(__file__).with_suffix(".json")
STEPS = 20
COMMANDS = {"map-vision": map_vision.cli.main, "map-points": map_points.cli.main}
RUNS = {
    "pretrain_digits": ("map-vision", "pretrain"),
    "finetune_digits": ("map-vision", "finetune"),
    "pretrain_shapes": ("map-points", "pretrain"),
    "finetune_shapes": ("map-points", "finetune"),
}
NAMES = (*RUNS, "dense")


@dataclass(frozen=True)
class Curve:
    """Loss and total gradient norm at each step."""

    loss: list[float]
    grad_norm: list[float]


@contextlib.contextmanager
def plain_pytorch() -> Iterator[None]:
    """One thread and the implementation called ``torch`` of every op."""
    threads, choose = torch.get_num_threads(), Registry.choose
    torch.set_num_threads(1)
    Registry.choose = lambda self, *request: "torch"  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        Registry.choose = choose  # type: ignore[method-assign]


def curve(name: str, folder: Path, steps: int = STEPS) -> Curve:
    """Run ``name`` for its first steps, in ``folder``."""
    with plain_pytorch():
        return dense_curve() if name == "dense" else command_curve(name, folder, steps)


def command_curve(recipe: str, folder: Path, steps: int, *extra: str) -> Curve:
    """The first steps of a packaged recipe, run by its command; ``extra`` are further options."""
    program, command = RUNS[recipe]
    out = folder / recipe
    arguments = [program, command, "--config", recipe, "--out", str(out), "--training.max_steps", str(steps)]
    arguments += ["--training.log_steps", "1", "--training.tensorboard", "false"]
    arguments += ["--training.progress", "false", *extra]
    saved_argv, sys.argv = sys.argv, arguments
    try:
        assert COMMANDS[program]() == 0
    finally:
        sys.argv = saved_argv
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["kind"] == "train"]
    return Curve([line["loss"] for line in train_lines], [line["grad_norm"] for line in train_lines])


def dense_curve(steps: int = 3) -> Curve:
    """A few steps of a small UperNet on random images and labels."""
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    import map_dense.mmseg  # noqa: F401  (registers; OpenMMLab takes seconds to import)
    from map_dense import catalogue

    torch.manual_seed(0)
    config = catalogue.read_config(catalogue.config_path("upernet_hybridnet-mini_cpu_camvid"))
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses, norms = [], []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(2, 3, 96, 96, generator=generator)
        labels = torch.randint(0, 11, (2, 1, 96, 96), generator=generator)
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
        torch.manual_seed(step)
        terms = model.loss(images, samples)
        loss = sum(value.mean() for key, value in terms.items() if "loss" in key)
        optimizer.zero_grad()
        loss.backward()
        norms.append(
            torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
        )
        optimizer.step()
        losses.append(loss.item())
    return Curve(losses, norms)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("names", nargs="*", default=list(NAMES))
    arguments = parser.parse_args()
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        curves = {name: vars(curve(name, Path(folder))) for name in arguments.names}
    if arguments.write:
        FILE.write_text(json.dumps(recorded | curves, indent=1) + "\n")
        return 0
    for name in curves:
        print(f"{name}: {'equal' if curves[name] == recorded[name] else 'DIFFERS'}")
    return int(any(curves[name] != recorded[name] for name in curves))


if __name__ == "__main__":
    sys.exit(main())
