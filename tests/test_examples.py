"""Every example runs as a user would run it, at reduced size."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


def test_demo_leaves_pictures_and_a_summary(tmp_path: Path) -> None:
    result = run_example("demo.py", "--out", str(tmp_path), "--steps", "2")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {"test_accuracy_pretrained", "test_accuracy_scratch", "seconds"} <= summary.keys()
    for picture in ("pretrain/reconstructions.png", "pretrain/curves.png", "comparison.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    table = [
        line for line in result.stdout.splitlines() if line.strip().startswith(("pretrained", "from scratch"))
    ]
    assert len(table) == 2


def test_an_encoder_of_your_own_is_pretrained_by_the_objective() -> None:
    assert "loss fell" in run_example("own_encoder.py", "--steps", "12").stdout
