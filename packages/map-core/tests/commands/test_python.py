"""Commands as functions: the same runs, files and refusals as on the command line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from toy_domain import DOMAIN

from map_core import UserError
from map_core.commands.listing import standard_commands
from map_core.commands.program import find_command, main
from map_core.commands.python import Functions, read_result

COMMANDS = standard_commands(DOMAIN, sample="toy")
TOYS = Functions(COMMANDS, DOMAIN.recipes, files="toys")
TRAINING = {
    "warmup_epochs": 0, "workers": 0, "tensorboard": False, "progress": False,
}  # fmt: skip
QUICK = {"epochs": 2, "batch_size": 8, "lr": 0.01, "device": "cpu", "settings": {"training": TRAINING}}
RUNNING = {"device": "cpu", "settings": {"evaluation.workers": 0, "evaluation.progress": False}}


def on_the_command_line(name, *arguments):
    quick = ("epochs=2", "batch_size=8", "lr=0.01", "device=cpu", *(f"{k}={v}" for k, v in TRAINING.items()))
    line = [name, *(f"--training.{setting}".replace("False", "false") for setting in quick), *arguments]
    assert main("map-toy", COMMANDS, DOMAIN.recipes, list(map(str, line))) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    options = {"model.embed_dim": np.int64(12), "data.flip": True}
    pretrained = TOYS.pretrain("sea", model="toy", out=root / "pretrain", **QUICK, **options)
    return {"pretrain": pretrained, "finetune": TOYS.finetune(init=pretrained.out, out=root / "f", **QUICK)}


def test_a_function_leaves_what_its_command_leaves(runs, tmp_path):
    on_the_command_line(
        "pretrain", "--data.root=sea", "--model.embed_dim=12", "--data.flip=true", "--out", tmp_path
    )
    run = runs["pretrain"]
    for name in ("model.safetensors", "pretraining.safetensors"):
        assert run[name].read_bytes() == (tmp_path / name).read_bytes()
    settings, of_command = (yaml.safe_load((out / "config.yaml").read_text()) for out in (run.out, tmp_path))
    assert settings | {"out": None} == of_command | {"out": None}


def test_a_result_has_measures_files_and_a_picture(runs):
    run = runs["pretrain"]
    assert run.metrics == json.loads((run.out / "summary.json").read_text())
    assert run.picture == run.out / "reconstructions.png"
    assert run._repr_png_() == run.picture.read_bytes()
    assert runs["finetune"].picture == runs["finetune"].out / "curves.png"
    with pytest.raises(
        UserError, match=r"pretrain has no model\.safetensor; did you mean model\.safetensors"
    ):
        run["model.safetensor"]


def test_predictions_and_features_are_those_of_the_command(runs, tmp_path):
    toys, run = ["30", "31", "32"], runs["finetune"].out
    table = TOYS.predict(run, toys, out=tmp_path / "p.csv", top=2, **RUNNING)
    assert [line.split(",")[0] for line in table.out.read_text().splitlines()] == [
        "toy",
        *(f"sample {n}" for n in toys),
    ]
    for name in ("p", "some"):
        (tmp_path / f"{name}.json").write_text("no JSON of ours")
    assert TOYS.predict(run, toys, out=tmp_path / "p.csv", top=2, **RUNNING).metrics == {}
    assert TOYS.features(run, toys, out=tmp_path / "some.npz", **RUNNING).metrics == {}
    features = TOYS.features(run, out=tmp_path / "all.npz", neighbors=1, **RUNNING)
    with np.load(features.out) as arrays:
        assert arrays["train_features"].shape == (24, 12)
    assert features.metrics == json.loads((tmp_path / "all.json").read_text())
    assert features.metrics["neighbors"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"training.epoch": 3}, r"pretrain\(\) has no setting training\.epoch; did you mean .*training\.epochs"),
        ({"settings": {"training": {"lrr": 3}}}, r"has no setting training\.lrr; did you mean .*training\.lr"),
        ({"batchsize": 3}, r"has no setting batchsize; did you mean .*batch_size"),
        ({"epochs": 3, "training.epochs": 4}, r"pretrain\(\) was given training\.epochs twice"),
        ({"training": 3}, r"training of pretrain\(\) must be a mapping of settings; got 3"),
        ({"settings": {"data.count": 3}, "data.count": 4}, r"pretrain\(\) was given data\.count twice; give it once"),
        ({"data": None, "settings": {"data": {"count": 3}, "data.count": 4}}, r"given data\.count twice"),
        ({"epochs": 0}, r"training\.epochs must be at least 1; got 0"),
        ({"data.flip": "maybe"}, r"--data\.flip must be true or false; got 'maybe'"),
        ({"model": "toy", "config": "nothing"}, r"unknown recipe 'nothing'"),
        ({"objective.method": "simmim", "objective.decoder_dim": 8}, r"--objective\.decoder_dim is not a setting of"),
    ],
)  # fmt: skip
def test_what_no_command_takes_is_refused(arguments, message, tmp_path, unchecked):
    with pytest.raises(UserError, match=message):
        TOYS.pretrain(**{"out": tmp_path / "run", **arguments})
    assert not (tmp_path / "run").exists()


def test_numbers_are_among_the_settings_that_defaults_depend_on(tmp_path):
    explicit_settings = []

    def defaults(explicit):
        explicit_settings.append(explicit)
        return {}

    command = replace(find_command("pretrain", COMMANDS), defaults=defaults, run=lambda config: None)
    settings = {"data.count": 16, "data.flip": True, "training": {"clip_grad": None}}
    Functions([command], DOMAIN.recipes, files="toys").pretrain("sea", out=tmp_path, **settings)
    expected = {"data.root": "sea", "out": str(tmp_path), "data.count": "16", "data.flip": "True"}
    assert explicit_settings == [expected]


def test_settings_override_recipes_and_none_is_null(tmp_path):
    (tmp_path / "one.yaml").write_text("training: {clip_grad: 2.0, epochs: 5}\ndata: {count: 16}\n")
    run = TOYS.pretrain(
        config=tmp_path / "one.yaml", out=tmp_path / "run", **QUICK, **{"training.clip_grad": None}
    )
    config = yaml.safe_load((Path(run.out) / "config.yaml").read_text())
    assert (config["training"]["clip_grad"], config["training"]["epochs"], config["data"]["count"]) == (
        None,
        2,
        16,
    )


@pytest.mark.parametrize("content", ["no JSON", "[1]", json.dumps({"task": "mine"})])
def test_somebody_else_s_file_beside_features_is_not_their_score(runs, tmp_path, content):
    (tmp_path / "all.json").write_text(content)
    assert read_result(tmp_path / "all.npz", tmp_path / "all.json", "features").metrics == {}


def test_a_text_in_brackets_is_a_value_in_python(tmp_path):
    configs = []
    command = replace(find_command("predict", COMMANDS), run=configs.append)
    functions = Functions([command], DOMAIN.recipes, files="toys")
    functions.predict("run", "[30]", out=tmp_path / "p.csv")
    functions.predict("run", ["[30]", "31"], out=tmp_path / "p.csv")
    assert [config.toys for config in configs] == [["[30]"], ["[30]", "31"]]


def test_a_text_in_brackets_is_a_list_where_texts_are_none(tmp_path):
    configs = []
    command = replace(find_command("pretrain", COMMANDS), run=configs.append)
    functions = Functions([command], DOMAIN.recipes, files="toys")
    functions.pretrain("sea", settings={"training.betas": "[0.5, 0.9]"}, out=tmp_path)
    assert [config.training.betas for config in configs] == [(0.5, 0.9)]


def test_no_recipe_is_none(tmp_path):
    configs = []
    command = replace(find_command("pretrain", COMMANDS), run=configs.append)
    Functions([command], DOMAIN.recipes, files="toys").pretrain("sea", config=None, out=tmp_path)
    assert [config.data.root for config in configs] == ["sea"]
