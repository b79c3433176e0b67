"""Pretraining steps in bf16 against float32, alternating in one process: ``python benchmarks/precision.py``.

    python benchmarks/precision.py --threads 1 2 --out runs/precision.json

The models are those of packaged recipes, their inputs random numbers in memory. A step is forward, backward, gradient
clipping and AdamW; the ratio is the median of the ratios of all rounds. "Of products alone" compares the float32 step
with the rate at which as many threads multiply matrices in cache, with the faster of MKL and oneDNN. The operations of
a step are those of products, scans, convolutions and attention, forward and backward.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pretrain_step import make_step
from results_file import save_results
from timing import seconds
from torch.utils.flop_counter import FlopCounterMode

import map_points.domain
import map_points.pretraining
import map_vision.domain
import map_vision.factory
import map_vision.pretraining
from map_core import Draw
from map_core.commands.parser import load_recipe
from map_core.commands.standard import configs
from map_core.ops.attention.flops import ON_A_CPU
from map_core.ops.linear.rates import measured_rates

BATCHES = {"pretrain_tiny_in1k": 8, "pretrain_cifar10": 128, "pretrain_modelnet40_cpu": 64}
PRECISIONS = ("fp32", "bf16")


def main() -> None:
    """Time every recipe with every number of threads."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=list(BATCHES), choices=BATCHES)
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = []
    for recipe in arguments.recipes:
        for threads in arguments.threads:
            rows.append(measure_row(recipe, threads, arguments.rounds))
            print(rows[-1], flush=True)
    save_results(arguments.out, rows)


def measure_row(recipe: str, threads: int, rounds: int) -> dict[str, Any]:
    """The row of one recipe: milliseconds a step in both precisions, and their ratio."""
    torch.set_num_threads(threads)
    steps = [pretraining_step(recipe, precision) for precision in PRECISIONS]
    operations = count_operations(steps[0])
    for step in steps * 2:
        step()
    times = [[seconds(step) for step in steps] for _ in range(rounds)]
    float32_seconds, bf16_seconds = (statistics.median(column) for column in zip(*times, strict=True))
    rates = measured_rates()  # with as many threads
    limit = max(rates.onednn, rates.torch)
    return {
        "recipe": recipe,
        "batch": BATCHES[recipe],
        "threads": threads,
        "float32, ms": round(1000 * float32_seconds),
        "bf16, ms": round(1000 * bf16_seconds),
        "bf16, samples/s": round(BATCHES[recipe] / bf16_seconds, 1),
        "ratio": round(statistics.median(a / b for a, b in times), 2),
        "float32, GFLOP/s": round(operations / float32_seconds / 1e9),
        "products alone, GFLOP/s": round(limit),
        "of products alone, %": round(100 * operations / float32_seconds / 1e9 / limit),
    }


def count_operations(step: Callable[[], None]) -> int:
    """Floating-point operations of one step: two for each multiply-add."""
    with FlopCounterMode(display=False, custom_mapping=ON_A_CPU) as counter:
        step()
    return counter.get_total_flops()


def pretraining_step(recipe: str, precision: str) -> Callable[[], None]:
    """One step of a recipe's model."""
    points = "modelnet40" in recipe
    package = map_points if points else map_vision
    config = load_recipe(package.domain.DOMAIN.recipes, recipe, configs(package.domain.DOMAIN).pretrain, [])
    torch.manual_seed(0)
    backbone = package.domain.DOMAIN.models.create_backbone(config.model)
    objective = package.pretraining.build_objective(backbone, config.objective)
    size = (1024, 3) if points else map_vision.factory.input_size(config.model)
    samples = torch.rand(BATCHES[recipe], *size)
    draw = Draw.of_batch(len(samples))
    return make_step(
        "pretrain", objective, lambda model: model(samples, draw).loss, precision, samples.device
    )


if __name__ == "__main__":
    main()
