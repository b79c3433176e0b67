"""Long runs that must not grow, and short runs that are disturbed at random until they finish.

    python tests/soak/soak.py --minutes 60 --kills 100

Runs on images, on clouds, and on images in two processes train from files, with evaluations, checkpoints and loading
processes. A disturbed run is killed (SIGKILL) or warned (SIGTERM), loses one of two ranks, has a rank stopped, or has a
data file missing or truncated for a while; it is started again by the same command and must end with the metrics and
weights of the undisturbed run, bit for bit. Prints counts as JSON; the first broken promise ends the program with
status 1 and leaves its folder.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from disturbances import BrokenPromise, attack
from runs import Kind, prepare_kinds, run_undisturbed
from steady import find_growth, train_for, work_done

KILLING = ("kill", "kill_one", "stop_one")


def disturb(
    runs: list[Kind], folder: Path, kills: int, seed: int, deadline: float
) -> dict[str, dict[str, int]]:
    """Attack runs of all kinds in turn, up to ``kills`` kills or until ``deadline``.

    Raises:
        BrokenPromise: a run did not respond as it must.
    """
    draw = random.Random(seed)
    counts: dict[str, Counter[str]] = {kind.name: Counter() for kind in runs}
    seconds: dict[str, float] = {}
    for kind in runs:
        seconds[kind.name] = run_undisturbed(
            kind, folder / f"{kind.name}_whole", folder / f"{kind.name}_whole.log"
        )
    number = 0
    while count_kills(counts) < kills and time.monotonic() < deadline:
        kind = runs[number % len(runs)]
        out = folder / f"{kind.name}_{number}"
        attack(kind, out, folder / f"{kind.name}_whole", seconds[kind.name], draw, counts[kind.name])
        counts[kind.name]["runs"] += 1
        shutil.rmtree(out)
        number += 1
        print(f"{number} runs, {count_kills(counts)} kills", file=sys.stderr, flush=True)
    return {name: dict(sorted(count.items())) for name, count in counts.items()}


def count_kills(counts: dict[str, Counter[str]]) -> int:
    """How often a rank or a whole run was killed or stopped."""
    return sum(count[name] for count in counts.values() for name in KILLING)


def stay_steady(runs: list[Kind], folder: Path, minutes: float) -> dict[str, dict[str, Any]]:
    """Train single-process runs for ``minutes`` in total.

    Raises:
        BrokenPromise: one of them grew.
    """
    report = {}
    single = [kind for kind in runs if kind.ranks == 1]
    for kind in single:
        seconds, out = minutes * 60 / len(single), folder / f"{kind.name}_long"
        sizes = train_for(kind, seconds, out, every=min(1.0, seconds / 80))
        with out.with_suffix(".sizes.jsonl").open("w") as file:
            file.writelines(json.dumps(asdict(size)) + "\n" for size in sizes)
        if growth := find_growth(sizes):
            raise BrokenPromise(f"{kind.name}: {'; '.join(growth)}; see {out.with_suffix('.sizes.jsonl')}")
        first, last = asdict(sizes[len(sizes) // 4]), asdict(sizes[-1])
        report[kind.name] = {"seconds": round(seconds), **work_done(out), "early": first, "late": last}
        print(f"{kind.name} is steady: {report[kind.name]}", file=sys.stderr, flush=True)
    return report


def main() -> int:
    """Run the tests that the arguments select."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of the long runs, together")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=["images", "points", "ranks"])
    parser.add_argument("--at_most", type=float, default=float("inf"), help="minutes of the disturbed runs")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak_"))
    runs = [kind for kind in prepare_kinds(folder) if kind.name in options.kinds]
    try:
        deadline = time.monotonic() + 60 * options.at_most
        counts = disturb(runs, folder, options.kills, options.seed, deadline) if options.kills else {}
        steady = stay_steady(runs, folder, options.minutes) if options.minutes else {}
    except BrokenPromise as fault:
        print(f"broken promise: {fault}; seed {options.seed}, folder {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    print(json.dumps({"disturbed": counts, "steady": steady}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
