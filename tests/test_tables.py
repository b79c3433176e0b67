"""The documentation's tables of studies agree with their results files."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_table_differs_from_its_results() -> None:
    command = [sys.executable, str(ROOT / "docs" / "tables.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
