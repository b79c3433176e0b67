"""A short form of ``make soak``, which reports any fault that it finds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name("soak")
sys.path.insert(0, str(SOAK))  # its files import one another

from steady import Size, find_growth  # noqa: E402


def test_runs_that_are_disturbed_end_as_if_they_were_not() -> None:
    command = [sys.executable, str(SOAK / "soak.py"), "--minutes", "0", "--kills", "2", "--kinds", "images"]
    result = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    counts = json.loads(result.stdout)["disturbed"]["images"]
    assert counts["kill"] >= 2
    assert counts["runs"] >= 1


@pytest.mark.parametrize(
    ("name", "late_value", "has_grown"),
    [
        ("megabytes", 500 + 24 + 26, True),
        ("megabytes", 500 + 24 + 24, False),
        ("descriptors", 35, True),
        ("threads", 8, True),
        ("processes", 5, True),
        ("processes", 4, False),
    ],
)
def test_growth_is_found_beyond_its_bound(name: str, late_value: float, has_grown: bool) -> None:
    sizes = [Size(500.0, 30, 6, 3)] * 30
    late_size = Size(**{**vars(sizes[0]), name: late_value})
    assert [fault.split()[0] for fault in find_growth([*sizes, *[late_size] * 10])] == [name] * has_grown
