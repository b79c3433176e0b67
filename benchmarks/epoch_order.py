"""Time and memory of one epoch's order and of the keys of its first 100 steps: ``python benchmarks/epoch_order.py``."""

import argparse
import itertools
import resource
import time

from map_core.training import TrainingConfig
from map_core.training.sampling import RunPlan, RunSampler

MEGABYTE = 2**20


def main() -> None:
    """Print one line: run it once a size, as memory is the process's peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_281_167, help="of the data set")
    parser.add_argument("--batch", type=int, default=1024, help="of the run")
    arguments = parser.parse_args()
    plan = RunPlan.of(TrainingConfig(batch_size=arguments.batch), arguments.samples, 1, 0)
    before, start = peak(), time.perf_counter()
    batches = iter(RunSampler(plan, 0, plan.steps_per_epoch))
    next(batches)
    first, grown = time.perf_counter() - start, peak() - before
    start, steps = time.perf_counter(), min(100, plan.steps_per_epoch - 1)
    for _ in itertools.islice(batches, steps):
        pass
    step = (time.perf_counter() - start) / max(steps, 1)
    print(
        f"{arguments.samples} samples: {first:.3f} s to the first batch, {grown / MEGABYTE:.0f} MB, "
        f"{1000 * step:.2f} ms a further batch of {arguments.batch}"
    )


def peak() -> int:
    """The most memory that this process has held, in bytes (Linux)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
