"""Published numbers that benchmarks print next to their measurements."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
BASE = "hybridnet_base_patch16_224"


@pytest.mark.parametrize(
    ("task", "model", "batch", "expected"),
    [
        ("pretrain", BASE, 128, ""),  # encodes half of the patches
        ("finetune", BASE, 128, "244, 30.0"),
        ("inference", BASE, 128, "244, 30.0"),
        ("finetune", "hybridnet_tiny_patch16_224", 128, "910, 7.6"),
        ("finetune", BASE, 64, ""),
        ("inference", "map_vit_base_patch16_224", 128, ""),
    ],
)
def test_table_8_stands_beside_the_classifiers_that_it_describes(task, model, batch, expected, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    benchmark = runpy.run_path(str(FOLDER / "pretrain_step.py"))
    assert benchmark["paper_row"](task, model, batch) == expected
