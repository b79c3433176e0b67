"""The parts that benchmarks/gpu_check.sh runs on a GPU, here in tiny sizes."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "benchmarks"
PARTS = {
    "passes": "part.add(value=1)",
    "fails": "part.add(value=2)\nraise ValueError('broken')",
    "hangs": "while 1: ...",
}
PROGRAM = "from report import Part\npart = Part(None)\n"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that imports a script of the check, in this process: importing torch again would take longer."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(SCRIPTS / "gpu"))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").is_relative_to(SCRIPTS):
            del sys.modules[name]


def run_part(part: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["part", "--quick", "--out", str(out), "--seconds", "600"])
    assert part.main() == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("machine", "what", {"device", "torch", "commit"}),
        ("scans", "implementation", {"torch", "reference"}),
        ("steps", "model", {"hybridnet_tiny_patch16_224"}),
        ("learning", "run", {"first", "resumed", "both"}),
        ("arm", "run", {"map/seed0/pretrain", "map/seed0/finetune_16"}),
    ],
)
def test_a_part_measures_what_it_names(
    name: str, column: str, expected: set[str], load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run_part(load(name), tmp_path / "rows.json", monkeypatch)
    assert expected <= {row[column] for row in rows}
    assert not any("failed" in row for row in rows)


def test_the_script_runs_the_cases_of_the_device(tmp_path: Path) -> None:
    environment = os.environ | {
        "QUICK": "1",
        "OUT": str(tmp_path),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [str(SCRIPTS / "gpu_check.sh"), "cases"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + (tmp_path / "results.md").read_text()
    (row,) = json.loads((tmp_path / "results.json").read_text())["parts"]["cases"]["rows"]
    assert row["cases"] == "cuda_cases.py"
    assert row["passed"] >= 3


def test_a_part_that_fails_or_hangs_keeps_its_rows_and_stops_no_other(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = load("check")
    for name, text in PARTS.items():
        (tmp_path / f"{name}.py").write_text(PROGRAM + text)
    (tmp_path / "report.py").symlink_to(SCRIPTS / "gpu/report.py")
    monkeypatch.setattr(check, "HERE", tmp_path)
    monkeypatch.setattr(check, "LIMITS", {"fails": 60, "hangs": 0.5, "passes": 60})
    monkeypatch.setattr(sys, "argv", ["check", "--out", str(tmp_path)])
    assert check.main() == 1
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    outcomes = {name: part["outcome"] for name, part in parts.items()}
    assert outcomes == {"fails": "failed (1)", "hangs": "out of time", "passes": "passed"}
    assert [part["rows"] for part in parts.values()] == [[{"value": 2}], [], [{"value": 1}]]
    assert "ValueError: broken" in (tmp_path / "results.md").read_text()


def test_all_parts_fit_into_eight_minutes(load: Any) -> None:
    assert sum(load("check").LIMITS.values()) < 8 * 60
