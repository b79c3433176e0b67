"""Pretraining steps with PyTorch's large blocks on huge pages, and without: ``python benchmarks/huge_pages.py``.

    python benchmarks/huge_pages.py --threads 1 --out runs/huge_pages.json

Commands set ``THP_MEM_ALLOC_ENABLE=1`` (map_core/commands/program.py), which PyTorch reads once in a process. Each
reading therefore comes from a process of its own, and the two settings take turns. A step is that of
``precision.py``, in float32: forward, backward, gradient clipping and AdamW, on random inputs in memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from precision import BATCHES, pretraining_step
from results_file import save_results
from timing import seconds

SWITCH = "THP_MEM_ALLOC_ENABLE"


def main() -> None:
    """Time every recipe, or, as a process of its own, take one reading."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=list(BATCHES), choices=BATCHES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=7, help="steps of a reading, of which the median counts")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--reading", action="store_true", help="print one reading (how the script calls itself)"
    )
    arguments = parser.parse_args()
    if arguments.reading:
        print(json.dumps(read(arguments.recipes[0], arguments.threads, arguments.steps)))
        return
    rows = []
    for recipe in arguments.recipes:
        rows.append(compare(recipe, arguments))
        print(rows[-1], flush=True)
    save_results(arguments.out, rows)


def compare(recipe: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The row of one recipe: milliseconds and page faults of a step, and the median ratio of the rounds."""
    options = ["--reading", "--recipes", recipe, "--threads", arguments.threads, "--steps", arguments.steps]
    rounds = [[reading(options, huge=huge) for huge in (False, True)] for _ in range(arguments.rounds)]
    small, huge = (
        {key: statistics.median(one[key] for one in column) for key in column[0]}
        for column in zip(*rounds, strict=True)
    )
    return {
        "recipe": recipe,
        "batch": BATCHES[recipe],
        "threads": arguments.threads,
        "ms": round(1000 * small["seconds"]),
        "huge pages, ms": round(1000 * huge["seconds"]),
        "ratio": round(statistics.median(a["seconds"] / b["seconds"] for a, b in rounds), 2),
        "page faults": round(small["faults"]),
        "huge pages, page faults": round(huge["faults"]),
        "MB": round(small["MB"]),
        "huge pages, MB": round(huge["MB"]),
    }


def reading(options: list[Any], *, huge: bool) -> dict[str, float]:
    """Start a process that takes one reading."""
    environment = {key: value for key, value in os.environ.items() if key != SWITCH} | (
        {SWITCH: "1"} if huge else {}
    )
    command = [sys.executable, __file__, *map(str, options)]
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout)


def read(recipe: str, threads: int, steps: int) -> dict[str, float]:
    """Seconds and page faults of a step, medians, and the process's peak memory."""
    torch.set_num_threads(threads)
    step = pretraining_step(recipe, "fp32")
    for _ in range(2):
        step()
    times, faults = [], []
    for _ in range(steps):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        times.append(seconds(step))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"seconds": statistics.median(times), "faults": statistics.median(faults), "MB": peak}


if __name__ == "__main__":
    main()
