"""The tests that need a GPU: kernels against their definitions, and whole objectives on the device.

Triton compiles each case separately, which takes seconds on a core, so the cases are shared among several processes.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from report import Part

ROOT = Path(__file__).parents[2]  # names of cases are relative to this
TESTS = Path("packages/map-core/tests")
FILES = [TESTS / "cuda_cases.py", TESTS / "ops/triton_conv_cases.py", TESTS / "ops/triton_cases.py"]
# without the runtime shape checker, whose decorators Triton cannot compile
PYTEST = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
OUTCOME = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
SECONDS_TO_REPORT = 5
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # deterministic matrix products


def collect(part: Part) -> list[str]:
    """The names of all cases; a file that cannot be collected fails the part, and the others are run."""
    names = []
    for file in FILES:
        command = [*PYTEST, "--collect-only", "-q", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if result.returncode:
            print(result.stdout[-3000:] + result.stderr[-3000:])
            part.add(cases=file.name, outcome="not collected")
            part.fail(f"{file} cannot be collected")
        else:
            names += [line for line in result.stdout.splitlines() if "::" in line]
    return names


def main() -> int:
    part = Part(__doc__)
    end = time.monotonic() + part.seconds - SECONDS_TO_REPORT
    environment = os.environ | ENVIRONMENT
    if part.quick:
        shares = [[str(FILES[0]), "-k", "not compiled"]]
    else:
        names = collect(part)
        count = max(1, min(8, (os.cpu_count() or 2) // 2, len(names)))
        shares = [share for i in range(count) if (share := names[i::count])]
    logs = [part.out.with_suffix(f".{i}.log") for i in range(len(shares))]
    processes = []
    for log, share in zip(logs, shares, strict=True):
        with log.open("w") as log_file:
            processes.append(
                subprocess.Popen(
                    [*PYTEST, "-v", *share], stdout=log_file, stderr=log_file, env=environment, cwd=ROOT
                )
            )
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(0.2)
    for process in processes:
        process.kill()
        process.wait()

    output = "\n".join(log.read_text(errors="replace") for log in logs)
    outcomes = dict(OUTCOME.findall(output))
    totals: dict[str, dict[str, int]] = {}
    for name, outcome in outcomes.items():
        file_totals = totals.setdefault(Path(name.split("::")[0]).name, {})
        file_totals[outcome.lower()] = file_totals.get(outcome.lower(), 0) + 1
    for file, counts in sorted(totals.items()):
        part.add(cases=file, **counts)
    for name, outcome in outcomes.items():
        if outcome not in ("PASSED", "SKIPPED"):
            part.add(cases=name, outcome=outcome)
            part.fail(name)
    if not part.quick and (missing := [name for name in names if name not in outcomes]):
        part.add(cases=f"{len(missing)} of {len(names)}", outcome="not reached")
        part.fail(f"{len(missing)} cases were not reached")
    if not outcomes or part.failures:
        print(output[-6000:])
    return part.end() or int(not outcomes)


if __name__ == "__main__":
    sys.exit(main())
