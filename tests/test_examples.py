"""Every example runs as a user would run it, at reduced size."""

import re
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parents[1]


def run_example(name: str, *arguments: str) -> str:
    return warm.run(ROOT / "examples" / name, *arguments)


def test_the_visible_loop_leaves_an_encoder_that_timm_finetunes(tmp_path: Path) -> None:
    weights = str(tmp_path / "digits.safetensors")
    printed = run_example("pretrain_minimal.py", "--steps", "40", "--out", weights)
    losses = [float(line.split()[-1]) for line in printed.splitlines() if line.startswith("step")]
    assert losses[-1] < losses[0]
    tuned = run_example("finetune_timm.py", "--steps", "60", "--init", weights)
    accuracy = float(tuned.split(":")[-1].removesuffix(" %\n"))
    assert accuracy > 40  # ten classes


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("own_backbone.py", "12"),
        ("own_tokenizer.py", "24"),
        ("point_cloud.py", "24"),
        ("image_and_cloud.py", "24"),
    ],
)
def test_the_loss_falls(name: str, steps: str, tmp_path: Path) -> None:
    picture = ["--out", str(tmp_path / "clouds.png")] if name == "point_cloud.py" else []
    assert "loss fell" in run_example(name, "--steps", steps, *picture)
    assert all((tmp_path / "clouds.png").stat().st_size > 10_000 for _ in picture)


def test_the_code_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page run one after the other, as a reader would paste them; ``no-run`` needs a finished run."""
    monkeypatch.chdir(tmp_path)
    for page in ("README.md", "docs/your_own_code.md"):
        blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
        assert blocks
        program = tmp_path / "page.py"
        program.write_text("\n".join(blocks))
        warm.run(program)
