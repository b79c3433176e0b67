"""benchmarks/peers.py measures its cases, resumes where it stopped, and its tables show what it measured."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "benchmarks", ROOT / "docs")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that imports a script of the benchmarks or of the documentation."""
    before = set(sys.modules)
    for folder in reversed(FOLDERS):
        monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if any(Path(getattr(sys.modules[name], "__file__", None) or "").is_relative_to(f) for f in FOLDERS):
            del sys.modules[name]


def run(out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--quick", "--parts", "cost"]
    return subprocess.run(
        [*command, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_it_measures_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    out = tmp_path / "peers.json"
    first = run(out)
    assert first.returncode == 0, first.stderr
    results = json.loads(out.read_text())
    (row,) = results["cases"]
    assert row["runs"] >= 5
    assert 0 < row["least"] <= row["ms"]
    assert row["parameters"] > 1e6
    assert row["MB"] > 1
    assert results["threads"] == 1
    assert run(out).returncode == 0
    assert json.loads(out.read_text()) == results  # nothing was measured again


@pytest.mark.parametrize(
    ("name", "other"), [("cap_s", 1.0), ("core", "Zen 9"), ("quick", True), ("threads", 2)]
)
def test_a_file_of_other_options_is_not_continued(name: str, other: Any, tmp_path: Path, load: Any) -> None:
    peers: ModuleType = load("peers")
    current = peers.metadata("Zen 3", 10.0, quick=False)
    (tmp_path / "peers.json").write_text(json.dumps({**current, "cases": []}))
    assert peers.read_results(tmp_path / "peers.json", current)["cases"] == []
    with pytest.raises(
        SystemExit, match=f"has {name} {current[name]}, now it is {other}: name another --out"
    ):
        peers.read_results(tmp_path / "peers.json", current | {name: other})


@pytest.mark.parametrize(
    ("previous", "expected"),
    [
        ({"ms": 2400.0}, False),
        ({"ms": 2600.0}, True),  # four times as many tokens take longer than 10 s
        ({"over": True, "first": 12000.0}, True),
        ({"failed": "no"}, False),
    ],
)
def test_cases_that_are_sure_to_be_too_slow_are_not_run(
    previous: dict[str, Any], expected: bool, load: Any
) -> None:
    peers: ModuleType = load("peers")
    case = peers.Case("blocks", "some", 4096, 1, kind="both")
    shorter = asdict(replace(case, tokens=1024))
    assert peers.expected_over(case, [shorter | previous], cap=10.0) is expected
    assert not peers.expected_over(case, [shorter | previous | {"kind": "forward"}], cap=10.0)
    assert not peers.expected_over(case, [shorter | previous | {"what": "other"}], cap=10.0)


def test_contenders_of_a_size_take_turns(load: Any) -> None:
    cases = load("cpu.cases")
    for part in ("blocks", "models", "inference", "commands"):
        all_cases = tuple(cases.PARTS[part]())
        case_groups = cases.groups(all_cases)
        assert sorted(map(str, all_cases)) == sorted(str(case) for group in case_groups for case in group)
        for group in case_groups:
            assert len({replace(case, what="") for case in group}) == 1
            assert len({case.what for case in group}) == len(group) >= 2


def test_models_that_are_compared_have_equal_parameters(load: Any) -> None:
    contenders = load("cpu.contenders")

    def parameters(model: Any) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    hybrid, *others = (parameters(contenders.make_encoder(what, 224, 0)) for what in load("cpu.cases").MODELS)
    assert all(abs(other / hybrid - 1) < 0.05 for other in others)
    for size in ("224", "32"):
        ours, theirs = (
            parameters(contenders.make_classifier(what))
            for what in load("cpu.cases").CLASSIFIERS
            if what.endswith((size, f"{size} px"))
        )
        assert abs(theirs / ours - 1) < 0.04


def test_the_crossover_lies_between_what_was_measured(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = load("peers_tables")

    def rows(part: str, *, what: str, **conditions: Any) -> list[dict[str, Any]]:
        times = {"hybrid": (200.0, 800.0), "Mamba": (50.0, 200.0), "ViT (timm)": (100.0, 1600.0)}[what]
        return [
            {"tokens": tokens, "batch": 1, "ms": ms} for tokens, ms in zip((100, 400), times, strict=True)
        ]

    monkeypatch.setattr(tables, "select_rows", rows)
    assert tables.crossover("hybrid", "both") == "from about 200 tokens on"
    assert tables.crossover("Mamba", "both") == "at every length"


def test_the_law_of_cost_is_the_one_that_made_the_numbers(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = load("peers_tables")
    rows = [
        {
            "depth": d,
            "batch": b,
            "tokens": n,
            "ms": d * (5 + b * (0.02 * n + 1e-5 * n**2)),
            "MB": 30 + 0.01 * d * b * n,
        }
        for d, b, n in ((4, 1, 196), (16, 1, 196), (16, 4, 196), (16, 1, 49), (16, 1, 3136))
    ]
    monkeypatch.setattr(tables, "select_rows", lambda part: rows)
    fit, error = tables.cost_fit()
    assert fit == pytest.approx([5, 0.02, 1e-5])
    assert error < 1e-6
    assert tables.memory_fit() == pytest.approx((10.24, 30))
