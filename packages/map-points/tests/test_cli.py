"""The command line as a user meets it: chains of commands, and the sentence that each mistake gives."""

import csv
import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import matplotlib.image
import numpy as np
import pytest
import torch

import map_core.commands.program
import map_core.commands.results
from map_core.tasks.weights import read_weights
from map_points import domain, evaluation
from map_points.cli import COMMANDS
from map_points.data import CloudSamples, PointDataConfig, read_cloud_files
from map_points.data.shapes import CLASSES
from map_points.domain import DOMAIN
from map_points.factory import MODELS
from map_points.segmentation.task import SegmentConfig, SegmentTask

SHORT = (
    "--training.batch_size=4",
    "--training.max_steps=2",
    "--training.workers=0",
    "--training.device=cpu",
    "--training.log_steps=1",
    "--training.progress=false",
    "--training.tensorboard=false",
)
SMALL = (
    "--model.embed_dim=16",
    "--model.patch_hidden_dim=8",
    "--model.num_heads=2",
    "--model.num_patches=16",
    "--model.patch_size=8",
    "--data.num_points=64",
)
SMALL_OBJECTIVE = ("--objective.decoder_depth=1", "--objective.decoder_dim=16", "--objective.decoder_heads=2")
QUIET = ("--evaluation.progress", "false")


@dataclass(frozen=True)
class Runs:
    """Directories of finished runs."""

    pretrained: Path
    finetuned: Path
    probed: Path


def run(*arguments):
    """Run ``map-points`` in this process and return its exit status."""
    return map_core.commands.program.main(
        DOMAIN.program, COMMANDS, DOMAIN.recipes, [str(argument) for argument in arguments]
    )


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("fewshot", "--out"), ("segment", "--out"), ("write-part-shapes", "--out"),
        ("study", "--out"), ("study", "--results"), ("study-report", "--out"), ("study-report", "--report"),
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_written_is_refused_before_the_work(command, option, tmp_path, capsys):
    """The data and the study do not exist either, which would otherwise be noticed first."""
    (tmp_path / "file").touch()
    place = tmp_path / "file/place"
    others = {
        "fewshot": ["--data.source=fewshot_pkl", f"--data.root={tmp_path}/none"],
        "segment": ["--data.source=shapenetpart", f"--data.root={tmp_path}/none"],
        "write-part-shapes": [],
    }
    assert run(command, *others.get(command, ["--study", tmp_path / "none.yaml"]), option, place) == 2
    message = (
        f"map-points: error: cannot write to {place}: {tmp_path}/file is a file; choose another {option}\n"
    )
    assert capsys.readouterr().err == message


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretraining run on the embedded shapes, and a finetuning and a probing run from it, by the commands."""
    pytest.importorskip("trimesh")
    root = tmp_path_factory.mktemp("runs")
    shrink = [*SHORT, *SMALL, "--model.layout=MT", "--data.shapes_per_class=2"]
    warm = "--training.warmup_epochs=0"
    pretrained, finetuned, probed = root / "pre", root / "fine", root / "probe"
    first = ("pretrain", "--config", "pretrain_shapes", *SMALL_OBJECTIVE, "--out", pretrained)
    assert run(*first, *shrink, warm) == 0
    second = ("--config", "finetune_shapes", *shrink, warm, "--init", pretrained)
    assert run("finetune", *second, "--out", finetuned) == 0
    assert run("linear-probe", *second, "--out", probed) == 0
    return Runs(pretrained, finetuned, probed)


@pytest.fixture(scope="module")
def segmented(runs, two_part_shapes, tmp_path_factory):
    """A segmentation run on two-part shapes, started from the pretraining run."""
    out = tmp_path_factory.mktemp("segmented") / "run"
    shrink = [*SHORT, *SMALL, "--model.layout=MT", "--objective.hidden_dim=16", "--training.warmup_epochs=0"]
    first = ("segment", "--config", "segment_shapes", "--data.root", two_part_shapes)
    assert run(*first, *shrink, "--init", runs.pretrained, "--out", out) == 0
    return out


@pytest.fixture
def clouds(tmp_path):
    """A folder of three cloud files of 70 to 72 points."""
    rng = np.random.default_rng(0)
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", rng.normal(size=(70 + i, 3)))
    return tmp_path


def inputs_of(clouds):
    samples = CloudSamples(read_cloud_files(str(clouds)), PointDataConfig(num_points=64), training=False)
    return torch.stack([samples[i][0] for i in range(len(samples))])


@pytest.mark.parametrize("name", ["finetuned", "probed"])
def test_evaluate_repeats_the_end_of_training(runs, name, tmp_path, capsys):
    training_summary = summary_of(getattr(runs, name))
    assert run("evaluate", "--init", getattr(runs, name), "--out", tmp_path, *QUIET) == 0
    summary = summary_of(tmp_path)
    assert summary["protocol"].startswith("no_vote: ")
    assert summary["clouds"] == 200
    assert summary["evaluated_on"] == "test split"
    for measure in ("test_accuracy", "test_accuracy_top5", "test_accuracy_class_mean"):
        assert summary[measure] == pytest.approx(training_summary[measure])
    assert summary["test_loss"] == pytest.approx(training_summary["test_loss"], rel=1e-4)
    assert f"test_accuracy              {training_summary['test_accuracy']:.4g}" in capsys.readouterr().out


def test_eight_classes_are_also_measured_among_five(runs):
    summary = summary_of(runs.finetuned)
    model, _ = MODELS.classifier(runs.finetuned)
    data = DOMAIN.open_data(
        PointDataConfig(num_points=64), MODELS.read_model_config(runs.finetuned), "evaluate"
    ).evaluation
    with torch.no_grad():
        scores = model(torch.stack([data[i][0] for i in range(200)]))
    labels = torch.arange(200) // 25
    is_in_top5 = (scores.topk(5, dim=1).indices == labels[:, None]).any(1)
    assert summary["test_accuracy_top5"] == pytest.approx(100 * float(is_in_top5.float().mean()), abs=0.51)
    assert summary["test_accuracy"] == pytest.approx(
        100 * float((scores.argmax(1) == labels).float().mean()), abs=0.51
    )


def test_evaluate_names_its_protocol(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "VOTES", 2)
    options = ("--evaluation.protocol", "vote_10")
    assert run("evaluate", "--init", runs.finetuned, "--out", tmp_path, *QUIET, *options) == 0
    assert summary_of(tmp_path)["protocol"].startswith("vote_10: ")
    assert "vote_10: " in capsys.readouterr().out


def test_evaluate_computes_in_bf16_when_asked_to(runs, tmp_path):
    for precision in ("fp32", "bf16"):
        options = ("--evaluation.precision", precision, "--out", tmp_path / precision)
        assert run("evaluate", "--init", runs.finetuned, *QUIET, *options) == 0
    exact, rounded = (summary_of(tmp_path / precision)["test_loss"] for precision in ("fp32", "bf16"))
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact


def test_the_best_of_many_rounds_is_named_for_what_it_is(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "ROUNDS", 2)
    monkeypatch.setattr(evaluation, "VOTES", 2)
    summaries = {}
    for protocol in ("vote_10", "best_of_299"):
        options = ("--out", tmp_path / protocol, "--evaluation.protocol", protocol)
        assert run("evaluate", "--init", runs.finetuned, *QUIET, *options) == 0
        summaries[protocol] = summary_of(tmp_path / protocol)
    assert "selects on the test split" in summaries["best_of_299"]["protocol"]
    assert summaries["best_of_299"]["test_accuracy"] >= summaries["vote_10"]["test_accuracy"]


def test_evaluating_on_other_classes_is_refused(runs, tmp_path, capsys):
    points = np.random.default_rng(0).normal(size=(1, 64, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", test_x=points, test_y=np.zeros(1, dtype=np.int64), classes=np.array(["a"]))
    options = ("--data.source", "modelnet40_npz", "--data.root", tmp_path / "d.npz", "--out", tmp_path / "e")
    assert run("evaluate", "--init", runs.finetuned, *options) == 2
    assert "1 classes a, ... against 8 annulus" in capsys.readouterr().err


def test_segmentation_starts_from_the_pretrained_encoder(runs, two_part_shapes):
    config = SegmentConfig(
        data=PointDataConfig("shapenetpart", str(two_part_shapes)),
        model=MODELS.read_model_config(runs.pretrained),
        init=str(runs.pretrained),
    )
    state = SegmentTask(config).model.state_dict()
    for name, value in read_weights(runs.pretrained).items():
        assert torch.equal(state[f"backbone.{name}"], value)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluate_repeats_a_segmentation_run(segmented, tmp_path, precision):
    options = ("--evaluation.precision", precision)
    assert run("evaluate", "--init", segmented, "--out", tmp_path, *QUIET, *options) == 0
    training_summary, summary = summary_of(segmented), summary_of(tmp_path)
    for name in ("test_instance_miou", "test_class_miou", "test_point_accuracy"):
        assert summary[name] == pytest.approx(training_summary[name], abs=1e-3 if precision == "fp32" else 3)
    assert summary["evaluated_on"] == "test split"


def test_a_full_disk_ends_the_evaluation_of_a_segmenter_in_one_sentence(
    segmented, tmp_path, monkeypatch, capsys
):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(map_core.commands.results, "write_summary", Mock(side_effect=full))
    assert run("evaluate", "--init", segmented, "--out", tmp_path, *QUIET) == 2
    errors = capsys.readouterr().err
    assert (
        f"cannot write the measures into {tmp_path} (No space left on device); make room, then repeat"
        in errors
    )
    assert "Traceback" not in errors


def test_a_full_disk_ends_the_measuring_of_channels_in_one_sentence(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32))
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("map_points.data.statistics.save_json", Mock(side_effect=full))
    data = ("--data.source=folder", f"--data.root={tmp_path}", "--data.channels=[intensity]")
    data += ("--data.columns=[x, y, z, intensity]",)
    out = tmp_path / "s.json"
    assert run("statistics", *data, "--progress=false", "--out", out) == 2
    message = f"cannot write {out} (No space left on device); make room, then repeat the command"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["finetuned", "probed"])
def test_a_copied_model_prepares_clouds_as_its_run(runs, name, clouds):
    """They have fewer points than the default of data.num_points."""
    (clouds / "copy").mkdir()
    for ending in ("json", "safetensors"):
        shutil.copy(getattr(runs, name) / f"model.{ending}", clouds / "copy")
    for number, init in enumerate((getattr(runs, name), clouds / "copy")):
        options = ("--clouds", clouds, *QUIET, "--out", clouds / f"out/{number}.csv")
        assert run("predict", "--init", init, *options) == 0
    assert (clouds / "out/0.csv").read_text() == (clouds / "out/1.csv").read_text()


def test_a_copied_segmenter_prepares_clouds_as_its_run(segmented, two_part_shapes, tmp_path):
    (tmp_path / "copy").mkdir()
    for ending in ("json", "safetensors"):
        shutil.copy(segmented / f"model.{ending}", tmp_path / "copy")
    source = ("--data.source=shapenetpart", "--data.root", two_part_shapes)
    assert run("evaluate", "--init", tmp_path / "copy", *source, *QUIET, "--out", tmp_path / "e") == 0
    measured, trained = summary_of(tmp_path / "e"), summary_of(segmented)
    assert measured["test_instance_miou"] == pytest.approx(trained["test_instance_miou"], abs=1e-3)


def test_a_run_on_files_is_evaluated_on_the_embedded_shapes(runs, tmp_path):
    copy = shutil.copytree(runs.finetuned, tmp_path / "run")
    config = copy / "config.yaml"
    text = config.read_text().replace("source: shapes", "source: folder").replace("root: null", "root: gone")
    config.write_text(text.replace("eval_split: null", "eval_split: val"))
    options = ("--data.source=shapes", *QUIET, "--out", tmp_path / "e")
    assert run("evaluate", "--init", copy, *options) == 0
    measured, trained = summary_of(tmp_path / "e"), summary_of(runs.finetuned)
    assert measured["test_accuracy"] == pytest.approx(trained["test_accuracy"])


@pytest.mark.parametrize("scaling", ["statistics=s.json", "channel_mean=[1.0]"])
def test_channels_are_measured_as_in_their_files(scaling, tmp_path, capsys):
    data = (
        "--data.source=folder",
        f"--data.root={tmp_path}",
        "--data.channels=[intensity]",
        f"--data.{scaling}",
    )
    std = ["--data.channel_std=[1.0]"] if scaling.startswith("channel_mean") else []
    assert run("statistics", *data, *std, "--out", tmp_path / "out.json") == 2
    message = "has no effect with statistics, which are of channels as in the files: leave it out"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["finetuned", "probed"])
def test_predict_writes_classes_and_probabilities(runs, name, clouds):
    out = clouds / "a" / "p.csv"
    options = ("--clouds", clouds, "--top", 2, *QUIET, "--out", out)
    assert run("predict", "--init", getattr(runs, name), *options) == 0
    rows = list(csv.DictReader(out.open()))
    assert [row["cloud"] for row in rows] == [str(clouds / f"{i}.npy") for i in range(3)]
    model, classes = MODELS.classifier(getattr(runs, name))
    expected = model(inputs_of(clouds)).softmax(1).detach()
    for row, probability in zip(rows, expected, strict=True):
        best = probability.topk(2)
        assert [row["class_1"], row["class_2"]] == [classes[i] for i in best.indices]
        assert float(row["probability_1"]) == pytest.approx(float(best.values[0]), abs=1e-5)


@pytest.mark.parametrize(("name", "width"), [("pretrained", 16), ("finetuned", 32), ("probed", 16)])
def test_features_of_files_are_what_a_head_reads(runs, name, width, clouds):
    out = clouds / "f.npz"
    assert run("features", "--init", getattr(runs, name), "--clouds", clouds, *QUIET, "--out", out) == 0
    model = MODELS.encoder(getattr(runs, name))
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(inputs_of(clouds)), pre_logits=True)
    with np.load(out) as arrays:
        assert arrays["features"].shape == (3, width)
        np.testing.assert_allclose(arrays["features"], expected.numpy(), rtol=1e-4, atol=1e-5)
        assert arrays["names"].tolist() == [str(clouds / f"{i}.npy") for i in range(3)]


def test_features_of_the_runs_own_data(runs, tmp_path, capsys):
    out = tmp_path / "f.npz"
    assert run("features", "--init", runs.finetuned, *QUIET, "--out", out) == 0
    with np.load(out) as arrays:
        assert arrays["train_features"].shape == (16, 32)
        assert arrays["test_features"].shape == (200, 32)
        assert arrays["train_labels"].tolist() == [i // 2 for i in range(16)]
        assert arrays["test_labels"].tolist() == [i // 25 for i in range(200)]
        assert arrays["classes"].tolist() == list(CLASSES)
    output = capsys.readouterr().out
    score = json.loads(out.with_suffix(".json").read_text())["knn_accuracy"]
    assert f"neighbours, every training sample): {score:.2f} %" in output


@pytest.fixture
def draw_calls(monkeypatch):
    """The clouds and settings that ``reconstruct`` passes on to be drawn, call by call."""
    calls = []
    draw = domain.draw_reconstructions

    def remember(objective, points, path, **settings):
        calls.append((points, settings))
        draw(objective, points, path, **settings)

    monkeypatch.setattr(domain, "draw_reconstructions", remember)
    return calls


def test_reconstruct_draws_clouds_of_files(runs, clouds, draw_calls, capsys):
    out = clouds / "a" / "r.png"
    options = ("--clouds", clouds, "--mask_ratio", 0.25, "--seed", 3, "--out", out)
    assert run("reconstruct", "--init", runs.pretrained, *options) == 0
    ((points, settings),) = draw_calls
    assert torch.equal(points, inputs_of(clouds))
    assert (settings["ratio"], settings["seed"]) == (0.25, 3)
    assert f"3 clouds -> {out}" in capsys.readouterr().out
    assert matplotlib.image.imread(out)[..., :3].std() > 0


@pytest.mark.parametrize(("split", "length"), [("train", 16), ("test", 200)])
def test_reconstruct_draws_the_runs_own_clouds(runs, tmp_path, draw_calls, split, length):
    options = ("--split", split, "--count", 2, "--out", tmp_path / "r.png")
    assert run("reconstruct", "--init", runs.pretrained, *options) == 0
    config = PointDataConfig(num_points=64, shapes_per_class=2)
    data = DOMAIN.open_data(config, MODELS.read_model_config(runs.pretrained), "features")
    samples = data.plain_train if split == "train" else data.evaluation
    assert torch.equal(draw_calls[0][0], torch.stack([samples[i][0] for i in (0, length // 2)]))
    assert draw_calls[0][1]["up_axis"] == "z"


def test_write_part_shapes_says_how_to_go_on(tmp_path, capsys):
    options = ("--train", 1, "--val", 1, "--test", 1, "--points", 50)
    assert run("write-part-shapes", *options, "--out", tmp_path / "set") == 0
    assert f"--data.root {tmp_path / 'set'}" in capsys.readouterr().out


def test_a_head_for_other_classes_is_reinitialised(runs, tmp_path, capsys):
    points = np.random.default_rng(0).normal(size=(8, 64, 3)).astype(np.float32)
    classes, labels = np.array([f"other_{i}" for i in range(8)]), np.arange(8)
    np.savez(
        tmp_path / "d.npz", train_x=points, train_y=labels, test_x=points, test_y=labels, classes=classes
    )
    source = ("--data.source", "modelnet40_npz", "--data.root", tmp_path / "d.npz", "--data.num_points=64")
    frozen = ("--training.lr=1e-12", "--training.weight_decay=0", "--training.warmup_epochs=0")
    out = tmp_path / "run"
    assert run("finetune", "--init", runs.finetuned, *source, *SHORT, *frozen, "--out", out) == 0
    assert "annulus, box, capsule, cone, ... apart" in capsys.readouterr().out
    before, after = read_weights(runs.finetuned), read_weights(out)
    encoder = "encoder.blocks.0.mixer.in_proj.weight"
    torch.testing.assert_close(after[encoder], before[encoder], rtol=0, atol=1e-9)
    assert not torch.allclose(after["head.0.weight"], before["head.0.weight"])


def test_info_lists_the_models(capsys):
    assert run("info") == 0
    output = capsys.readouterr().out
    for words in (("mamba3d", "16,934,184"), ("hybridnet3d", "19,298,088"), ("torch", "available")):
        assert any(line.split()[:2] == list(words) for line in output.splitlines())


MISTAKES = {
    "patches of no width": (
        ["pretrain", "--config", "pretrain_shapes", "--model.patch_hidden_dim", "1", "--out", "{tmp}/p"],
        "patch_hidden_dim must be at least 2",
    ),
    "evaluate an encoder": (
        ["evaluate", "--init", "{pretrained}", "--out", "{tmp}/e"],
        "does not describe a classifier",
    ),
    "evaluate into a run": (
        ["evaluate", "--init", "{finetuned}", "--out", "{finetuned}"],
        "is a training run, whose summary.json",
    ),
    "evaluate in no batches": (
        ["evaluate", "--init", "{finetuned}", "--evaluation.batch_size", "0", "--out", "{tmp}/e"],
        "evaluation.batch_size must be at least 1; got 0",
    ),
    "evaluate with votes on parts": (
        ["evaluate", "--init", "{segmented}", "--evaluation.protocol", "vote_10", "--out", "{tmp}/e"],
        "segmentation has no_vote only",
    ),
    "reconstruct by a classifier": (
        ["reconstruct", "--init", "{finetuned}"],
        "reconstruction needs the decoder",
    ),
    "reconstruct nothing": (
        ["reconstruct", "--init", "{pretrained}", "--count", "0"],
        "count must be at least 1; got 0",
    ),
    "predict by an encoder": (
        ["predict", "--init", "{pretrained}", "--clouds", "{tmp}"],
        "does not describe a classifier",
    ),
    "predict by a segmenter": (
        ["predict", "--init", "{segmented}", "--clouds", "{tmp}"],
        "is a part segmenter, and this needs a classifier or an encoder: measure it with the command evaluate, or read",
    ),
    "features by a segmenter": (
        ["features", "--init", "{segmented}", "--clouds", "{tmp}", "--out", "{tmp}/f.npz"],
        "is a part segmenter, and this needs a classifier or an encoder",
    ),
    "predict no classes": (
        ["predict", "--init", "{finetuned}", "--clouds", "{tmp}", "--top", "0"],
        "top must be at least 1; got 0",
    ),
    "predict small clouds": (
        ["predict", "--init", "{finetuned}", "--clouds", "{tmp}/small.npy"],
        "small.npy has 10 points, fewer than data.num_points (64)",
    ),
    "predict by the best round": (
        [
            "predict",
            "--init",
            "{finetuned}",
            "--clouds",
            "{tmp}/0.npy",
            "--evaluation.protocol",
            "best_of_299",
        ],
        "chooses a round by labels",
    ),
    "features of no neighbours": (
        ["features", "--init", "{pretrained}", "--neighbors", "0"],
        "neighbors must be at least 1; got 0",
    ),
    "features with votes": (
        ["features", "--init", "{pretrained}", "--evaluation.protocol", "vote_10"],
        "evaluation.protocol vote_10 has no effect with features, which are read once, without votes: leave it at no_v",
    ),
    "neighbours of files": (
        ["features", "--init", "{pretrained}", "--clouds", "{tmp}/0.npy", "--neighbors", "5"],
        "neighbors 5 has no effect with --clouds, which have no labels to score by: leave it at 20",
    ),
    "a split of files": (
        ["reconstruct", "--init", "{pretrained}", "--clouds", "{tmp}/0.npy", "--split", "test"],
        "split test has no effect with --clouds: leave it at train",
    ),
    "features of no run": (["features", "--init", "{tmp}"], "no weights at"),
    "features of weights alone": (
        ["features", "--init", "{alone}"],
        "names no data, as the config.yaml of a run does: give --data.source folder --data.root FOLDER, or another",
    ),
    "finetune a model of images": (
        ["finetune", "--config", "finetune_shapes", "--init", "{image}", "--out", "{tmp}/f"],
        "holds hybridnet_nano_patch4_32, which is no model of this program: use map-vision for models of images",
    ),
    "predict by a model of images": (
        ["predict", "--init", "{image}", "--clouds", "{tmp}/0.npy"],
        "holds hybridnet_nano_patch4_32, which is no model of this program: use map-vision for models of images",
    ),
    "probe nothing": (
        ["linear-probe", "--config", "finetune_shapes", "--out", "{tmp}/p"],
        "missing --init; add --init VALUE",
    ),
    "smooth too much": (
        ["finetune", "--config", "finetune_shapes", "--objective.smoothing", "1", "--out", "{tmp}/f"],
        "objective.smoothing must lie in [0, 1); got 1",
    ),
    "segment no data": (["segment", "--config", "segment_shapes", "--out", "{tmp}/s"], "give --data.root"),
    "an unknown recipe": (
        ["pretrain", "--config", "pretrain_shape"],
        "unknown recipe 'pretrain_shape'; did you mean",
    ),
    "an unknown order": (
        ["pretrain", "--config", "pretrain_shapes", "--model.order", "hilbrt"],
        "model.order",
    ),
    "another command's recipe": (
        ["segment", "--config", "fewshot_modelnet40"],
        "is a recipe for the command fewshot",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_sentence(runs, segmented, clouds, tmp_path, monkeypatch, capsys, mistake):
    monkeypatch.chdir(tmp_path)  # what a command writes when --out is left out
    np.save(clouds / "small.npy", np.random.default_rng(0).normal(size=(10, 3)))
    arguments, message = MISTAKES[mistake]
    image = {"name": "hybridnet_nano_patch4_32", "holds": "classifier", "classes": ["a", "b"], "channels": 3}
    for name, description in (("alone", MODELS.describe(MODELS.config())), ("image", image)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_text(json.dumps(description))
    folders = {"alone": tmp_path / "alone", "image": tmp_path / "image"}
    names = {"tmp": clouds, "segmented": segmented, **folders, **vars(runs)}
    assert run(*(argument.format(**names) for argument in arguments)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
