"""The command line as a user sees it: chains of commands, and the error message for each mistake."""

import csv
import errno
import json
import shlex
import shutil
import sys
from unittest.mock import Mock, patch

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

import map_vision.cli
import map_vision.commands
from map_core.tasks.pretraining import inputs_to_draw, load_objective
from map_vision.data import DataConfig
from map_vision.domain import DOMAIN
from map_vision.factory import MODELS
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
COMMON_KEYS = {"task", "seconds", "samples_per_second", "peak_memory_bytes", "versions", "commit"}


def command(*arguments):
    """Run ``map-vision`` in this process and return its exit status."""
    with patch.object(sys, "argv", ["map-vision", *map(str, arguments)]):
        return map_vision.cli.main()


def summary(directory):
    return json.loads((directory / "summary.json").read_text())


def metrics(directory, kind="train"):
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def weights_equal(one, other, name="model.safetensors"):
    first, second = load_file(one / name), load_file(other / name)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def picture_of(run, root, out, *, split="train", count=6, **choice):
    """Pixels of the picture that a run's objective draws of images in the folder ``root``."""
    trained = load_objective(DOMAIN, run)
    data = DOMAIN.open_data(DataConfig(root=str(root)), trained.model, "features")
    samples = data.plain_train if split == "train" else data.evaluation
    DOMAIN.draw_picture(trained.objective, inputs_to_draw(samples, count), out, data=data, **choice)
    return pixels(out)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, image_folder, curves_drawn):
    """Pretrain on the image folder, then finetune and probe the result."""
    root = tmp_path_factory.mktemp("runs")
    data = ["--data.root", image_folder]
    init = ["--init", root / "pretrain"]
    with curves_drawn():
        assert command("pretrain", *data, *MODEL, *SHORT, *DECODER, "--out", root / "pretrain") == 0
    assert command("finetune", *data, *MODEL, *SHORT, *init, "--out", root / "finetune") == 0
    assert command("linear-probe", *data, *SHORT, *init, "--out", root / "linear-probe") == 0
    return root


class TestRuns:
    def test_pretraining_run_explains_itself(self, runs, image_folder, tmp_path):
        run = runs / "pretrain"
        results = summary(run)
        assert set(results) >= COMMON_KEYS | {"loss"}
        assert results["task"] == "pretrain"
        assert results["loss"] == metrics(run)[-1]["loss"]
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["model"]["layout"] == "MT"
        assert config["objective"]["decoder_dim"] == 16
        picture = picture_of(run, image_folder, tmp_path / "expected.png")
        assert np.array_equal(pixels(run / "reconstructions.png"), picture)
        assert pixels(run / "curves.png").std() > 0

    def test_its_configuration_repeats_a_run(self, runs, tmp_path):
        repeated = tmp_path / "repeated"
        config = runs / "pretrain" / "config.yaml"
        assert command("pretrain", "--config", config, "--out", repeated) == 0
        assert weights_equal(repeated, runs / "pretrain")
        assert weights_equal(repeated, runs / "pretrain", "pretraining.safetensors")
        losses = [[line["loss"] for line in metrics(run)] for run in (repeated, runs / "pretrain")]
        assert losses[0] == losses[1]

    @pytest.mark.parametrize("name", ["pretrain", "linear-probe"])
    def test_encoders_start_from_a_finetuned_run_without_the_parts_of_a_classifier(
        self, runs, image_folder, tmp_path, caplog, name
    ):
        line = [
            name,
            "--data.root",
            image_folder,
            *MODEL,
            *SHORT,
            "--training.max_steps=1",
            "--training.lr=1e-30",
        ]
        line += DECODER if name == "pretrain" else []
        assert command(*line, "--init", runs / "finetune", "--out", tmp_path / "run") == 0
        (report,) = [message for message in caplog.messages if f"{runs}/finetune" in message]
        assert "loaded; new: nothing; left: " in report
        for part in ("encoder.registers.token", "head.weight"):
            assert part in report
        trained, initial = (
            load_file(run / "model.safetensors") for run in (runs / "finetune", tmp_path / "run")
        )
        encoder = [key for key in initial if key.startswith(("encoder.", "patch_embed."))]
        assert len(encoder) > 20
        for key in encoder:
            torch.testing.assert_close(initial[key], trained[key], rtol=0, atol=1e-20)

    @pytest.mark.parametrize("name", ["pretrain", "linear-probe"])
    def test_encoders_start_from_a_vit_of_timms_without_class_token_and_head(
        self, image_folder, tmp_path, caplog, name
    ):
        vit = VisionTransformer(16, 4, embed_dim=16, depth=2, num_heads=2, num_classes=5)
        torch.save(vit.state_dict(), tmp_path / "vit.pth")
        line = [
            name,
            "--data.root",
            image_folder,
            *MODEL,
            *SHORT,
            "--training.max_steps=1",
            "--training.lr=1e-30",
        ]
        line += ["--model.name=map_vit_tiny_patch16_224", "--model.layout=Tx2"]
        line += DECODER if name == "pretrain" else []
        assert command(*line, "--init", tmp_path / "vit.pth", "--out", tmp_path / "run") == 0
        (report,) = [message for message in caplog.messages if "vit.pth" in message]
        for part in ("encoder.registers.token", "head.weight"):
            assert part in report
        initial = load_file(tmp_path / "run" / "model.safetensors")
        for i in range(2):
            key = f"blocks.{i}.mlp.fc1.weight"
            torch.testing.assert_close(initial[f"encoder.{key}"], vit.state_dict()[key], rtol=0, atol=1e-20)

    @pytest.mark.parametrize("name", ["pretrain", "finetune", "linear-probe"])
    def test_other_channels_than_the_runs_are_refused_as_such(
        self, runs, image_folder, tmp_path, capsys, name
    ):
        line = [name, "--data.root", image_folder, *MODEL, *SHORT, "--init", runs / "pretrain"]
        assert command(*line, "--model.in_chans=1", "--out", tmp_path / "run") == 2
        error = capsys.readouterr().err
        assert f"{runs}/pretrain was trained with model.in_chans 3, this model has 1" in error
        assert (
            "; give --model.in_chans 3 and such data, or leave it to the run, or train without --init"
            in error
        )

    def test_another_number_of_heads_must_be_meant(self, runs, image_folder, tmp_path, capsys):
        line = ["finetune", "--data.root", image_folder, *MODEL, *SHORT, "--init", runs / "pretrain"]
        line += ["--model.num_heads=4", "--out", tmp_path / "run"]
        assert command(*line) == 2
        error = f"{runs}/pretrain was trained with model.num_heads 2, this model has 4: even where its "
        assert error in capsys.readouterr().err
        assert command(*line, "--init_may_differ", "order") == 2
        assert "say that it is meant with --init_may_differ num_heads" in capsys.readouterr().err
        assert command(*line, "--init_may_differ", "heads") == 2
        assert "--init_may_differ heads: did you mean num_heads?" in capsys.readouterr().err
        assert command(*line, "--init_may_differ", "num_heads") == 0

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "lacks the section data"),
            ("[]", "lacks the section data"),
            ("model: {}", "lacks the section data"),
            ("data: 3", "has no settings in its section data"),
            ("data: {mean: x}", "data.mean of what --init names must be a list of numbers or null"),
        ],
    )
    @pytest.mark.parametrize("name", ["evaluate", "features"])
    def test_broken_settings_of_a_run_are_reported_in_one_sentence(
        self, runs, tmp_path, capsys, name, text, message
    ):
        run = shutil.copytree(runs / "finetune", tmp_path / "run")
        (run / "config.yaml").write_text(text)
        model = json.loads((run / "model.json").read_text())
        del model["mean"], model["std"]
        (run / "model.json").write_text(json.dumps(model))
        assert command(name, "--init", run, *QUICK, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"crop_pct": None}, "the .json beside the weights: preprocessing must have the keys"),
            ({"channels": "x"}, "preprocessing: channels must be 1 (gray) or 3 (RGB); got 'x'; export the run again"),
            ({"classes": [1, 2]}, "model.json: classes must be a list of names; export the run again"),
            ({"name": None}, "does not describe a classifier"),
            ({"name": "x"}, "holds x, which is no model of this program: use map-points for models of clouds"),
            ({"arguments": []}, "model.json: arguments must be a dict; got []; export the run again"),
            ({"arguments": {"embed_dim": "x"}}, "describes embed_dim as 'x', which must be int | None"),
        ],
        ids=lambda value: "" if isinstance(value, str) else "-".join(value),
    )  # fmt: skip
    def test_a_broken_description_of_a_run_is_reported_in_one_sentence(
        self, runs, tmp_path, capsys, change, message
    ):
        """None removes a key."""
        run = shutil.copytree(runs / "finetune", tmp_path / "run")
        model = json.loads((run / "model.json").read_text()) | change
        description = {key: value for key, value in model.items() if change.get(key, value) is not None}
        (run / "model.json").write_text(json.dumps(description))
        assert command("evaluate", "--init", run, *QUICK, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err

    def test_exported_encoder_is_a_backbone(self, runs):
        state = load_file(runs / "pretrain" / "model.safetensors")
        objective = load_objective(DOMAIN, runs / "pretrain").objective
        assert set(state) == set(objective.backbone.state_dict())
        assert all(torch.equal(state[key], value) for key, value in objective.backbone.state_dict().items())

    def test_averaged_weights_are_evaluated_on_the_runs_data(self, runs, image_folder, tmp_path):
        run, data = tmp_path / "run", ["--data.root", image_folder]
        assert command("finetune", *data, *MODEL, *SHORT, "--training.ema_decay=0.5", "--out", run) == 0
        init = ["--init", run / "model_ema.safetensors"]
        assert command("evaluate", *init, *QUICK, "--out", tmp_path / "evaluate") == 0
        average_loss = summary(run)["ema_test_loss"]
        assert summary(tmp_path / "evaluate")["test_loss"] == pytest.approx(average_loss, rel=1e-4)
        assert average_loss != summary(run)["test_loss"]

    @pytest.mark.parametrize("name", ["finetune", "linear-probe"])
    def test_classifier_run_explains_itself(self, runs, name):
        results = summary(runs / name)
        assert set(results) >= COMMON_KEYS | {"test_accuracy", "test_accuracy_class_mean", "test_loss"}
        assert results["task"] == name
        (*_, last) = metrics(runs / name, "evaluation")
        assert {key: results[key] for key in last if key.startswith("test_")} == {
            key: value for key, value in last.items() if key.startswith("test_")
        }
        described = json.loads((runs / name / "model.json").read_text())
        assert described["classes"] == ["bright", "dark", "gray"]

    @pytest.mark.parametrize("file", ["", "model.safetensors"])
    @pytest.mark.parametrize("name", ["finetune", "linear-probe"])
    def test_evaluation_repeats_the_end_of_training(self, runs, name, file, tmp_path, capsys):
        at_end, out = summary(runs / name), tmp_path / "evaluate"
        assert command("evaluate", "--init", runs / name / file, *QUICK, "--out", out) == 0
        results = summary(out)
        assert results["test_accuracy"] == at_end["test_accuracy"]
        assert results["test_loss"] == pytest.approx(at_end["test_loss"], rel=1e-4)
        assert set(results) >= COMMON_KEYS | {"images"}
        assert results["images"] == 12
        first, *measures, last = capsys.readouterr().out.splitlines()
        assert (first, last) == ("evaluated on val", f"-> {out}/summary.json")
        expected = {key: f"{value:.4g}" for key, value in results.items() if key.startswith("test_")}
        assert dict(line.split() for line in measures) == expected

    def test_evaluation_in_bf16_is_near_that_in_fp32(self, runs, tmp_path):
        losses = {}
        for precision in ("fp32", "bf16"):
            out, option = tmp_path / precision, f"--evaluation.precision={precision}"
            assert command("evaluate", "--init", runs / "finetune", *QUICK, option, "--out", out) == 0
            losses[precision] = summary(out)["test_loss"]
        assert losses["bf16"] != losses["fp32"]
        assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-2)

    def test_bf16_reaches_predictions_and_features(self, runs, image_folder, tmp_path):
        bf16, images = "--evaluation.precision=bf16", ["--images", image_folder / "val"]
        for number, option in enumerate(([], [bf16])):
            init = ["--init", runs / "finetune", *images, *QUICK, *option]
            assert command("predict", *init, "--out", tmp_path / f"{number}.csv") == 0
            assert command("features", *init, "--out", tmp_path / f"{number}.npz") == 0
        exact, rounded = (np.load(tmp_path / f"{number}.npz")["features"] for number in (0, 1))
        assert not np.array_equal(exact, rounded)
        np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())
        assert (tmp_path / "0.csv").read_text() != (tmp_path / "1.csv").read_text()

    def test_prediction_agrees_with_evaluation(self, runs, image_folder, tmp_path):
        out = tmp_path / "predictions.csv"
        images = image_folder / "val"
        assert command("predict", "--init", runs / "finetune", "--images", images, *QUICK, "--out", out) == 0
        rows = list(csv.DictReader(out.open()))
        assert len(rows) == 12
        correct = sum(f"/{row['class_1']}/" in row["image"] for row in rows)
        assert 100 * correct / 12 == pytest.approx(summary(runs / "finetune")["test_accuracy"])
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
        arrays = np.load(out)
        width = 2 * 16 if name == "finetune" else 16
        assert arrays["train_features"].shape == (18, width)
        assert arrays["test_features"].shape == (12, width)
        assert arrays["train_labels"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
        assert arrays["classes"].tolist() == ["bright", "dark", "gray"]
        assert all(
            f"/{arrays['classes'][i]}/" in path
            for i, path in zip(arrays["test_labels"], arrays["test_names"], strict=True)
        )
        score = json.loads(out.with_suffix(".json").read_text())["knn_accuracy"]
        output = capsys.readouterr().out
        assert f"kNN accuracy (3 neighbours): {score:.2f} %" in output
        assert "18 training" in output.splitlines()[0], "which data the features are of"
        assert score > 50  # brightness tells the classes apart, even in random features

    def test_features_of_images_without_labels(self, runs, image_folder, tmp_path):
        out = tmp_path / "some"
        images = image_folder / "val"
        assert command("features", "--init", runs / "pretrain", "--images", images, *QUICK, "--out", out) == 0
        arrays = np.load(out)
        assert arrays["features"].shape == (12, 16)
        assert len(arrays["names"]) == 12

    @pytest.mark.parametrize("choice", [{}, {"ratio": 0.75}, {"seed": 3}])
    def test_reconstructions_are_the_objectives(self, runs, image_folder, tmp_path, capsys, choice):
        out, run = tmp_path / "own.png", runs / "pretrain"
        names = {"ratio": "mask_ratio", "seed": "seed"}
        options = [f"--{names[key]}={value}" for key, value in choice.items()]
        assert command("reconstruct", "--init", run, "--count=2", *options, "--out", out) == 0
        assert capsys.readouterr().out == f"2 images -> {out}\n"
        expected = picture_of(run, image_folder, tmp_path / "expected.png", count=2, **choice)
        assert np.array_equal(pixels(out), expected)

    @pytest.mark.parametrize(("split", "folder", "count"), [("train", "train", 18), ("test", "val", 12)])
    def test_reconstructions_of_a_split_are_those_of_its_files(
        self, runs, image_folder, tmp_path, split, folder, count
    ):
        init = ["--init", runs / "pretrain", f"--count={count}"]
        assert command("reconstruct", *init, "--split", split, "--out", tmp_path / "split.png") == 0
        files = ["--images", image_folder / folder, "--out", tmp_path / "files.png"]
        assert command("reconstruct", *init, *files) == 0
        assert np.array_equal(pixels(tmp_path / "split.png"), pixels(tmp_path / "files.png"))

    def test_reconstruction_of_one_image(self, runs, image_folder, tmp_path, capsys):
        out, image = tmp_path / "chosen.png", image_folder / "val" / "dark" / "0.png"
        chosen = ["--images", image, "--mask_ratio=0.75", "--out", out]
        assert command("reconstruct", "--init", runs / "pretrain", *chosen) == 0
        assert capsys.readouterr().out == f"1 images -> {out}\n"
        trained = load_objective(DOMAIN, runs / "pretrain")
        data = DOMAIN.open_data(DataConfig(root=str(image_folder)), trained.model, "features")
        samples = data.evaluation
        inputs = samples[samples.names.index(str(image))][0].unsqueeze(0)
        DOMAIN.draw_picture(trained.objective, inputs, tmp_path / "expected.png", data=data, ratio=0.75)
        assert np.array_equal(pixels(out), pixels(tmp_path / "expected.png"))

    def test_pretraining_run_on_a_flat_folder_reconstructs_its_images(self, runs, image_folder, tmp_path):
        folder, batch = image_folder / "train" / "dark", ["--training.batch_size=4"]
        run, out = tmp_path / "run", tmp_path / "own.png"
        assert command("pretrain", "--data.root", folder, *MODEL, *SHORT, *batch, *DECODER, "--out", run) == 0
        assert command("reconstruct", "--init", run, "--count=6", "--out", out) == 0
        assert np.array_equal(pixels(out), pixels(run / "reconstructions.png"))

    def test_blocks_in_scan_order_and_as_regions(self, image_folder, tmp_path):
        """Scanned and predicted block by block: from the command line to the files and back."""
        pretrained, finetuned, data = (
            tmp_path / "pretrain",
            tmp_path / "finetune",
            ["--data.root", image_folder],
        )
        blocks = ["--model.order=block", "--model.block_size=[2, 2]"]
        regions = ["--objective.region=block", "--objective.block_size=[2, 2]"]
        arguments = [*data, *MODEL, *blocks, *regions, *SHORT, *DECODER]
        assert command("pretrain", *arguments, "--out", pretrained) == 0
        model = json.loads((pretrained / "model.json").read_text())["arguments"]
        assert (model["order"], model["block_size"]) == ("block", [2, 2])
        objective = json.loads((pretrained / "pretraining.json").read_text())["objective"]
        assert (objective["region"], objective["block_size"]) == ("block", [2, 2])

        trained = load_objective(DOMAIN, pretrained)
        tokens = trained.objective.backbone.tokenize(torch.zeros(1, 3, 16, 16))
        assert tokens.position[0, :8].int().tolist() == [
            *([0, 0], [0, 1], [1, 0], [1, 1]),
            *([0, 2], [0, 3], [1, 2], [1, 3]),
        ]
        assert trained.objective.regions(tokens).index[0].tolist() == [i // 4 for i in range(16)]

        assert command("finetune", *data, *SHORT, "--init", pretrained, "--out", finetuned) == 0
        classifier, _ = MODELS.classifier(finetuned)
        assert (classifier.order, classifier.block_size) == ("block", (2, 2))
        assert command("evaluate", "--init", finetuned, *QUICK, "--out", tmp_path / "evaluate") == 0
        at_end = summary(finetuned)["test_loss"]
        assert summary(tmp_path / "evaluate")["test_loss"] == pytest.approx(at_end, rel=1e-4)

    def test_unreadable_images_that_are_skipped_are_counted(self, image_folder, tmp_path, capsys):
        folder = tmp_path / "data"
        for split, kind in (("train", "dark"), ("train", "gray"), ("val", "dark"), ("val", "gray")):
            (folder / split / kind).mkdir(parents=True)
            for file in (image_folder / split / kind).iterdir():
                (folder / split / kind / file.name).symlink_to(file)
        broken = folder / "train" / "dark" / "broken.png"
        broken.write_bytes(b"no image")
        data = ["--data.root", folder, "--data.on_error=skip"]
        for name in ("pretrain", "finetune"):
            arguments = [*data, *MODEL, *SHORT, "--training.batch_size=13"]  # every image in every step
            assert command(name, *arguments, "--out", tmp_path / name) == 0
            assert summary(tmp_path / name)["skipped_images"] == 1
            assert f"skipped 1 unreadable images: {broken}\n" in capsys.readouterr().out

    def test_normalisation_goes_with_the_weights(self, image_folder, tmp_path):
        """A run's mean and deviation are used wherever its weights are, not the defaults of the images."""
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

    def test_run_that_goes_on_is_the_whole_run(self, image_folder, tmp_path, capsys):
        arguments = ["finetune", "--data.root", image_folder, *MODEL, *SHORT]
        run, whole = ["--out", tmp_path / "run"], ["--out", tmp_path / "whole"]
        assert command(*arguments, *run, "--training.max_steps=1") == 0
        assert command(*arguments, *run, "--training.max_steps=2", "--resume", "auto") == 0
        assert "going on after step 1" in capsys.readouterr().err
        assert command(*arguments, *whole, "--training.max_steps=2") == 0
        assert weights_equal(tmp_path / "run", tmp_path / "whole")


def test_digits_recipes(tmp_path, capsys):
    """The packaged recipes one after the other, shortened to two steps."""
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
    assert command("reconstruct", *init, "--count=6", "--out", tmp_path / "a.png") == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(pretrained / "reconstructions.png"))


def test_info_lists_what_there_is(capsys):
    assert command("info") == 0
    output = capsys.readouterr().out
    for title in (
        "versions",
        "devices",
        "selective scan",
        "causal conv1d",
        "models (parameters at 1000 classes)",
    ):
        assert f"{title}\n" in output
    assert all(name in output for name in MODEL_NAMES)
    assert "hybridnet_base_patch16_224      127,674,088" in output
    assert "refused: " in output  # at least one of the CUDA packages is missing or unusable here
    assert command("--help") == 0
    assert "pretrain_digits" in capsys.readouterr().out


@pytest.fixture
def error_of(capsys, tmp_path):
    """Run a command that must fail, by default with status 2, and return its error message."""

    def run(*arguments, status=2):
        capsys.readouterr()
        assert command(*arguments, "--out", tmp_path / "out") == status
        *log_lines, error = capsys.readouterr().err.splitlines()
        assert error.startswith("map-vision: error: ")
        assert not any("Traceback" in line for line in log_lines)
        assert not (tmp_path / "out" / "summary.json").exists()
        return error

    return run


class TestMistakes:
    """Issue 2, section 5: one clear sentence that says what is wrong, where, and how to fix it."""

    def test_missing_data_folder(self, error_of, tmp_path):
        error = error_of("pretrain", "--data.root", tmp_path / "nowhere", *MODEL, *SHORT)
        assert (
            f"data folder {tmp_path}/nowhere does not exist ({tmp_path} does): correct --data.root" in error
        )

    def test_empty_data_folder(self, error_of, tmp_path):
        (tmp_path / "empty").mkdir()
        error = error_of("pretrain", "--data.root", tmp_path / "empty", *MODEL, *SHORT)
        assert f"no images in {tmp_path}/empty: looked in all subfolders for " in error

    def test_unreadable_image(self, error_of, tmp_path):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
        error = error_of(
            "pretrain", "--data.root", tmp_path / "data", *MODEL, *SHORT, "--training.batch_size=1"
        )
        assert f"cannot read image {tmp_path}/data/broken.png (" in error
        assert "replace or remove it, or pass --data.on_error skip" in error

    def test_unknown_recipe(self, error_of):
        error = error_of("pretrain", "--config", "pretrain_digit")
        assert "unknown recipe 'pretrain_digit'; did you mean pretrain_digits" in error

    def test_recipe_of_another_command(self, error_of):
        assert "finetune_digits is a recipe for the command finetune, not pretrain" in error_of(
            "pretrain", "--config", "finetune_digits"
        )

    @pytest.mark.parametrize("name", ["pretrain", "finetune"])
    def test_unknown_model(self, error_of, name):
        error = error_of(name, "--model.name", "hybridnet_tiny_patch16_225", *SHORT)
        assert (
            "model.name 'hybridnet_tiny_patch16_225' is unknown; did you mean hybridnet_tiny_patch16_224"
            in error
        )

    def test_unknown_setting(self, error_of):
        error = error_of("finetune", "--config", "finetune_digits", "--out", "x", "--model.num_classes", "7")
        assert "unknown option --model.num_classes; classes are counted from the data" in error
        assert "unknown option --training.epoch; did you mean --training.epochs" in error_of(
            "pretrain", "--training.epoch=4"
        )

    @pytest.mark.parametrize("ratio", ["1.5", "1", "-0.5"])
    def test_ratio_outside_its_range(self, error_of, ratio):
        error = error_of("pretrain", f"--objective.mask_ratio={ratio}", *MODEL, *SHORT)
        assert f"objective.mask_ratio must lie in [0, 1); got {float(ratio)}" in error

    def test_ratio_of_a_picture_outside_its_range(self, error_of, runs):
        for ratio in ("1.5", "1"):
            error = error_of("reconstruct", "--init", runs / "pretrain", f"--mask_ratio={ratio}")
            assert f"mask_ratio must lie in [0, 1); got {float(ratio)}; change --mask_ratio" in error

    @pytest.mark.parametrize("name", ["hybridnet_tiny_patch16_224", "map_mambavision_tiny"])
    def test_pooling_that_leaves_all_tokens(self, error_of, name):
        error = error_of("finetune", "--model", f"{{name: {name}, global_pool: ''}}", *SHORT)
        assert "model.global_pool in --model must be one of register, avg or null; got ''" in error

    def test_layout_that_does_not_parse(self, error_of):
        error = error_of("pretrain", *MODEL, "--model.layout=(MMT", *SHORT)
        assert "layout '(MMT' does not parse at '(MMT'; write letters with counts, for example" in error

    def test_layout_of_unknown_layers(self, error_of):
        assert "layout 'MX' uses X; known layers: F, M, T" in error_of(
            "pretrain", *MODEL, "--model.layout=MX", *SHORT
        )

    def test_image_size_that_does_not_fit_the_patch(self, error_of):
        error = error_of("finetune", *MODEL, "--model.img_size=18", *SHORT)
        assert "image size 18x18 does not fit patch size 4x4: height and width must be multiples of" in error

    def test_checkpoint_of_another_model(self, error_of, runs, image_folder):
        data = ["--data.root", image_folder]
        error = error_of("finetune", *data, *MODEL, "--model.layout=TM", *SHORT, "--init", runs / "pretrain")
        assert (
            f"{runs}/pretrain/model.safetensors does not fit this model: missing: encoder.blocks.0." in error
        )
        assert "not used: encoder.blocks.0.mixer." in error
        error = error_of(
            "finetune", *data, *MODEL, "--model.embed_dim=32", *SHORT, "--init", runs / "pretrain"
        )
        assert "shapes: patch_embed.proj.weight (16, 3, 4, 4) for (32, 3, 4, 4)" in error

    def test_the_options_that_would_fit_can_be_followed(self, error_of, runs, image_folder, tmp_path):
        """Also those that a recipe sets and the description of the weights leaves out, as the model has them."""
        line = ["finetune", "--config", "finetune_folder", "--data.root", image_folder, "--data.holdout=0"]
        line += [*SHORT, "--training.sample_budget=null", "--model.num_heads=2", "--init", runs / "pretrain"]
        error = error_of(*line)
        options = error.partition("choose the model that was pretrained (")[2].removesuffix(")")
        assert "--model.patch_size 4 --model.layout MT --model.embed_dim 16" in options
        assert command(*line, *shlex.split(options), "--out", tmp_path / "run") == 0

    def test_the_options_for_another_projects_checkpoint_can_be_followed(
        self, error_of, image_folder, tmp_path
    ):
        """Over the sizes that the recipe sets for its own model."""
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0)
        torch.save(vit.state_dict(), tmp_path / "vit.pth")
        line = ["finetune", "--config", "finetune_folder", "--data.root", image_folder, "--data.holdout=0"]
        line += [*SHORT, "--training.sample_budget=null", "--init", tmp_path / "vit.pth"]
        error = error_of(*line)
        options = error.partition("choose the model that was pretrained (")[2].removesuffix(")")
        assert "--model.name map_vit_tiny_patch16_224" in options
        options = options.partition(": ")[2]
        assert command(*line, *shlex.split(options), "--out", tmp_path / "run") == 0

    def test_run_of_the_other_program(self, error_of, image_folder, tmp_path):
        description = {"name": "hybridnet3d", "holds": "classifier", "classes": ["cup", "jar"]}
        (tmp_path / "model.json").write_text(json.dumps(description))
        data = {"data": {"source": "folder", "augmentation": "rotate"}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(data))
        for name in ("predict", "evaluate", "finetune"):
            images = ["--images", image_folder] if name == "predict" else []
            error = error_of(name, "--init", tmp_path, *images)
            assert f"{tmp_path} holds hybridnet3d, which is no model of this program: use map-points" in error

    def test_nothing_to_resume_is_a_first_start(self, image_folder, tmp_path, capsys):
        out = tmp_path / "out"
        arguments = ["--data.root", image_folder, *MODEL, *SHORT, "--resume", "auto", "--out", out]
        assert command("pretrain", *arguments) == 0
        assert f"nothing to resume in {out}: starting anew" in capsys.readouterr().err
        assert (out / "model.safetensors").is_file()

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
    def test_classifying_with_a_pretraining_run(self, error_of, runs, image_folder, name):
        images = ["--images", image_folder] if name == "predict" else []
        error = error_of(name, "--init", runs / "pretrain", *images)
        assert (
            "pretrain does not describe a classifier (its .json says: encoder); give a run that trained one"
            in error
        )

    @pytest.mark.parametrize("name", ["evaluate", "features", "finetune", "linear-probe"])
    def test_nothing_at_init(self, error_of, image_folder, tmp_path, name):
        training = [*MODEL, *SHORT] if name in ("finetune", "linear-probe") else []
        error = error_of(name, "--init", tmp_path / "nowhere", "--data.root", image_folder, *training)
        assert f"no weights at {tmp_path}/nowhere; give a finished run's directory or a weights file" in error

    def test_reconstructing_with_a_classifier(self, error_of, runs):
        error = error_of("reconstruct", "--init", runs / "finetune")
        assert (
            "has no pretraining.safetensors with its description beside it: reconstruction needs the decoder"
            in error
        )

    def test_evaluating_on_other_classes(self, error_of, runs, image_folder, tmp_path):
        (tmp_path / "data").mkdir()
        for split in ("train", "val"):
            (tmp_path / "data" / split).mkdir()
            for old, new in (("dark", "night"), ("gray", "fog"), ("bright", "day")):
                (tmp_path / "data" / split / new).symlink_to(image_folder / split / old)
        error = error_of("evaluate", "--init", runs / "finetune", "--data.root", tmp_path / "data")
        assert (
            "3 classes day, fog, night, ... against 3 bright, dark, gray, ...; evaluate on data with the same"
            in error
        )

    def test_folder_replaces_the_digits_of_a_run(self, error_of, image_folder, tmp_path):
        run = tmp_path / "run"
        recipe = ["--config", "finetune_digits", *SHORT, "--training.epochs=1", "--training.max_steps=1"]
        assert command("finetune", *recipe, "--out", run) == 0
        error = error_of("evaluate", "--init", run, "--data.root", image_folder)
        assert "3 classes bright, dark, gray, ... against 10 0, 1, 2, 3, ..." in error

    @pytest.mark.parametrize("name", ["evaluate", "predict", "features"])
    def test_precision_that_does_not_exist(self, error_of, runs, image_folder, name):
        images = ["--images", image_folder] if name == "predict" else []
        error = error_of(name, "--init", runs / "finetune", "--evaluation.precision=fp16", *images)
        assert "--evaluation.precision must be one of fp32, bf16; got 'fp16'" in error

    def test_split_that_does_not_exist(self, error_of, runs):
        error = error_of("reconstruct", "--init", runs / "pretrain", "--split=val")
        assert "--split" in error
        assert "'val'" in error

    def test_counts_below_one(self, error_of, runs, image_folder):
        images = ["--images", image_folder]
        assert "top must be at least 1; got 0" in error_of(
            "predict", "--init", runs / "finetune", "--top=0", *images
        )
        assert "count must be at least 1; got 0" in error_of(
            "reconstruct", "--init", runs / "pretrain", "--count=0"
        )
        assert "neighbors must be at least 1; got 0" in error_of(
            "features", "--init", runs / "pretrain", "--neighbors=0"
        )

    def test_probe_without_a_pretrained_encoder(self, error_of, image_folder):
        error = error_of("linear-probe", "--data.root", image_folder, *MODEL, *SHORT)
        assert "missing --init; add --init VALUE" in error

    def test_statistics_on_a_full_disk(self, error_of, image_folder, monkeypatch):
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(map_vision.commands, "save_statistics", Mock(side_effect=full))
        error = error_of("statistics", "--data.root", image_folder, "--workers=0", "--progress=false")
        assert "out (No space left on device); make room, then repeat the command" in error

    def test_loss_that_is_not_finite(self, error_of, image_folder):
        error = error_of(
            "finetune", "--data.root", image_folder, *MODEL, *SHORT, "--data.std=[1e-38]", status=3
        )
        assert "the loss is not finite at step 1" in error
