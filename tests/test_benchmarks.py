"""Published numbers that benchmarks print next to their measurements."""

import runpy
from pathlib import Path

import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "pretrain_step.py"))
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
def test_table_8_stands_beside_the_classifiers_that_it_describes(task, model, batch, expected):
    assert BENCHMARK["paper_row"](task, model, batch) == expected
