"""Time and memory of one epoch's order and of the keys of its first 100 steps: ``python benchmarks/epoch_order.py``."""

import argparse
import itertools
import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch
from results_file import save_results

from map_core.runs.summary import peak_memory_bytes
from map_core.training import TrainingConfig
from map_core.training.plan import RunPlan
from map_core.training.sampling import RunSampler

MEGABYTE = 2**20


def main() -> None:
    """Measure each size in a separate process, as memory is the process's peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[1_281_167, 14_200_000], help="of data sets"
    )
    parser.add_argument("--batch", type=int, default=1024, help="of the run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    rows = []
    for _, samples in itertools.product(range(arguments.rounds), arguments.samples):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (samples, arguments.batch)))
        print(rows[-1], flush=True)
    save_results(arguments.out, rows)


def measure(samples: int, batch: int) -> dict[str, Any]:
    """Start an epoch and draw 100 more batches."""
    plan = RunPlan.of(TrainingConfig(batch_size=batch), samples, 1, 0)
    before, start = peak_memory_bytes(torch.device("cpu")), time.perf_counter()
    batches = iter(RunSampler(plan, 0, plan.steps_per_epoch))
    next(batches)
    first, growth = time.perf_counter() - start, peak_memory_bytes(torch.device("cpu")) - before
    start, steps = time.perf_counter(), min(100, plan.steps_per_epoch - 1)
    for _ in itertools.islice(batches, steps):
        pass
    step = (time.perf_counter() - start) / max(steps, 1)
    return {
        "samples": samples,
        "seconds_to_the_first_batch": round(first, 4),
        "megabytes": round(growth / MEGABYTE, 1),
        "milliseconds_a_further_batch": round(1000 * step, 3),
        "batch": batch,
    }


if __name__ == "__main__":
    main()
