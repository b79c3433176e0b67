"""Run the parts of the check one after the other and collect their rows; ``gpu_check.sh`` calls this.

A part is a script in this folder that writes its rows to a file as it goes, so that a part that runs out of time, or
crashes, leaves its rows so far. This file imports nothing that could fail.
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from report import markdown

HERE = Path(__file__).parent
LIMITS = {  # seconds; together below 8 minutes
    "machine": 35,
    "cases": 100,
    "scans": 75,
    "steps": 120,
    "learning": 105,
    "arm": 40,
}
PATIENCE = 10  # factor for a machine that only tries the script
LAST_LINES = 15


def run_part(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one part within its limit; return its outcome, its rows and, if it failed, the last lines of its log."""
    out: Path = arguments.out
    rows_file, log = out / f"{name}.json", out / f"{name}.log"
    rows_file.unlink(missing_ok=True)
    limit = LIMITS[name] * (PATIENCE if arguments.quick else 1)
    command = [sys.executable, str(HERE / f"{name}.py"), "--out", str(rows_file), "--seconds", str(limit)]
    command += ["--quick"] if arguments.quick else []
    command += ["--data", arguments.data] if arguments.data and name == "arm" else []
    start = time.monotonic()
    with log.open("w") as log_file:
        process = subprocess.Popen(command, stdout=log_file, stderr=log_file, start_new_session=True)
        try:
            code = process.wait(limit)
            outcome = "passed" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            outcome = "out of time"
        finally:
            with contextlib.suppress(ProcessLookupError):  # kills its child processes too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    rows = json.loads(rows_file.read_text()) if rows_file.exists() else []
    result = {"outcome": outcome, "seconds": round(time.monotonic() - start, 1), "rows": rows}
    if outcome != "passed":
        result["log"] = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(LIMITS)}")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", help="folder of CIFAR-10, for the arm of the study")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.parts:
        if name not in LIMITS:
            parser.error(f"{name} is not a part; parts: {', '.join(LIMITS)}")
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "quick": arguments.quick,
        "parts": {},
    }
    for name in arguments.parts or LIMITS:
        print(f"{name} (at most {LIMITS[name]} s) ...", end=" ", flush=True)
        result = results["parts"][name] = run_part(name, arguments)
        print(f"{result['outcome']}, {result['seconds']} s", flush=True)
        (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (arguments.out / "results.md").write_text(markdown(results))
    print(f"results -> {arguments.out / 'results.md'}")
    return int(any(part["outcome"] != "passed" for part in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
