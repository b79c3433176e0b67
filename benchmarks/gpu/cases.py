"""The tests that need a GPU: kernels against their definitions, and whole objectives on the device.

Each case is compiled for itself by Triton, which takes a core for seconds, so that several processes share them out.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from report import Part

ROOT = Path(__file__).parents[2]  # names of cases are relative to it
TESTS = Path("packages/map-core/tests")
FILES = [TESTS / "cuda_cases.py", TESTS / "ops/triton_conv_cases.py", TESTS / "ops/triton_cases.py"]
# without the runtime shape checker, whose decorators Triton cannot compile
PYTEST = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
OUTCOME = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # deterministic matrix products


def collect(files: list[Path]) -> list[str]:
    """The names of all cases of some files."""
    command = [*PYTEST, "--collect-only", "-q", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    names = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode or not names:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return names


def main() -> int:
    part = Part(__doc__)
    environment = os.environ | ENVIRONMENT
    if part.quick:
        shares = [[str(FILES[0]), "-k", "not compiled"]]
    else:
        names = collect(FILES)
        count = max(1, min(8, (os.cpu_count() or 2) // 2))
        shares = [names[i::count] for i in range(count)]
    logs = [part.out.with_suffix(f".{i}.log") for i in range(len(shares))]
    processes = []
    for log, share in zip(logs, shares, strict=True):
        with log.open("w") as written:
            processes.append(
                subprocess.Popen(
                    [*PYTEST, "-v", *share], stdout=written, stderr=written, env=environment, cwd=ROOT
                )
            )
    while any(process.poll() is None for process in processes) and not part.is_over:
        time.sleep(0.2)
    for process in processes:
        process.kill()
        process.wait()

    said = "\n".join(log.read_text(errors="replace") for log in logs)
    outcomes = dict(OUTCOME.findall(said))
    counted: dict[str, dict[str, int]] = {}
    for name, outcome in outcomes.items():
        of_file = counted.setdefault(Path(name.split("::")[0]).name, {})
        of_file[outcome.lower()] = of_file.get(outcome.lower(), 0) + 1
    for file, counts in sorted(counted.items()):
        part.add(cases=file, **counts)
    for name, outcome in outcomes.items():
        if outcome not in ("PASSED", "SKIPPED"):
            part.add(cases=name, outcome=outcome)
            part.fail(name)
    if not part.quick and (missed := [name for name in names if name not in outcomes]):
        part.add(cases=f"{len(missed)} of {len(names)}", outcome="not reached")
        part.fail(f"{len(missed)} cases were not reached")
    if not outcomes or part.failures:
        print(said[-6000:])
    return part.end() or int(not outcomes)


if __name__ == "__main__":
    sys.exit(main())
