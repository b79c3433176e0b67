"""The table of faults cites tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = (ROOT / "docs" / "lab" / "faults.md").read_text()
CITED_TESTS = sorted(set(re.findall(r"`([\w/.-]+\.py)::(test_\w+)`", TABLE)))


def test_the_table_has_a_row_for_each_fault() -> None:
    assert [int(number) for number in re.findall(r"(?m)^\| (\d+) \|", TABLE)] == list(range(1, 54))
    assert len(CITED_TESTS) > 53


@pytest.mark.parametrize(("file", "name"), CITED_TESTS)
def test_a_cited_test_exists(file: str, name: str) -> None:
    path = ROOT / file if file.startswith("tests/") else ROOT / "packages" / file
    assert re.search(rf"(?m)^ *def {name}\(", path.read_text())
