"""Blocks, whole models, inference and commands on one CPU core, ours against those of other projects.

    pip install --no-deps --target FOLDER mambapy transformers tokenizers regex
    taskset -c 0 python benchmarks/peers.py --peers FOLDER --out runs/peers.json

Every case runs in a separate process, forked after everything was imported: a pass that warms up and measures memory,
then at least five more, alternating between the contenders of a size. A pass that takes longer than 10 s is not
repeated. Peers are not in any list of dependencies; without ``--peers`` they fail. The file is written after every
size, and the same command continues where it stopped; ``--seconds`` limits one session, for a machine that is only
quiet for minutes. docs/lab/peers.json is such a file: ``python docs/tables.py`` writes tables of docs/performance.md
from it, and docs/figures/cost.py draws it.
"""

import argparse
import datetime
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a forked child has no threads

import torch
from cpu.cases import PARTS, Case, groups, quick
from cpu.contenders import use_peers
from cpu.measuring import CAP, Row, measure

from map_core.cpu import cpu_name
from map_core.runs.files import save_json
from map_core.runs.summary import commit, versions

PEERS = ("mambapy", "transformers")


def metadata(core: str, cap: float, *, quick: bool) -> dict[str, Any]:
    """The facts that all cases of a file share."""
    return {
        "date": str(datetime.date.today()),
        "processor": cpu_name(),
        "core": core,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cap_s": cap,
        "quick": quick,
        "commits": [commit()],
        "versions": versions(*PEERS),
        "command": "taskset -c 0 python benchmarks/peers.py --peers FOLDER",
    }


def expected_over(case: Case, rows: list[Row], cap: float) -> bool:
    """Whether a case will exceed ``cap`` seconds, judging by fewer tokens and a cost that grows at least linearly."""
    same = {key: value for key, value in asdict(case).items() if key not in ("tokens", "batch")}
    shorter = [row for row in rows if same.items() <= row.items() and row["tokens"] < case.tokens]
    if case.part == "commands" or not shorter:
        return False
    row = max(shorter, key=lambda row: row["tokens"])
    scale = case.tokens * case.batch / (row["tokens"] * row["batch"])
    return scale >= 1 and ("over" in row or row.get("ms", 0.0) * scale > 1e3 * cap)


def read_results(path: Path, current: dict[str, Any]) -> dict[str, Any]:
    """The results so far.

    Raises:
        SystemExit: the file was begun on another machine, with other versions or with other options.
    """
    if not path.exists():
        return {**current, "cases": []}
    results = {"quick": False} | json.loads(path.read_text())
    for key in ("processor", "core", "isa", "threads", "cap_s", "quick", "versions"):
        if results[key] != current[key]:
            raise SystemExit(f"{path} has {key} {results[key]}, now it is {current[key]}: name another --out")
    results["commits"] += [commit for commit in current["commits"] if commit not in results["commits"]]
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/peers.json"))
    parser.add_argument("--peers", type=Path, help="folder that peers were installed in")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--tokens", type=int, nargs="+", help="cases of these lengths only")
    parser.add_argument("--cap", type=float, default=CAP, help="seconds per pass: longer ones are run once")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after so long")
    parser.add_argument("--core", default="", help="what the processor's core is called, such as 'Zen 3'")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the script, measures nothing")
    arguments = parser.parse_args()
    start = time.monotonic()
    torch.set_num_threads(1)
    use_peers(arguments.peers)
    results = read_results(arguments.out, metadata(arguments.core, arguments.cap, quick=arguments.quick))
    rows = results["cases"]
    done = {Case(**{key: row[key] for key in asdict(Case("", "", 0, 0))}) for row in rows}
    cases = tuple(case for part in arguments.parts for case in PARTS[part]())
    if arguments.tokens:
        cases = tuple(case for case in cases if case.tokens in arguments.tokens)
    todo = [case for case in (quick(cases) if arguments.quick else cases) if case not in done]
    for group in groups(todo):
        if time.monotonic() - start > arguments.seconds:
            print("more to go")
            return 1
        slow = [case for case in group if expected_over(case, rows, arguments.cap)]
        rows += [asdict(case) | {"over": True, "not run": True} for case in slow]
        ready = [case for case in group if case not in slow]
        rows += [asdict(case) | row for case, row in zip(ready, measure(ready, arguments.cap), strict=True)]
        for row in rows[-len(group) :]:
            print(f"{time.monotonic() - start:6.1f} s", *row.values(), sep=" | ", flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        save_json(arguments.out, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
