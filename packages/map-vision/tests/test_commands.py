"""The command line as a user meets it: chains of commands, and the sentence that each mistake gives."""

import csv
import json
import sys
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

import map_vision.cli
from map_vision.registry import MODEL_NAMES

MODEL = [
    "--model.name=hybridnet_tiny_patch16_224",
    "--model.img_size=16",
    "--model.patch_size=4",
    "--model.embed_dim=16",
    "--model.layout=MT",
    "--model.num_heads=2",
    "--model.num_registers=2",
]
SHORT = [
    "--training.epochs=2",
    "--training.max_steps=3",
    "--training.batch_size=8",
    "--training.warmup_epochs=0",
    "--training.workers=0",
    "--training.progress=false",
    "--training.tensorboard=false",
    "--training.device=cpu",
]
QUICK = ["--evaluation.workers=0", "--evaluation.progress=false", "--evaluation.device=cpu"]
DECODER = ["--objective.decoder_dim=16", "--objective.decoder_depth=1", "--objective.decoder_heads=2"]
OF_EVERY_RUN = {"task", "seconds", "samples_per_second", "peak_memory_bytes", "versions", "commit"}


def command(*arguments):
    """Run ``map-vision`` in this process and return its exit status."""
    with patch.object(sys, "argv", ["map-vision", *map(str, arguments)]):
        return map_vision.cli.main()


def summary(directory):
    return json.loads((directory / "summary.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory, image_folder):
    """Pretrain, finetune from it, and probe it, on the image folder."""
    root = tmp_path_factory.mktemp("runs")
    data = ["--data.root", image_folder]
    init = ["--init", root / "pretrain"]
    assert command("pretrain", *data, *MODEL, *SHORT, *DECODER, "--out", root / "pretrain") == 0
    assert command("finetune", *data, *MODEL, *SHORT, *init, "--out", root / "finetune") == 0
    assert command("linear-probe", *data, *SHORT, *init, "--out", root / "linear-probe") == 0
    return root


class TestRuns:
    def test_pretraining_run_explains_itself(self, runs):
        run = runs / "pretrain"
        found = summary(run)
        assert set(found) >= OF_EVERY_RUN | {"loss"}
        assert found["task"] == "pretrain"
        assert 0 < found["loss"] < 10
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["model"]["layout"] == "MT"
        assert config["objective"]["decoder_dim"] == 16
        assert not any(key.startswith(("decoder", "head")) for key in load_file(run / "model.safetensors"))
        for name in ("metrics.jsonl", "curves.png", "reconstructions.png", "pretraining.safetensors"):
            assert (run / name).stat().st_size > 0

    def test_averaged_weights_are_evaluated_on_the_runs_data(self, runs, image_folder, tmp_path):
        run, data = tmp_path / "run", ["--data.root", image_folder]
        assert command("finetune", *data, *MODEL, *SHORT, "--training.ema_decay=0.5", "--out", run) == 0
        init = ["--init", run / "model_ema.safetensors"]
        assert command("evaluate", *init, *QUICK, "--out", tmp_path / "evaluate") == 0
        of_average = summary(run)["ema_test_loss"]
        assert summary(tmp_path / "evaluate")["test_loss"] == pytest.approx(of_average, rel=1e-4)
        assert of_average != summary(run)["test_loss"]

    @pytest.mark.parametrize("name", ["finetune", "linear-probe"])
    def test_classifier_run_explains_itself(self, runs, name):
        found = summary(runs / name)
        assert set(found) >= OF_EVERY_RUN | {"test_accuracy", "test_loss"}
        assert found["task"] == name
        described = json.loads((runs / name / "model.json").read_text())
        assert described["classes"] == ["bright", "dark", "gray"]

    @pytest.mark.parametrize("name", ["finetune", "linear-probe"])
    def test_evaluation_repeats_the_end_of_training(self, runs, name, tmp_path, capsys):
        at_end = summary(runs / name)
        for init in (runs / name, runs / name / "model.safetensors"):
            out = tmp_path / init.name
            assert command("evaluate", "--init", init, *QUICK, "--out", out) == 0
            found = summary(out)
            assert found["test_accuracy"] == at_end["test_accuracy"]
            assert found["test_loss"] == pytest.approx(at_end["test_loss"], rel=1e-4)
            assert set(found) >= OF_EVERY_RUN | {"images"}
            assert found["images"] == 12
        assert f"test_accuracy        {at_end['test_accuracy']:.4g}" in capsys.readouterr().out

    def test_prediction_agrees_with_evaluation(self, runs, image_folder, tmp_path):
        out = tmp_path / "predictions.csv"
        images = image_folder / "val"
        assert command("predict", "--init", runs / "finetune", "--images", images, *QUICK, "--out", out) == 0
        rows = list(csv.DictReader(out.open()))
        assert len(rows) == 12
        right = sum(f"/{row['class_1']}/" in row["image"] for row in rows)
        assert 100 * right / 12 == pytest.approx(summary(runs / "finetune")["test_accuracy"])
        for row in rows:
            assert sum(float(row[f"probability_{i}"]) for i in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
            assert {row[f"class_{i}"] for i in (1, 2, 3)} == {"bright", "dark", "gray"}
            assert row["probability_1"] >= row["probability_2"] >= row["probability_3"]

    def test_prediction_of_chosen_images(self, runs, image_folder, tmp_path):
        chosen = [str(image_folder / "val" / "gray" / "1.png"), str(image_folder / "val" / "dark" / "0.png")]
        out, init = tmp_path / "two.csv", runs / "finetune"
        images = json.dumps(chosen)
        assert command("predict", "--init", init, "--images", images, "--top=1", *QUICK, "--out", out) == 0
        rows = list(csv.reader(out.open()))
        assert rows[0] == ["image", "class_1", "probability_1"]
        assert [row[0] for row in rows[1:]] == chosen

    @pytest.mark.parametrize("name", ["pretrain", "finetune", "linear-probe"])
    def test_features_and_neighbours(self, runs, name, tmp_path, capsys):
        out = tmp_path / "features.npz"
        assert command("features", "--init", runs / name, *QUICK, "--neighbors=3", "--out", out) == 0
        found = np.load(out)
        width = 2 * 16 if name == "finetune" else 16
        assert found["train_features"].shape == (18, width)
        assert found["test_features"].shape == (12, width)
        assert found["train_labels"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
        assert found["classes"].tolist() == ["bright", "dark", "gray"]
        assert all(
            f"/{found['classes'][i]}/" in path
            for i, path in zip(found["test_labels"], found["test_names"], strict=True)
        )
        score = json.loads(out.with_suffix(".json").read_text())["knn_accuracy"]
        assert f"kNN accuracy (3 neighbours): {score:.2f} %" in capsys.readouterr().out
        assert score > 50  # brightness tells the classes apart, even in random features

    def test_features_of_images_without_labels(self, runs, image_folder, tmp_path):
        out = tmp_path / "some"
        images = image_folder / "val"
        assert command("features", "--init", runs / "pretrain", "--images", images, *QUICK, "--out", out) == 0
        found = np.load(out)
        assert found["features"].shape == (12, 16)
        assert len(found["names"]) == 12

    def test_reconstructions(self, runs, image_folder, tmp_path, capsys):
        out = tmp_path / "own.png"
        assert command("reconstruct", "--init", runs / "pretrain", "--count=2", "--out", out) == 0
        assert out.read_bytes().startswith(b"\x89PNG")
        image = image_folder / "val" / "dark" / "0.png"
        chosen = ["--images", image, "--mask_ratio=0.75", "--out", tmp_path / "chosen.png"]
        assert command("reconstruct", "--init", runs / "pretrain", *chosen) == 0
        assert (tmp_path / "chosen.png").read_bytes().startswith(b"\x89PNG")
        assert capsys.readouterr().out == f"2 images -> {out}\n1 images -> {tmp_path / 'chosen.png'}\n"

    def test_pretraining_run_on_a_flat_folder_reconstructs_its_images(self, runs, image_folder, tmp_path):
        folder, batch = image_folder / "train" / "dark", ["--training.batch_size=4"]
        run, out = tmp_path / "run", tmp_path / "own.png"
        assert command("pretrain", "--data.root", folder, *MODEL, *SHORT, *batch, *DECODER, "--out", run) == 0
        assert command("reconstruct", "--init", run, "--out", out) == 0
        assert out.read_bytes().startswith(b"\x89PNG")

    def test_normalisation_goes_with_the_weights(self, image_folder, tmp_path):
        """A run's mean and deviation are used wherever its weights go, not the defaults of the images."""
        stats = ["--data.mean=[0.1]", "--data.std=[0.9]"]
        run, moved = tmp_path / "run", tmp_path / "moved"
        assert command("finetune", "--data.root", image_folder, *stats, *MODEL, *SHORT, "--out", run) == 0
        moved.mkdir()
        for name in ("model.safetensors", "model.json"):
            (moved / name).write_bytes((run / name).read_bytes())
        init, data = ["--init", moved / "model.safetensors"], ["--data.root", image_folder]
        assert command("evaluate", *init, *data, *QUICK, "--out", tmp_path / "evaluate") == 0
        assert summary(tmp_path / "evaluate")["test_loss"] == pytest.approx(
            summary(run)["test_loss"], rel=1e-4
        )

    def test_interrupted_run_goes_on(self, image_folder, tmp_path, capsys):
        arguments = ["finetune", "--data.root", image_folder, *MODEL, *SHORT, "--out", tmp_path / "run"]
        assert command(*arguments, "--training.max_steps=1") == 0
        assert command(*arguments, "--training.max_steps=2", "--resume", "auto") == 0
        assert "going on after step 1" in capsys.readouterr().err


def test_digits_recipes(tmp_path, capsys):
    """The packaged recipes one after the other, cut to two steps."""
    short = [*SHORT, "--training.epochs=1", "--training.max_steps=2", "--training.batch_size=64"]
    pretrained, finetuned = tmp_path / "pretrain", tmp_path / "finetune"
    assert command("pretrain", "--config", "pretrain_digits", *short, "--out", pretrained) == 0
    init = ["--init", pretrained]
    assert command("finetune", "--config", "finetune_digits", *short, *init, "--out", finetuned) == 0
    assert command("evaluate", "--init", finetuned, *QUICK, "--out", tmp_path / "evaluate") == 0
    assert summary(tmp_path / "evaluate")["test_accuracy"] == summary(finetuned)["test_accuracy"]
    assert summary(tmp_path / "evaluate")["images"] == 359
    out = tmp_path / "features.npz"
    assert command("features", *init, *QUICK, "--out", out) == 0
    assert np.load(out)["train_features"].shape == (1438, 96)
    assert command("reconstruct", *init, "--count=2", "--out", tmp_path / "a.png") == 0


def test_info_lists_what_there_is(capsys):
    assert command("info") == 0
    told = capsys.readouterr().out
    for title in (
        "versions",
        "devices",
        "selective scan",
        "causal conv1d",
        "models (parameters at 1000 classes)",
    ):
        assert f"{title}\n" in told
    assert all(name in told for name in MODEL_NAMES)
    assert "hybridnet_base_patch16_224      127,674,088" in told
    assert "refused: " in told  # at least one of the CUDA packages is absent or unable here
    assert command("--help") == 0
    assert "pretrain_digits" in capsys.readouterr().out


@pytest.fixture
def says(capsys, tmp_path):
    """Run a command that must fail with status 2; return the sentence with which it ends."""

    def run(*arguments):
        capsys.readouterr()
        assert command(*arguments, "--out", tmp_path / "out") == 2
        *announced, told = capsys.readouterr().err.splitlines()
        assert told.startswith("map-vision: error: ")
        assert not any("Traceback" in line for line in announced)
        assert not (tmp_path / "out" / "summary.json").exists()
        return told

    return run


class TestMistakes:
    """Issue 2, section 5: one clear sentence that names what, where and the cure."""

    def test_missing_data_folder(self, says, tmp_path):
        told = says("pretrain", "--data.root", tmp_path / "nowhere", *MODEL, *SHORT)
        assert f"data folder {tmp_path}/nowhere does not exist ({tmp_path} does): correct --data.root" in told

    def test_empty_data_folder(self, says, tmp_path):
        (tmp_path / "empty").mkdir()
        told = says("pretrain", "--data.root", tmp_path / "empty", *MODEL, *SHORT)
        assert f"no images in {tmp_path}/empty: looked in all subfolders for " in told

    def test_unreadable_image(self, says, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
        told = says("pretrain", "--data.root", tmp_path / "data", *MODEL, *SHORT, "--training.batch_size=1")
        assert f"cannot read image {tmp_path}/data/broken.png (" in told
        assert "replace or remove it, or pass --data.on_error skip" in told

    def test_unknown_recipe(self, says):
        told = says("pretrain", "--config", "pretrain_digit")
        assert "unknown recipe 'pretrain_digit'; did you mean pretrain_digits" in told

    def test_recipe_of_another_command(self, says):
        assert "finetune_digits is a recipe for the command finetune, not pretrain" in says(
            "pretrain", "--config", "finetune_digits"
        )

    @pytest.mark.parametrize("name", ["pretrain", "finetune"])
    def test_unknown_model(self, says, name):
        told = says(name, "--model.name", "hybridnet_tiny_patch16_225", *SHORT)
        assert (
            "model 'hybridnet_tiny_patch16_225' is unknown; did you mean hybridnet_tiny_patch16_224" in told
        )

    def test_unknown_setting(self, says):
        assert "unknown option --training.epoch; did you mean --training.epochs" in says(
            "pretrain", "--training.epoch=4"
        )

    @pytest.mark.parametrize("ratio", ["1.5", "0", "-0.5"])
    def test_ratio_outside_its_range(self, says, ratio):
        told = says("pretrain", f"--objective.mask_ratio={ratio}", *MODEL, *SHORT)
        assert f"objective.mask_ratio must lie inside (0, 1); got {float(ratio)}" in told

    def test_ratio_of_a_picture_outside_its_range(self, says, runs):
        for ratio in ("1.5", "0"):
            told = says("reconstruct", "--init", runs / "pretrain", f"--mask_ratio={ratio}")
            assert f"mask ratio must lie inside (0, 1); got {float(ratio)}" in told

    def test_layout_that_does_not_parse(self, says):
        told = says("pretrain", *MODEL, "--model.layout=(MMT", *SHORT)
        assert "layout '(MMT' does not parse at '(MMT'; write letters with counts, for example" in told

    def test_layout_of_unknown_layers(self, says):
        assert "layout 'MX' uses X; known layers: M, T" in says(
            "pretrain", *MODEL, "--model.layout=MX", *SHORT
        )

    def test_image_size_that_does_not_fit_the_patch(self, says):
        told = says("finetune", *MODEL, "--model.img_size=18", *SHORT)
        assert "image size 18x18 does not fit patch size 4x4: height and width must be multiples of" in told

    def test_checkpoint_of_another_model(self, says, runs, image_folder):
        data = ["--data.root", image_folder]
        told = says("finetune", *data, *MODEL, "--model.layout=TM", *SHORT, "--init", runs / "pretrain")
        assert (
            f"{runs}/pretrain/model.safetensors does not fit this model: missing: encoder.blocks.0." in told
        )
        assert "not used: encoder.blocks.0.mixer." in told
        told = says("finetune", *data, *MODEL, "--model.embed_dim=32", *SHORT, "--init", runs / "pretrain")
        assert "shapes: patch_embed.proj.weight (16, 3, 4, 4) for (32, 3, 4, 4)" in told

    def test_nothing_to_resume(self, says, image_folder):
        told = says("pretrain", "--data.root", image_folder, *MODEL, *SHORT, "--resume", "auto")
        assert "--resume auto found no usable checkpoint in " in told

    def test_run_directory_in_use(self, runs, image_folder, capsys):
        before = summary(runs / "pretrain")
        arguments = ["--data.root", image_folder, *MODEL, *SHORT, "--out", runs / "pretrain"]
        assert command("pretrain", *arguments) == 2
        assert "exists and is not empty; continue that run with --resume auto or" in capsys.readouterr().err
        assert summary(runs / "pretrain") == before

    def test_evaluation_into_a_training_run(self, runs, capsys):
        before = summary(runs / "finetune")
        assert command("evaluate", "--init", runs / "finetune", *QUICK, "--out", runs / "finetune") == 2
        assert (
            "is a training run, whose summary.json would be replaced; choose another"
            in capsys.readouterr().err
        )
        assert summary(runs / "finetune") == before

    @pytest.mark.parametrize("name", ["evaluate", "predict"])
    def test_classifying_with_a_pretraining_run(self, says, runs, image_folder, name):
        images = ["--images", image_folder] if name == "predict" else []
        told = says(name, "--init", runs / "pretrain", *images)
        assert (
            "pretrain describes no classifier (its .json says: encoder); give a run that trained one" in told
        )

    @pytest.mark.parametrize("name", ["evaluate", "features", "finetune", "linear-probe"])
    def test_nothing_at_init(self, says, image_folder, tmp_path, name):
        training = [*MODEL, *SHORT] if name in ("finetune", "linear-probe") else []
        told = says(name, "--init", tmp_path / "nowhere", "--data.root", image_folder, *training)
        assert f"no weights at {tmp_path}/nowhere; give a finished run's directory or a weights file" in told

    def test_reconstructing_with_a_classifier(self, says, runs):
        told = says("reconstruct", "--init", runs / "finetune")
        assert (
            "has no pretraining.safetensors with its description beside it: reconstruction needs the decoder"
            in told
        )

    def test_evaluating_on_other_classes(self, says, runs, image_folder, tmp_path):
        (tmp_path / "data").mkdir()
        for split in ("train", "val"):
            (tmp_path / "data" / split).mkdir()
            for old, new in (("dark", "night"), ("gray", "fog"), ("bright", "day")):
                (tmp_path / "data" / split / new).symlink_to(image_folder / split / old)
        told = says("evaluate", "--init", runs / "finetune", "--data.root", tmp_path / "data")
        assert (
            "3 classes day, fog, night, ... against 3 bright, dark, gray, ...; evaluate on data with the same"
            in told
        )

    def test_folder_replaces_the_digits_of_a_run(self, says, image_folder, tmp_path):
        run = tmp_path / "run"
        recipe = ["--config", "finetune_digits", *SHORT, "--training.epochs=1", "--training.max_steps=1"]
        assert command("finetune", *recipe, "--out", run) == 0
        told = says("evaluate", "--init", run, "--data.root", image_folder)
        assert "3 classes bright, dark, gray, ... against 10 0, 1, 2, 3, ..." in told

    def test_counts_below_one(self, says, runs, image_folder):
        images = ["--images", image_folder]
        assert "top must be at least 1; got 0" in says(
            "predict", "--init", runs / "finetune", "--top=0", *images
        )
        assert "count must be at least 1; got 0" in says(
            "reconstruct", "--init", runs / "pretrain", "--count=0"
        )
        assert "neighbors must be at least 1; got 0" in says(
            "features", "--init", runs / "pretrain", "--neighbors=0"
        )

    def test_probe_without_a_pretrained_encoder(self, says, image_folder):
        told = says("linear-probe", "--data.root", image_folder, *MODEL, *SHORT)
        assert "a linear probe reads a pretrained encoder: give --init RUN" in told

    def test_loss_that_is_not_finite(self, says, image_folder):
        told = says("finetune", "--data.root", image_folder, *MODEL, *SHORT, "--data.std=[1e-38]")
        assert "the loss is not finite at step 1" in told
