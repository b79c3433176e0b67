"""A short form of ``make soak``: what it finds it would say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name("soak")
sys.path.insert(0, str(SOAK))  # its files import one another, as a program's do

from steady import Size, find_growth  # noqa: E402


def test_runs_that_are_disturbed_end_as_if_they_were_not() -> None:
    command = [sys.executable, str(SOAK / "soak.py"), "--minutes", "0", "--kills", "2", "--kinds", "images"]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout)["disturbed"]["images"]
    assert counts["kill"] >= 2
    assert counts["runs"] >= 1


@pytest.mark.parametrize(
    ("name", "late", "grown"),
    [
        ("megabytes", 500 + 24 + 26, True),
        ("megabytes", 500 + 24 + 24, False),
        ("descriptors", 35, True),
        ("threads", 8, True),
        ("processes", 5, True),
        ("processes", 4, False),
    ],
)
def test_growth_is_found_beyond_its_bound(name: str, late: float, grown: bool) -> None:
    sizes = [Size(500.0, 30, 6, 3)] * 30
    at_last = Size(**{**vars(sizes[0]), name: late})
    assert [fault.split()[0] for fault in find_growth([*sizes, *[at_last] * 10])] == [name] * grown
