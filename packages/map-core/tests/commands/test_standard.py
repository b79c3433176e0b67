"""The commands of every domain, from the command line to their files, on a domain in miniature."""

import csv
import dataclasses
import errno
import importlib.metadata
import io
import json
import os
import re
import resource
import shutil
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from toy_domain import CLASSES, DOMAIN, ToyDataConfig, ToyModelConfig, ToySamples

from map_core import UserError
from map_core.commands.listing import standard_commands
from map_core.commands.program import main
from map_core.commands.results import refuse_other_classes
from map_core.commands.standard import configs, data_of_run, model_of_run
from map_core.runs.checkpoint import find_fault
from map_core.runs.notes import note, tell
from map_core.runs.summary import refuse_training_run
from map_core.tasks.pretraining import PretrainTask, hide_and_reconstruct, load_objective

QUICK = [
    f"--training.{setting}"
    for setting in (
        "epochs=2", "batch_size=8", "warmup_epochs=0", "lr=0.01", "workers=0", "device=cpu",
        "tensorboard=false", "progress=false",
    )
]  # fmt: skip
RUNNING = [f"--evaluation.{setting}" for setting in ("workers=0", "device=cpu", "progress=false")]


def run(*arguments):
    """Run a command of the toy domain; return its status."""
    return main(
        "map-toy", standard_commands(DOMAIN, sample="toy"), DOMAIN.recipes, [str(part) for part in arguments]
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretraining, a finetuning and a probing run, of a width that is not the default."""
    root = tmp_path_factory.mktemp("runs")
    pretrained = root / "pretrain"
    assert run("pretrain", *QUICK, "--model.embed_dim=12", "--data.flip=true", "--out", pretrained) == 0
    for command in ("finetune", "linear-probe"):
        assert run(command, *QUICK, "--init", pretrained, "--out", root / command) == 0
    return SimpleNamespace(pretrain=pretrained, finetune=root / "finetune", probe=root / "linear-probe")


def table(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


# ---- training


@pytest.mark.parametrize(
    ("name", "task"), [("pretrain", "pretrain"), ("finetune", "finetune"), ("probe", "linear-probe")]
)
def test_a_training_command_leaves_a_finished_run(runs, name, task):
    out = getattr(runs, name)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["task"], summary["interrupted"]) == (task, False)
    assert json.loads((out / "model.json").read_text())["task"] == task
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["training"]["epochs"] == 2


@pytest.mark.parametrize(
    ("command", "last_words"),
    [
        ("pretrain", "results in {out}: summary.json, model.safetensors, curves.png, reconstructions.png"),
        ("finetune", "on evaluation split; results in {out}: summary.json, model.safetensors, curves.png"),
    ],
)
def test_a_training_command_says_its_data_and_where_its_results_are(tmp_path, capsys, command, last_words):
    assert run(command, *QUICK, "--data.root=sea", "--out", tmp_path / "run") == 0
    output = capsys.readouterr()
    assert f"sea for {command}\n{command}: 24 samples" in output.err
    assert output.out.endswith(f"{last_words.format(out=tmp_path / 'run')}\n")


def test_other_processes_than_the_first_print_nothing(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tell("a result")
    note("a remark")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("processes", [None, "1"])
def test_a_process_without_others_writes_its_result_whatever_its_rank(
    runs, tmp_path, capsys, monkeypatch, processes
):
    """A scheduler may set RANK for its own purposes."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("WORLD_SIZE", processes)
    out = tmp_path / "predictions.csv"
    assert run("predict", "--init", runs.finetune, "--toys", "5", *RUNNING, "--out", out) == 0
    assert len(table(out)) == 2
    assert capsys.readouterr().out == f"1 toys -> {out}\n"


@pytest.mark.parametrize("name", ["finetune", "probe"])
def test_model_and_preparation_of_inputs_are_those_of_the_run_that_init_names(runs, name):
    """Not the defaults: these settings were passed to the pretraining run only."""
    config = yaml.safe_load((getattr(runs, name) / "config.yaml").read_text())
    assert config["model"] == {"name": "toy", "embed_dim": 12}
    assert config["data"]["flip"] is True


def test_the_command_line_overrides_the_run_that_init_names(runs, tmp_path, capsys):
    assert (
        run("finetune", *QUICK, "--init", runs.pretrain, "--model.embed_dim=8", "--out", tmp_path / "x") == 2
    )
    message = capsys.readouterr().err
    assert "does not fit this model: shapes: " in message
    assert "choose the model that was pretrained (--model.name toy --model.embed_dim 12)\n" in message


def test_inherited_settings_override_those_of_a_recipe(runs, tmp_path):
    """The width of the run that ``--init`` names stays; the number of samples is the recipe's."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {embed_dim: 8}\ndata: {count: 16}\n")
    out = tmp_path / "run"
    assert run("finetune", "--config", recipe, *QUICK, "--init", runs.pretrain, "--out", out) == 0
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["model"]["embed_dim"], config["data"]["count"]) == (12, 16)


@pytest.mark.parametrize(
    ("batch", "accumulation", "cure"),
    [(1, 1, "set --training.batch_size to 2 or more"), (4, 4, "set --training.batch_size to 8 or more")],
)
def test_a_probe_needs_two_samples_in_a_micro_batch(runs, tmp_path, capsys, batch, accumulation, cure):
    """Batch normalisation needs more than one sample for a deviation."""
    split = [f"--training.batch_size={batch}", f"--training.accumulation_steps={accumulation}"]
    line = ["linear-probe", *QUICK, "--init", runs.pretrain, "--out", tmp_path / "run"]
    assert run(*line, *split) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(
        "map-toy: error: a micro-batch of 1 sample(s) is too small for batch normalisation: "
    )
    assert (
        f"training.batch_size {batch} is split over 1 process(es) times accumulation_steps {accumulation}"
        in message
    )
    assert cure in message
    assert run(*line) == 0, "what failed at its first step starts anew in its place"


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("pretrain", "init_may_differ=nothing"), ("pretrain", "init_decoder=true"),
        ("finetune", "init_may_differ=nothing"),
    ],
)  # fmt: skip
def test_what_says_how_to_start_from_a_run_needs_one(tmp_path, capsys, command, setting):
    assert run(command, *QUICK, f"--{setting}", "--out", tmp_path / "run") == 2
    message = f"{setting.partition('=')[0]} needs a run or file to start from: give --init"
    assert message in capsys.readouterr().err


def test_a_budget_of_samples_says_how_to_train_by_epochs(tmp_path, capsys):
    assert run("pretrain", *QUICK, "--training.sample_budget=24", "--out", tmp_path / "run") == 0
    note = (
        "1 epochs in batches of 8, warmup 0.05 epochs, a checkpoint every 1, an evaluation every 1; "
        "--training.sample_budget null trains by --training.epochs"
    )
    assert note in capsys.readouterr().err


def test_epochs_beside_a_budget_of_a_recipe_are_refused(tmp_path, capsys):
    """The budget would set other epochs."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {epochs: 3, sample_budget: 24}\n")
    line = ["pretrain", "--config", recipe, *QUICK, "--out", tmp_path / "run"]
    assert run(*line) == 2
    message = (
        "map-toy: error: training.epochs 2 has no effect beside training.sample_budget 24 of the recipe, which sets "
        "it: add --training.sample_budget null, or leave --training.epochs out\n"
    )
    assert capsys.readouterr().err == message
    assert run(*line, "--training.sample_budget", "null") == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["training"]["epochs"] == 2


def test_a_warmup_beside_a_budget_of_a_recipe_is_refused(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {sample_budget: 24}\n")
    line = [option for option in QUICK if "training.epochs" not in option]
    assert run("pretrain", "--config", recipe, *line, "--out", tmp_path / "run") == 2
    message = "training.warmup_epochs 0.0 has no effect beside training.sample_budget 24 of the recipe"
    assert message in capsys.readouterr().err


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name", "file"),
    [
        ("map_core.tasks.weights", "save_tensors", "model.safetensors"),
        ("map_core.tasks.weights", "save_json", "model.json"),
        ("map_core.runs.summary", "save_json", "summary.json"),
        ("map_core.runs.pictures", "replacing", "curves.png"),
        ("toy_domain", "draw", "reconstructions.png"),
    ],
)
def test_a_disk_that_is_full_during_the_export_loses_nothing(
    tmp_path, capsys, monkeypatch, module, name, file
):
    """One sentence, untouched checkpoints, and resuming writes what an undisturbed run writes."""
    line, out = ["pretrain", *QUICK], tmp_path / "run"

    def full(*arguments, **more):
        raise FULL

    with monkeypatch.context() as patch:
        if module == "toy_domain":
            full_domain = dataclasses.replace(DOMAIN, draw_picture=full)
            assert (
                main(
                    "map-toy",
                    standard_commands(full_domain, sample="toy"),
                    DOMAIN.recipes,
                    [*line, "--out", str(out)],
                )
                == 2
            )
        else:
            patch.setattr(f"{module}.{name}", full)
            assert run(*line, "--out", out) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == (
        f"map-toy: error: the disk is full ({FULL}) while writing the run in {out}; its checkpoints are unharmed; "
        "make room, then continue with --resume auto"
    )
    assert not (out / file).exists()
    assert find_fault(out / "checkpoints/step_00000006") is None
    assert run(*line, "--out", out, "--resume=auto") == 0
    assert run(*line, "--out", tmp_path / "whole") == 0
    for weights in ("model.safetensors", "pretraining.safetensors"):
        assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


def test_a_signal_during_the_export_is_in_the_status_of_a_finished_run(tmp_path, monkeypatch):
    """So that ``&&`` does not go on, although nothing is lost."""
    original_finish = PretrainTask.finish

    def finish_with_signal(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original_finish(*arguments)

    monkeypatch.setattr(PretrainTask, "finish", finish_with_signal)
    assert run("pretrain", *QUICK, "--out", tmp_path / "run") == 143
    assert json.loads((tmp_path / "run/summary.json").read_text())["interrupted"] is False
    assert (tmp_path / "run/reconstructions.png").exists()


def test_pretrained_weights_are_what_finetuning_learns_classes_from(runs):
    summary = json.loads((runs.finetune / "summary.json").read_text())
    assert summary["test_accuracy"] > 60  # of three classes


@pytest.mark.parametrize(
    ("change", "difference"),
    [("--data.flip=true", "data.flip was False and is True"), ("--data.count=32", "training samples was 24 and is 32")],
)  # fmt: skip
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_resuming_on_other_data_is_refused_by_naming_the_difference(
    tmp_path, capsys, command, change, difference
):
    out = tmp_path / "run"
    assert run(command, *QUICK, "--out", out) == 0
    assert run(command, *QUICK, "--out", out, "--resume=auto", change) == 2
    assert difference in capsys.readouterr().err
    assert run(command, *QUICK, "--out", out, "--resume=auto", "--data.root=moved") == 0


def test_resuming_on_other_classes_is_refused_by_naming_them(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    assert run("finetune", *QUICK, "--out", out) == 0
    monkeypatch.setattr("toy_domain.CLASSES", ("low", "middle", "other"))
    assert run("finetune", *QUICK, "--out", out, "--resume=auto") == 2
    assert f"data.classes was {list(CLASSES)} and is ['low', 'middle', 'other']" in capsys.readouterr().err


def test_a_run_is_resumed_from_the_weights_that_it_started_from_wherever_they_lie(runs, tmp_path, capsys):
    start, moved, out = runs.pretrain / "model.safetensors", tmp_path / "moved.safetensors", tmp_path / "run"
    assert run("finetune", *QUICK, "--init", start, "--out", out) == 0
    moved.write_bytes(start.read_bytes())
    moved.with_suffix(".json").write_bytes(start.with_suffix(".json").read_bytes())
    assert run("finetune", *QUICK, "--init", moved, "--out", out, "--resume=auto") == 0
    capsys.readouterr()
    for other, difference in (([], "is None"), (["--init", runs.finetune], "is 'a file with the SHA-256")):
        config_before = (out / "config.yaml").read_text()
        assert run("finetune", *QUICK, *other, "--out", out, "--resume=auto") == 2
        assert re.search(
            f"init was 'a file with the SHA-256 [0-9a-f]+' and {difference}", capsys.readouterr().err
        )
        assert (out / "config.yaml").read_text() == config_before


# ---- evaluate


@pytest.mark.parametrize("name", ["finetune", "probe"])
def test_evaluating_a_run_repeats_its_last_evaluation(runs, tmp_path, capsys, name):
    out = tmp_path / "evaluated"
    init = getattr(runs, name)
    assert run("evaluate", "--init", init, *RUNNING, "--out", out) == 0
    summary, training_summary = (json.loads((path / "summary.json").read_text()) for path in (out, init))
    output = capsys.readouterr().out
    for metric in ("test_accuracy", "test_accuracy_class_mean", "test_loss"):
        assert summary[metric] == pytest.approx(training_summary[metric], rel=1e-4)
        assert f"{metric:26} {summary[metric]:.4g}\n" in output
    assert output.startswith("evaluated on evaluation split\n")
    assert output.endswith(f"-> {out}/summary.json\n")
    assert (summary["task"], summary["init"], summary["toys"]) == ("evaluate", str(init), 10)
    assert summary["evaluated_on"] == "evaluation split"


def test_an_evaluation_never_replaces_a_training_run(runs, capsys):
    summary_before = (runs.finetune / "summary.json").read_text()
    assert run("evaluate", "--init", runs.finetune, "--out", runs.finetune) == 2
    assert (
        f"{runs.finetune} is a training run, whose summary.json would be replaced" in capsys.readouterr().err
    )
    assert (runs.finetune / "summary.json").read_text() == summary_before


@pytest.mark.parametrize(
    ("files", "is_run"),
    [
        ({"summary.json": '{"task": "pretrain"}'}, True),
        ({"config.yaml": "", "checkpoints/a": ""}, True),
        ({"checkpoints/a": ""}, False),
        ({"summary.json": '{"task": "evaluate"}', "config.yaml": ""}, False),
        ({"summary.json": "{"}, False),
    ],
)
def test_a_training_run_is_told_by_its_checkpoints_or_its_summary(tmp_path, files, is_run):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="is a training run, whose model") if is_run else nullcontext():
        refuse_training_run(tmp_path, replaced="model")


def test_an_encoder_cannot_be_evaluated_as_a_classifier(runs, tmp_path, capsys):
    assert run("evaluate", "--init", runs.pretrain, *RUNNING, "--out", tmp_path / "x") == 2
    assert "does not describe a classifier (its .json says: encoder)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict", "features"])
def test_settings_are_checked_before_a_model_is_loaded(command, tmp_path, capsys):
    files = ["--toys", "3"] if command == "predict" else []
    assert run(command, "--init", tmp_path / "none", *files, "--evaluation.batch_size=0") == 2
    assert "evaluation.batch_size must be at least 1; got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "is_file"),
    [
        ("pretrain", False), ("finetune", False), ("linear-probe", False), ("evaluate", False),
        ("predict", True), ("features", True), ("reconstruct", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["below a file", "of the other kind"])
def test_a_place_that_cannot_be_written_is_refused_before_data_and_model_are_opened(
    command, is_file, place, tmp_path, capsys
):
    """The run that ``--init`` names does not exist, which would otherwise be noticed first."""
    (tmp_path / "file").touch()
    if place == "below a file":
        out, message = (
            tmp_path / "file/out",
            f"cannot write to {tmp_path}/file/out: {tmp_path}/file is a file",
        )
    elif is_file:
        out, message = tmp_path, f"cannot write to {tmp_path}: it is a folder; give --out a file's name"
    else:
        out, message = tmp_path / "file", f"cannot write to {tmp_path}/file: {tmp_path}/file is a file"
    files = ["--toys", "3"] if command == "predict" else []
    assert run(command, "--init", tmp_path / "none", *files, "--out", out) == 2
    assert capsys.readouterr().err.startswith(f"map-toy: error: {message}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", ["pretrain", "finetune", "linear-probe"])
def test_a_run_that_is_there_is_refused_before_data_and_model_are_opened(command, runs, tmp_path, capsys):
    assert run(command, "--init", tmp_path / "none", "--out", runs.pretrain) == 2
    assert f"{runs.pretrain} exists and is not empty; continue that run with" in capsys.readouterr().err


def test_a_picture_of_no_known_format_is_refused_before_the_model_is_loaded(tmp_path, capsys):
    assert run("reconstruct", "--init", tmp_path / "none", "--out", tmp_path / "a.xyz") == 2
    assert "a.xyz: .xyz is not a picture format" in capsys.readouterr().err


def test_features_and_their_score_are_two_files(tmp_path, capsys):
    assert run("features", "--init", tmp_path / "none", "--out", tmp_path / "a.json") == 2
    assert "a.json is where the score of the features goes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "out", "options", "what"),
    [
        ("model.json", "model.npz", (), "score of the features"),  # a run's description
        ("summary.json", "summary", (), "score of the features"),
        ("index.html", "index.npz", ("--report", "--toys", "5"), "page"),
    ],
)
def test_features_replace_no_file_beside_them_that_is_not_theirs(tmp_path, capsys, name, out, options, what):
    (tmp_path / name).write_text('{"task": "pretrain"}')
    assert run("features", "--init", tmp_path / "none", "--out", tmp_path / out, *options) == 2
    assert (
        f"{name}, where the {what} goes, holds something else; give --out another name"
        in capsys.readouterr().err
    )
    assert (tmp_path / name).read_text() == '{"task": "pretrain"}'


def test_a_page_of_features_that_go_to_a_device_is_refused(tmp_path, capsys):
    assert run("features", "--init", tmp_path / "none", "--out", "/dev/null", "--report") == 2
    assert (
        "--report writes a page beside /dev/null, which is no file; give --out a file's name"
        in capsys.readouterr().err
    )


def test_other_classes_are_refused():
    with pytest.raises(
        UserError,
        match=r"the classes of data are not those of run: 2 classes a, c, ... against 2 a, b, ...; eva",
    ):
        refuse_other_classes(["a", "c"], ("a", "b"), data="data", init="run")
    refuse_other_classes(["a", "b"], ("a", "b"), data="data", init="run")


# ---- weights without their run


@pytest.fixture
def weights(runs, tmp_path):
    """The weights of the finetuning run with their description, and nothing else of it."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(runs.finetune / name, folder)
    return folder


@pytest.mark.parametrize("command", ["evaluate", "features", "reconstruct"])
def test_weights_without_a_run_name_no_data_to_measure_on(weights, tmp_path, capsys, command):
    line = [command, "--init", weights, "--out", tmp_path / "out.png"]
    assert run(*line, "--print_config") == 2
    assert run(*line) == 2
    assert (
        capsys.readouterr().err
        == (
            f"map-toy: error: {weights} names no data, as the config.yaml of a run does: give --data.source folder "
            "--data.root FOLDER, or another --data.source\n"
        )
        * 2
    )


@pytest.mark.parametrize("request_", ["--help", "--help-all"])
def test_help_is_shown_whatever_init_lacks(weights, capsys, request_):
    with pytest.raises(SystemExit) as end:
        run("evaluate", "--init", weights, request_)
    assert end.value.code == 0
    assert "--data.root" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("evaluate", ["--data.root=sea"]), ("features", ["--data.root=sea"]), ("features", ["--toys=5"]),
        ("predict", ["--toys=5"]),
    ],
)  # fmt: skip
def test_weights_without_a_run_are_measured_on_other_data(weights, tmp_path, command, options):
    assert run(command, "--init", weights, *options, *RUNNING, "--out", tmp_path / "out") == 0


def test_a_model_of_another_domain_is_refused_before_its_settings(weights, tmp_path, capsys):
    description = json.loads((weights / "model.json").read_text()) | {"name": "cloud", "flip": [3]}
    (weights / "model.json").write_text(json.dumps(description))
    for command in ("pretrain", "finetune", "linear-probe", "evaluate", "predict", "features"):
        assert run(command, "--init", weights, "--out", tmp_path / "out") == 2
        assert f"error: {weights} holds cloud, which is no model of this program" in capsys.readouterr().err


# ---- predict


@pytest.mark.parametrize("top", [1, 2, 5])
def test_predictions_are_the_classifiers(runs, tmp_path, top):
    out = tmp_path / "predictions.csv"
    files = "--toys=['30','31','32','33']"
    assert run("predict", "--init", runs.finetune, files, *RUNNING, "--top", top, "--out", out) == 0
    header, *rows = table(out)
    assert header[:3] == ["toy", "class_1", "probability_1"]
    assert len(header) == 1 + 2 * min(top, 3)
    samples = ToySamples(4, first=30, sign=-1)  # flipped, as the model's inputs were
    model, _ = DOMAIN.models.classifier(runs.finetune)
    with torch.no_grad():
        expected = model(torch.stack([samples[i][0] for i in range(4)])).softmax(1)
    for row, name, probabilities in zip(rows, samples.names, expected, strict=True):
        best = probabilities.argsort(descending=True)[: min(top, 3)].tolist()
        assert row[0] == name
        assert row[1::2] == [CLASSES[i] for i in best]
        assert [float(cell) for cell in row[2::2]] == pytest.approx(probabilities[best].tolist(), abs=2e-6)


# ---- features


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_features_of_a_runs_splits_are_pooled_and_scored(runs, tmp_path, name):
    out, init = tmp_path / "features.npz", getattr(runs, name)
    assert run("features", "--init", init, *RUNNING, "--neighbors=3", "--out", out) == 0
    arrays, model = np.load(out), DOMAIN.models.encoder(init)
    for split, samples in (("train", ToySamples(24, sign=-1)), ("test", ToySamples(10, first=1000, sign=-1))):
        inputs = torch.stack([samples[i][0] for i in range(len(samples))])
        with torch.no_grad():
            expected = model.forward_features(inputs).mean(1).numpy()
        np.testing.assert_allclose(arrays[f"{split}_features"], expected, rtol=1e-4, atol=1e-5)
        assert arrays[f"{split}_names"].tolist() == samples.names
    score = json.loads(out.with_suffix(".json").read_text())
    assert (score["neighbors"], score["data"]) == (3, "toys for features")


def test_features_that_go_to_a_device_have_their_score_on_stderr(runs, capsys):
    read, write = os.pipe()  # which holds the few features until they are read
    with open(read, "rb") as reader:
        with open(write, "wb"):
            out = f"/dev/fd/{write}"
            assert run("features", "--init", runs.finetune, *RUNNING, "--neighbors=3", "--out", out) == 0
        assert len(np.load(io.BytesIO(reader.read()))["train_features"]) == 24
    output = capsys.readouterr()
    assert output.out == ""
    assert re.search(r"^kNN accuracy \(3 neighbours\): [\d.]+ % on [\w ]+$", output.err, re.MULTILINE)


def test_features_of_files_have_neither_labels_nor_a_score(runs, tmp_path):
    out = tmp_path / "features.npz"
    assert run("features", "--init", runs.pretrain, "--toys=['5','6']", *RUNNING, "--out", out) == 0
    arrays = np.load(out)
    assert set(arrays) == {"features", "names"}
    assert arrays["features"].shape == (2, 12)
    assert arrays["names"].tolist() == ["sample 5", "sample 6"]
    assert not out.with_suffix(".json").exists()


# ---- reconstruct


@pytest.mark.parametrize(
    ("options", "samples", "ratio", "seed"),
    [
        ([], ToySamples(24, sign=-1), None, 0),
        (["--split=test", "--seed=3"], ToySamples(10, first=1000, sign=-1), None, 3),
        (["--toys=['40','41','42','43']", "--mask_ratio=0.25"], ToySamples(4, first=40, sign=-1), 0.25, 0),
    ],
    ids=["training split", "evaluation split", "files"],
)
def test_the_picture_shows_what_the_trained_objective_makes_of_the_samples(
    runs, tmp_path, capsys, options, samples, ratio, seed
):
    out = tmp_path / "new/picture.png"
    assert run("reconstruct", "--init", runs.pretrain, *options, "--out", out) == 0
    step = len(samples) // 4  # four rows, spread over the samples
    inputs = torch.stack([samples[i][0] for i in range(0, len(samples), step)][:4])
    objective = load_objective(DOMAIN, runs.pretrain).objective
    expected = hide_and_reconstruct(objective, inputs, ratio=ratio, seed=seed).prediction
    assert np.array_equal(np.load(out), expected.numpy())
    assert capsys.readouterr().out == f"4 toys -> {out}\n"


def test_a_picture_on_a_full_disk_is_reported_in_one_sentence(runs, tmp_path, capsys):
    out, limits = tmp_path / "picture.png", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert run("reconstruct", "--init", runs.pretrain, "--out", out) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = rf"map-toy: error: cannot write {out} \(.*\); check that disk, then repeat the command\n"
    assert re.fullmatch(message, capsys.readouterr().err)


@pytest.mark.parametrize("command", ["evaluate", "predict", "features", "reconstruct", "finetune"])
def test_a_run_that_cannot_be_reached_is_named(tmp_path, capsys, command):
    files = ["--toys", "1"] if command == "predict" else []
    assert run(command, "--init", "a" * 300, "--out", tmp_path / "out.png", *files) == 2
    assert "error: cannot read aaa" in (message := capsys.readouterr().err)
    assert "a (File name too long): make it readable, or give another path" in message


@pytest.mark.parametrize(
    ("command", "option"), [("reconstruct", "count"), ("features", "neighbors"), ("predict", "top")]
)
def test_counts_below_one_are_refused(command, option, tmp_path, capsys):
    files = ["--toys", "3"] if command == "predict" else []
    assert run(command, "--init", tmp_path / "none", *files, f"--{option}=0") == 2
    assert (
        capsys.readouterr().err == f"map-toy: error: {option} must be at least 1; got 0; change --{option}\n"
    )


def test_a_share_to_hide_outside_its_range_is_refused_before_the_model_is_loaded(tmp_path, capsys):
    assert run("reconstruct", "--init", tmp_path / "none", "--mask_ratio=1.5") == 2
    assert "mask_ratio must lie in [0, 1); got 1.5; change --mask_ratio" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "predict", "features"])
def test_an_unknown_device_is_refused_before_the_model_is_loaded(command, tmp_path, capsys):
    files = ["--toys", "3"] if command == "predict" else []
    assert run(command, "--init", tmp_path / "none", *files, "--evaluation.device=gpu") == 2
    message = (
        "map-toy: error: --evaluation.device must be one of auto, cpu, cuda; got 'gpu'; did you mean cpu?\n"
    )
    assert capsys.readouterr().err == message


# ---- info, and how commands are put together


def test_info_lists_versions_devices_and_models(capsys):
    assert run("info") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "versions"
    assert f"  {'torch':14} {importlib.metadata.version('torch')}" in lines
    assert lines[-2] == "models (parameters at 3 classes)"
    parameters = sum(
        value.numel() for value in DOMAIN.models.create_classifier(ToyModelConfig("toy"), 3).parameters()
    )
    assert lines[-1].split() == ["toy", f"{parameters:,}"]
    assert any("torch.utils.flop_counter.FlopCounterMode counts" in line for line in lines)


@pytest.mark.parametrize("setting", ["--model.embed_dim=12", "--model.name=other"])
def test_info_refuses_a_model_whose_costs_it_shall_not_count(capsys, setting):
    assert run("info", setting) == 2
    option = setting.replace("=", " ")
    message = f"map-toy: error: {option} has no effect without --flops: add --flops\n"
    assert capsys.readouterr().err == message


def test_info_counts_what_a_model_costs(capsys):
    assert run("info", "--flops", "--model.embed_dim=12") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "toy, one toy of 4 x 3 x 4"
    for form in ("classifier of 3", "encoder, all patches"):
        (row,) = (line for line in lines if form in line)
        assert row.split()[-1] == "12"  # tokens
    assert any(line.split()[0] == "scans" for line in lines)


def test_files_are_given_by_the_name_of_the_domains_samples():
    config_classes = configs(DOMAIN)
    for config_class in (config_classes.predict, config_classes.features, config_classes.reconstruct):
        assert "toys" in config_class.__dataclass_fields__
    assert config_classes.reconstruct.__dataclass_fields__["count"].default == DOMAIN.rows
    assert configs(DOMAIN) is config_classes, "made twice, its classes would differ"


def test_a_probe_needs_an_encoder_and_has_a_directory_of_its_own(capsys):
    assert run("linear-probe", *QUICK) == 2
    assert "missing --init; add --init VALUE" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("linear-probe", "--help")
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "--init (text; required)" in lines
    outs = [
        getattr(configs(DOMAIN), name).__dataclass_fields__["out"].default
        for name in ("pretrain", "finetune", "linear_probe")
    ]
    assert outs == ["runs/pretrain", "runs/finetune", "runs/linear-probe"]


def test_every_command_is_there_once_in_the_order_of_the_help():
    assert [command.name for command in standard_commands(DOMAIN, sample="toy")] == [
        "pretrain", "finetune", "linear-probe", "evaluate", "predict", "features", "reconstruct", "info",
    ]  # fmt: skip


def test_defaults_of_a_run_are_its_settings_by_dotted_key(runs):
    explicit = {"init": str(runs.pretrain)}
    assert data_of_run(DOMAIN, explicit) == {"data.count": 24, "data.root": "toys", "data.flip": True}
    assert model_of_run(DOMAIN, explicit) == {"model.name": "toy", "model.embed_dim": 12, "data.flip": True}
    assert ToyDataConfig().flip is False
    assert ToyModelConfig().embed_dim is None


def test_without_a_run_there_are_no_defaults_of_one():
    assert data_of_run(DOMAIN, {}) == {}
    assert model_of_run(DOMAIN, {}) == {}
