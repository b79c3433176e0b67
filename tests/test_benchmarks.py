"""Benchmarks: the published numbers beside their measurements, options that do nothing, folders that are not theirs."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest
import timm

import map_vision  # noqa: F401  (its models)

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


@pytest.mark.parametrize(
    ("model", "option", "attribute"),
    [
        ("map_vit_tiny_patch16_224", "scan", None),
        ("map_vit_tiny_patch16_224", "attention", "backend"),
        ("map_mambavision_tiny", "scan", "scan_backend"),
        ("hybridnet_nano_patch4_32", "conv", "conv_backend"),
    ],
)
def test_an_implementation_is_that_of_some_module_or_refused(model, option, attribute, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    benchmark = runpy.run_path(str(FOLDER / "pretrain_step.py"))
    options = dict.fromkeys(("scan", "conv", "attention", "linear"), "auto") | {option: "torch"}
    network = timm.create_model(model)
    if attribute is None:
        with pytest.raises(SystemExit, match=f"--{option} torch has no effect on {model}: leave it out"):
            benchmark["choose_implementations"](network, model, argparse.Namespace(**options))
    else:
        benchmark["choose_implementations"](network, model, argparse.Namespace(**options))
        assert "torch" in [getattr(module, attribute, None) for module in network.modules()]


def test_a_folder_that_was_there_is_not_removed(tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["many_files.py", "--place", str(tmp_path)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(FOLDER / "many_files.py"), run_name="__main__")
    assert "exists: name a folder to make and remove, or add --keep" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
