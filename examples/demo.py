"""The whole path on real images: pretrain, finetune, evaluate, and the same finetuning from scratch beside it.

`make demo` runs it on the 8 x 8 digits that come with scikit-learn. It leaves pictures, curves and summary.json in
the output folder:

    pretrain/reconstructions.png   original, masked, reconstruction
    pretrain/curves.png            loss, learning rate, gradient norm
    comparison.png                 test accuracy while finetuning, pretrained and from scratch
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from map_vision.commands import EvaluateConfig, evaluate
from map_vision.evaluation import EvaluationConfig
from matplotlib.figure import Figure

from map_core.commands.parser import load_recipe
from map_core.errors import UserError
from map_core.runs.metrics import read_metrics
from map_core.runs.summary import commit, device_name, versions, write_summary
from map_core.tasks.evaluation import choose_device
from map_core.training import train
from map_vision.data import DataConfig
from map_vision.finetuning import FinetuneConfig, FinetuneTask
from map_vision.pretraining import PretrainConfig, PretrainTask

RECIPES = "map_vision.recipes"
PARTS = ("pretrain", "finetune", "scratch", "evaluate_finetune", "evaluate_scratch")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--steps", type=int, help="stop every part after so many steps, for trying out")
    arguments = parser.parse_args()
    out: Path = arguments.out
    for part in PARTS:  # what an earlier demo left
        shutil.rmtree(out / part, ignore_errors=True)
    limit = [f"--training.max_steps={arguments.steps}"] if arguments.steps else []
    start = time.perf_counter()

    print("\n1/4  pretrain: half of the patches are hidden and reconstructed, row by row")
    pretrain(out / "pretrain", limit)
    print("\n2/4  finetune the pretrained encoder on labelled digits")
    finetune(out / "finetune", limit, init=out / "pretrain")
    print("\n3/4  the same finetuning from scratch")
    finetune(out / "scratch", limit, init=None)
    training_seconds = time.perf_counter() - start
    print("\n4/4  evaluate the saved weights")
    accuracy = {name: accuracy_of(out, name) for name in ("finetune", "scratch")}

    plot_comparison(out)
    summary = {
        "task": "demo",
        "test_accuracy_pretrained": accuracy["finetune"],
        "test_accuracy_scratch": accuracy["scratch"],
        "seconds": training_seconds,
        "device": device_name(choose_device("auto")),
        "versions": versions(),
        "commit": commit(),
    }
    write_summary(out, summary)
    print_table(out, summary)
    return 0


def pretrain(out: Path, overrides: list[str]) -> None:
    config = load_recipe(RECIPES, "pretrain_digits", PretrainConfig, [*overrides, f"--out={out}"])
    train(PretrainTask(config), config.training, out, run_config=config)


def finetune(out: Path, overrides: list[str], init: Path | None) -> None:
    start = [f"--init={init}"] if init else []
    config = load_recipe(RECIPES, "finetune_digits", FinetuneConfig, [*overrides, *start, f"--out={out}"])
    train(FinetuneTask(config), config.training, out, run_config=config)


def accuracy_of(out: Path, name: str) -> float:
    """Accuracy of a run's exported weights on the test split, in percent."""
    evaluate(
        EvaluateConfig(
            init=str(out / name),
            data=DataConfig(source="digits"),
            evaluation=EvaluationConfig(workers=0, progress=False),
            out=str(out / f"evaluate_{name}"),
        )
    )
    return json.loads((out / f"evaluate_{name}" / "summary.json").read_text())["test_accuracy"]


def plot_comparison(out: Path) -> None:
    """Draw both accuracy curves into comparison.png."""
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    for name, label in (("finetune", "pretrained"), ("scratch", "from scratch")):
        lines = [line for line in read_metrics(out / name) if "test_accuracy" in line]
        axis.plot(
            [line["epoch"] for line in lines], [line["test_accuracy"] for line in lines], "o-", label=label
        )
    axis.set(xlabel="epoch of finetuning", ylabel="test accuracy (%)", title="digits, 359 test images")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(out / "comparison.png", dpi=120)


def print_table(out: Path, summary: dict[str, float]) -> None:
    print("\n                 test accuracy")
    print(f"  pretrained     {summary['test_accuracy_pretrained']:6.2f} %")
    print(f"  from scratch   {summary['test_accuracy_scratch']:6.2f} %")
    print(f"  training took  {summary['seconds']:6.0f} s on {summary['device']}")
    print(f"\nlook at {out}/pretrain/reconstructions.png, {out}/pretrain/curves.png and {out}/comparison.png")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"demo: error: {error}")
