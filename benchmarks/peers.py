"""Blocks, whole models, inference and commands on one core of a CPU, ours beside those of other projects.

    pip install --no-deps --target FOLDER mambapy transformers tokenizers regex
    taskset -c 0 python benchmarks/peers.py --peers FOLDER --out runs/peers.json

Every case runs in a process of its own, forked after everything was imported: a pass that warms up and tells memory,
then at least five, the contenders of a size by turns. A pass that takes longer than 10 s is not repeated. Peers are in
no list of dependencies; without ``--peers`` they fail. The file is written after every size, and the same command goes
on where it stopped; ``--seconds`` bounds one go, for a machine that is quiet only for minutes. docs/lab/peers.json is
such a file, from which ``python docs/tables.py`` writes tables of docs/performance.md and docs/figures/cost.py draws.
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

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a child of fork has no threads

import torch
from cpu.cases import PARTS, Case, groups, quick
from cpu.contenders import use_peers
from cpu.measuring import CAP, Row, measure

from map_core.processor import processor_name
from map_core.runs.files import save_json
from map_core.runs.summary import commit, versions

PEERS = ("mambapy", "transformers")


def heading(core: str) -> dict[str, Any]:
    """What all cases of a file share."""
    return {
        "date": str(datetime.date.today()),
        "processor": processor_name(),
        "core": core,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cap_s": CAP,
        "commits": [commit()],
        "versions": versions(*PEERS),
        "command": "taskset -c 0 python benchmarks/peers.py --peers FOLDER",
    }


def expected_over(case: Case, rows: list[Row]) -> bool:
    """Whether fewer tokens took so long that these, at a cost no less than in proportion, take longer than the cap."""
    same = {key: value for key, value in asdict(case).items() if key not in ("tokens", "batch")}
    shorter = [row for row in rows if same.items() <= row.items() and row["tokens"] < case.tokens]
    if case.part == "commands" or not shorter:
        return False
    row = max(shorter, key=lambda row: row["tokens"])
    share = case.tokens * case.batch / (row["tokens"] * row["batch"])
    return share >= 1 and ("over" in row or row.get("ms", 0.0) * share > 1e3 * CAP)


def read(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The file so far.

    Raises:
        SystemExit: it was begun on another machine or with other versions.
    """
    if not path.exists():
        return {**head, "cases": []}
    results = json.loads(path.read_text())
    for key in ("processor", "isa", "threads", "versions"):
        if results[key] != head[key]:
            raise SystemExit(f"{path} has {key} {results[key]}, now it is {head[key]}: name another --out")
    results["commits"] += [commit for commit in head["commits"] if commit not in results["commits"]]
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/peers.json"))
    parser.add_argument("--peers", type=Path, help="folder that peers were installed in")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--tokens", type=int, nargs="+", help="cases of these lengths only")
    parser.add_argument("--cap", type=float, default=CAP, help="seconds a pass: longer ones are run once")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no case after so long")
    parser.add_argument("--core", default="", help="what the processor's core is called, such as 'Zen 3'")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the script, measures nothing")
    arguments = parser.parse_args()
    start = time.monotonic()
    torch.set_num_threads(1)
    use_peers(arguments.peers)
    results = read(arguments.out, heading(arguments.core))
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
        slow = [case for case in group if expected_over(case, rows)]
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
