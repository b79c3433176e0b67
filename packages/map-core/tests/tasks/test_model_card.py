"""A run as a folder to share: the same model, and a card that says what the run's files say and nothing else."""

import errno
import json
import shlex
import shutil
from unittest.mock import Mock

import pytest
import torch
import yaml
from toy_domain import DOMAIN

from map_core.commands.card import CardConfig, card, command_of, stages_of
from map_core.commands.listing import sharing_commands
from map_core.commands.program import main
from map_core.errors import UserError
from map_core.runs.files import save_json
from map_core.tasks.setting_values import command_line_words
from map_core.tasks.weights import read_description, read_weights
from map_core.training import TrainingConfig

TERMS = "numbers drawn here, on no terms"


def write_card(run, out, **more):
    """Write the folder of a run's card; return its front matter and its text."""
    card(DOMAIN, CardConfig(str(run), TERMS, out=str(out), **more))
    _, front, text = (out / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.fixture
def finetuned_card(finetuned, tmp_path):
    out = tmp_path / "card"
    front, text = write_card(finetuned[0], out, license="mit", datasets=["someone/toys", "someone/others"])
    return finetuned[0], out, front, text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": "long"}, "seconds must be .*; got 'long'; copy the file from the run again"),
        ({"versions": ["torch"]}, "versions must be dict; got"),
        ({"test_accuracy": "high"}, "test_accuracy must be .*; got 'high'"),
        ({"commit": 5}, "commit must be"),
        ({"task": ["finetune"]}, "is not of a run of pretrain, finetune, linear-probe"),
    ],
)
def test_a_summary_of_other_types_is_reported_in_one_sentence(finetuned, tmp_path, changes, message):
    run = shutil.copytree(finetuned[0], tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    save_json(run / "summary.json", summary | changes)
    with pytest.raises(UserError, match=rf"summary.json:? {message}"):
        write_card(run, tmp_path / "card")


@pytest.mark.parametrize("content", ["[" * 100_000, "", "{", '{"a": ' + "9" * 5000 + "}"], ids=range(4))
def test_a_summary_that_is_no_json_is_reported_in_one_sentence(finetuned, tmp_path, content):
    run = shutil.copytree(finetuned[0], tmp_path / "run")
    (run / "summary.json").write_text(content)
    with pytest.raises(
        UserError, match=r"summary.json cannot be read \(.*\); give the directory of a finished"
    ):
        write_card(run, tmp_path / "card")


def test_no_text_of_a_run_begins_a_line_of_its_card(finetuned, tmp_path):
    run = shutil.copytree(finetuned[0], tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    save_json(run / "summary.json", summary | {"device": "cpu\n---\n# evil", "commit": "a\n<script>"})
    _, text = write_card(run, tmp_path / "card")
    assert not any(line.startswith(("---\n", "# evil", "<script")) for line in text.splitlines())


def test_the_folder_holds_the_runs_model(finetuned_card):
    run, out, *_ = finetuned_card
    here, there = read_weights(out), read_weights(run)
    assert here.keys() == there.keys()
    assert all(torch.equal(here[key], there[key]) for key in here)
    assert DOMAIN.models.classifier(out)[1] == tuple(read_description(run)["classes"])
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.json", "model.safetensors"]


def test_the_front_matter_is_the_hubs(finetuned_card):
    run, _, front, _ = finetuned_card
    summary = json.loads((run / "summary.json").read_text())
    assert front["license"] == "mit"
    assert front["datasets"] == ["someone/toys", "someone/others"]
    assert front["metrics"] == ["accuracy"]
    assert front["library_name"] == "pytorch"  # timm does not know the toys
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == summary["test_accuracy"]
    assert result["dataset"]["type"] == "someone/toys"


def test_every_measure_and_stage_is_the_runs(finetuned_card, pretrained):
    run, _, _, text = finetuned_card
    summary = json.loads((run / "summary.json").read_text())
    table = dict(line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| test_"))
    assert table == {key: f"{value:.4g}" for key, value in summary.items() if key.startswith("test_")}
    for directory in (pretrained[0], run):
        stage = json.loads((directory / "summary.json").read_text())
        assert f"- time: {stage['seconds'] / 60:.1f} minutes" in text
        assert f"- commit: {stage['commit'] or 'not recorded'}" in text
        assert f"- hardware: {stage['device']}, processes: {stage['processes']}" in text
    assert TERMS in text
    assert f"{sum(value.numel() for value in read_weights(run).values()):,} parameters" in text
    assert text.index("map-toy pretrain") < text.index("map-toy finetune")


START_UNKNOWN = "- started from: weights that no run here is known to have trained"


@pytest.mark.parametrize("fault", [None, "trained anew", "without settings", "moved away", "of version 0.1"])
def test_a_card_tells_of_the_run_of_the_weights_that_another_one_started_from_and_of_no_other(
    finetuned, pretrained, tmp_path, fault
):
    run, parent = (
        shutil.copytree(of[0], tmp_path / name) for of, name in ((finetuned, "run"), (pretrained, "parent"))
    )
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"init": "parent"}))
    if fault == "trained anew":
        shutil.copyfile(parent / "model_ema.safetensors", parent / "model.safetensors")
    elif fault == "without settings":
        (parent / "config.yaml").unlink()
    elif fault == "moved away":
        parent.rename(tmp_path / "elsewhere")
    elif fault == "of version 0.1":
        summary = json.loads((run / "summary.json").read_text())
        del summary["init_identity"]
        save_json(run / "summary.json", summary)
    _, text = write_card(run, tmp_path / "card")
    assert ("map-toy pretrain" in text, START_UNKNOWN in text) == (fault is None, fault is not None)


def test_a_card_says_what_a_summary_lacks(finetuned, tmp_path):
    run = shutil.copytree(finetuned[0], tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    save_json(run / "summary.json", {"task": "finetune", "test_loss": summary["test_loss"]})
    front, text = write_card(run, tmp_path / "card")
    assert "metrics" not in front
    assert "model-index" not in front
    assert front["license"] == "unknown"
    assert text.count("not recorded") == 5


def test_the_card_of_a_run_that_a_signal_ended_says_how_far_it_came(finetuned, tmp_path):
    run = shutil.copytree(finetuned[0], tmp_path / "run")
    assert "ended early" not in write_card(run, tmp_path / "whole")[1]
    summary = json.loads((run / "summary.json").read_text())
    save_json(run / "summary.json", {**summary, "interrupted": True, "stopped_by": "SIGTERM"})
    line = {"kind": "train", "step": 3, "epoch": 0.75, "loss": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert "- ended early: by SIGTERM, after 0.8 epochs" in write_card(run, tmp_path / "card")[1]


def test_an_encoder_has_no_classes_and_no_accuracy(pretrained, tmp_path):
    front, text = write_card(pretrained[0], tmp_path / "card", datasets=["someone/toys"])
    assert "metrics" not in front
    assert "an encoder that gives features" in text
    assert "On the training data, at the end of training" in text
    assert "## Classes" not in text


def test_the_command_has_settings_that_are_no_defaults_and_no_path_of_this_machine(finetuned):
    *_, stage = reversed(list(stages_of(DOMAIN, finetuned[0])))
    assert stage.command.startswith("map-toy finetune --training.epochs 2 --training.batch_size 8")
    assert "--init run" in stage.command
    assert str(finetuned[0].parent.parent) not in stage.command


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        ([1, 2], "1 2"),
        ((64, 64), "64 64"),
        ("/home/me/photos of mine", "'photos of mine'"),
        ("runs/p", "runs/p"),
    ],
    ids=str,
)
def test_settings_are_written_as_the_command_line_reads_them(value, words):
    assert shlex.join(command_line_words(value)) == words


def test_only_settings_that_differ_from_their_defaults_are_written():
    config = {
        "training": {"epochs": 1, "lr": 0.5, "workers": TrainingConfig().workers},
        "init": None,
        "out": "here",
    }
    assert command_of(DOMAIN, "finetune", config) == "map-toy finetune --training.epochs 1 --training.lr 0.5"


def damage(run, fault):
    """Give a run a fault."""
    if fault == "unfinished":
        (run / "summary.json").unlink()
    elif fault == "evaluation":
        save_json(run / "summary.json", {"task": "evaluate"})
    elif fault == "decoder":
        description = read_description(run)
        save_json(run / "model.json", {**description, "holds": "decoder\nand head\x1b"})
    else:
        (run / "config.yaml").unlink()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("unfinished", r"summary.json cannot be read .*; give the directory of a finished run"),
        ("evaluation", r"is not of a run of pretrain, finetune, linear-probe"),
        ("decoder", r"describes neither an encoder nor a classifier \(its .json says: decoder and head\?\)"),
        ("no settings", r"config.yaml cannot be read"),
    ],
)
def test_an_unfinished_run_is_refused_and_nothing_is_written(pretrained, tmp_path, fault, message):
    run = shutil.copytree(pretrained[0], tmp_path / "run")
    damage(run, fault)
    with pytest.raises(UserError, match=message):
        write_card(run, tmp_path / "card")
    assert not (tmp_path / "card").exists()


def test_no_run_is_overwritten_by_a_card(pretrained, finetuned):
    for out in (pretrained[0], finetuned[0]):
        before = (out / "model.safetensors").read_bytes()
        with pytest.raises(
            UserError, match="is a training run, whose model would be replaced; choose another --out"
        ):
            write_card(pretrained[0], out)
        assert (out / "model.safetensors").read_bytes() == before


def test_the_command_line_makes_one(finetuned, tmp_path, capsys):
    arguments = ["card", str(finetuned[0]), "--data_terms", TERMS, "--out", str(tmp_path / "card")]
    assert main("map-toy", sharing_commands(DOMAIN), DOMAIN.recipes, arguments) == 0
    assert (tmp_path / "card" / "README.md").is_file()
    assert "README.md" in "".join(capsys.readouterr())


def test_a_card_on_a_full_disk_is_reported_in_one_sentence(finetuned, tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "copyfile", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(
        UserError, match=r"cannot write .*card \(No space left on device\); make room, then repeat"
    ):
        write_card(finetuned[0], tmp_path / "card")
