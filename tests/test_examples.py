"""Every example runs as a user would run it, at reduced size."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import warm
from PIL import Image

import map_vision

ROOT = Path(__file__).resolve().parents[1]


def run_example(name: str, *arguments: str) -> str:
    return warm.run(ROOT / "examples" / name, *arguments)


def test_the_visible_loop_leaves_an_encoder_that_timm_finetunes(tmp_path: Path) -> None:
    weights = str(tmp_path / "digits.safetensors")
    output = run_example("pretrain_minimal.py", "--steps", "20", "--out", weights)
    losses = [float(line.split()[-1]) for line in output.splitlines() if line.startswith("step")]
    assert losses[-1] < losses[0]
    finetuning_output = run_example("finetune_timm.py", "--steps", "60", "--init", weights)
    accuracy = float(finetuning_output.split(":")[-1].removesuffix(" %\n"))
    assert accuracy > 40  # ten classes


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("custom_backbone.py", "12"),
        ("custom_tokenizer.py", "24"),
        ("point_cloud.py", "24"),
        ("image_and_cloud.py", "24"),
    ],
)
def test_the_loss_falls(name: str, steps: str, tmp_path: Path) -> None:
    picture = ["--out", str(tmp_path / "clouds.png")] if name == "point_cloud.py" else []
    assert "loss fell" in run_example(name, "--steps", steps, *picture)
    assert all((tmp_path / "clouds.png").stat().st_size > 10_000 for _ in picture)


def test_a_worker_of_the_cluster_gives_the_features_of_the_command(tmp_path: Path) -> None:
    """All of the example but Ray, which is no dependency of the tests."""
    for number in range(5):
        picture = np.random.default_rng(number).integers(0, 256, (20, 18, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number}.png")
    small = {"model.img_size": 16, "model.patch_size": 4, "model.embed_dim": 16, "model.layout": "MT"}
    small |= {"objective.decoder_dim": 16, "objective.decoder_depth": 1, "objective.decoder_heads": 2}
    settings = {
        "training.workers": 0,
        "training.device": "cpu",
        "training.max_steps": 1,
        "training.batch_size": 4,
        "model.num_heads": 2,
    }
    map_vision.pretrain(tmp_path / "photos", out=tmp_path / "run", **small, **settings)
    evaluation = {"evaluation.workers": 0, "evaluation.device": "cpu"}
    map_vision.features(tmp_path / "run", tmp_path / "photos", out=tmp_path / "features.npz", **evaluation)
    expected = np.load(tmp_path / "features.npz")
    example = runpy.run_path(str(ROOT / "examples" / "features_on_ray.py"))
    features = example["Worker"](tmp_path / "run").features(expected["names"].tolist())
    assert features.shape == (5, 16)
    np.testing.assert_array_equal(features, expected["features"])


def test_the_code_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page run one after the other, as a reader would paste them; ``no-run`` needs a finished run."""
    monkeypatch.chdir(tmp_path)
    for page in ("README.md", "docs/your_own_code.md"):
        blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
        assert blocks
        program = tmp_path / "page.py"
        program.write_text("\n".join(blocks))
        warm.run(program)
