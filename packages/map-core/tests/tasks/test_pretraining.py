"""Pretraining as a task: what is exported is the backbone, and the whole objective comes back."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_domain import CHANNELS, CLASSES, DOMAIN, ToyNet, ToySamples, ToySimMIMConfig, open_data

from map_core import Draw, Masking, UserError
from map_core.objectives.masked_autoregression import MaskedAutoregressionConfig
from map_core.objectives.simmim import SimMIM
from map_core.tasks.classification import FinetuneTask
from map_core.tasks.domain import OpenedData, Skipped
from map_core.tasks.monitors import MonitorConfig
from map_core.tasks.pretraining import (
    PretrainTask,
    hide_and_reconstruct,
    inputs_to_draw,
    load_objective,
)
from map_core.tasks.weights import read_description
from map_core.testing import toy_objective
from map_core.training import train


def batch(count=4):
    return torch.stack([ToySamples(count)[i][0] for i in range(count)])


def copy_weights(run, folder, change):
    """Copy the weights of a run with their descriptions, whose text ``change`` changes."""
    for path in run.glob("*.safetensors"):
        (folder / path.name).write_bytes(path.read_bytes())
        description = path.with_suffix(".json")
        (folder / description.name).write_text(change(description.read_text()))


# ---- configuration


def test_defaults_are_the_papers():
    config = MaskedAutoregressionConfig()
    config.validate()
    assert config.masking == Masking(0.5, strategy="random", scope="all")
    assert (config.attention, config.decoder_depth, config.decoder_dim) == ("map", 4, 192)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": -0.1}, r"objective.mask_ratio must lie in \[0, 1\); got -0.1"),
        ({"mask_ratio": 1.0}, r"objective.mask_ratio must lie in \[0, 1\); got 1.0"),
        ({"mask_ratio": math.nan}, r"objective.mask_ratio must lie in \[0, 1\); got nan"),
        ({"target_scales": ()}, r"objective.target_scales must begin with 1 and grow, such as .*; got \[\]"),
        (
            {"target_scales": (1, 3, 3)},
            r"objective.target_scales must begin with 1 and grow, .*; got \[1, 3, 3\]",
        ),
        ({"method": "simmim"}, r"objective.method of these settings is masked_autoregression; got simmim"),
        ({"mask_ratio_std": 0.1, "mask_ratio_bounds": (0.7, 0.3)}, r"0 < low < high < 1; got 0.7, 0.3"),
        ({"mask_ratio_std": 0.1, "mask_ratio_bounds": (0.0, 0.3)}, r"mask_ratio_bounds .* got 0.0, 0.3"),
        ({"mask_ratio_std": 0.0}, r"objective.mask_ratio_std must be positive; got 0.0"),
        (
            {"mask_ratio_bounds": (0.2, 0.4)},
            r"objective.mask_ratio_bounds \(0.2, 0.4\) has no effect with a fixed ratio .*: leave it at \(0.3, 0.7\)",
        ),
        (
            {"mask_placement": "random"},
            r"objective.mask_placement 'random' has no effect with .*'random': choose",
        ),
        (
            {"mask_placement": "random", "mask_strategy": "sequential", "mask_scope": "region"},
            r"objective.mask_placement 'random' draws a start in the whole scan, .* choose objective.mask_scope all",
        ),
        ({"decoder_dim": 190}, r"decoder_dim \(190\) must be a multiple of objective.decoder_heads \(16\)"),
        ({"decoder_depth": 0}, r"objective.decoder_depth must be at least 1; got 0"),
        ({"decoder_heads": 0}, r"objective.decoder_heads must be at least 1; got 0"),
        ({"decoder_dim": 0}, r"objective.decoder_dim must be at least 1; got 0"),
    ],
)
def test_wrong_settings_name_the_field_the_value_and_the_rule(settings, message):
    with pytest.raises(UserError, match=message):
        MaskedAutoregressionConfig(**settings).validate()


def test_every_setting_reaches_the_masking():
    settings = MaskedAutoregressionConfig(
        mask_ratio=0.4,
        mask_ratio_std=0.2,
        mask_ratio_bounds=(0.2, 0.6),
        mask_strategy="diagonal",
        mask_scope="region",
        mask_placement="random",
    )
    assert settings.masking == Masking(0.4, 0.2, (0.2, 0.6), "diagonal", "region", placement="random")


# ---- the task


def test_the_loss_is_the_objectives_under_the_draw_of_the_step(make_config):
    task, draw = PretrainTask(DOMAIN, make_config("pretrain")), Draw.of_batch(4, seed=3)
    terms = task.loss(task.model, (batch(), torch.zeros(4)), draw)
    assert terms.loss == task.model(batch(), draw).loss


def test_a_mixer_changes_the_inputs_of_the_objective_and_gets_the_draw(make_config):
    task, draw = PretrainTask(DOMAIN, make_config("pretrain")), Draw.of_batch(4, seed=3)

    def mixer(inputs, labels, draw):
        return inputs[torch.randperm(4, generator=draw.generator("pairs"))] + inputs, labels

    task.mixer = mixer
    mixed, _ = mixer(batch(), None, draw)
    assert task.loss(task.model, (batch(), torch.zeros(4)), draw).loss == task.model(mixed, draw).loss
    assert task.model(mixed, draw).loss != task.model(batch(), draw).loss


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_run_exports_the_backbones_state_and_apart_from_it_the_rest(pretrained, weights):
    out, task = pretrained
    suffix = "" if weights == "raw" else "_ema"
    backbone, rest = (
        load_file(out / f"model{suffix}.safetensors"),
        load_file(out / f"pretraining{suffix}.safetensors"),
    )
    assert backbone.keys() == ToyNet().state_dict().keys()
    assert {key.split(".")[0] for key in rest} == {"decoder", "head"}
    if weights == "raw":
        state = task.model.state_dict()
        assert state.keys() == {f"backbone.{key}" for key in backbone} | rest.keys()
        assert all(torch.equal(state[f"backbone.{key}"], value) for key, value in backbone.items())
        assert all(torch.equal(state[key], value) for key, value in rest.items())
    description = read_description(out / f"model{suffix}.safetensors")
    assert description == {
        "name": "toy", "arguments": {}, "task": "pretrain", "holds": "encoder", "weights": weights, "flip": False,
    }  # fmt: skip


@pytest.mark.parametrize("file", ["", "model_ema.safetensors"])
def test_the_whole_objective_comes_back(pretrained, file):
    out, task = pretrained
    trained = load_objective(DOMAIN, out / file)
    result = hide_and_reconstruct(trained.objective, batch(), seed=1)
    expected = hide_and_reconstruct(task.model, batch(), seed=1)
    assert torch.equal(result.mask.drop, expected.mask.drop)
    assert torch.equal(result.prediction, expected.prediction) is (file == "")
    assert trained.settings == task.config.objective
    assert trained.model == task.config.model


def test_the_picture_of_a_run_is_that_of_its_trained_objective(pretrained):
    out, task = pretrained
    inputs = inputs_to_draw(task.data.plain_train)
    expected = hide_and_reconstruct(load_objective(DOMAIN, out).objective, inputs).prediction
    assert np.array_equal(np.load(out / "reconstructions.png"), expected.numpy())


def test_pretraining_goes_on_from_another_runs_backbone(pretrained, make_config):
    out, trained = pretrained
    task = PretrainTask(DOMAIN, make_config("pretrain", init=str(out)))
    fresh = PretrainTask(DOMAIN, make_config("pretrain"))
    for key, value in task.model.state_dict().items():
        source = trained if key.startswith("backbone.") else fresh
        assert torch.equal(value, source.model.state_dict()[key]), key


def test_training_data_is_needed(make_config):
    data = dataclasses.replace(open_data(make_config("pretrain").data, None, "pretrain"), train=None)
    with pytest.raises(
        UserError, match=r"no training split, which this needs, in toys for pretrain: pass --data"
    ):
        PretrainTask(DOMAIN, make_config("pretrain"), data)


def test_skipped_samples_are_reported_and_summarised(make_config, tmp_path, capsys):
    data = open_data(make_config("pretrain").data, None, "pretrain")
    data = dataclasses.replace(data, skipped=lambda: Skipped(2, "2 toys were unreadable"))
    summary = {}
    task = PretrainTask(DOMAIN, make_config("pretrain"), data)
    task.finish(task.model, tmp_path, summary)
    assert summary == {"skipped_toys": 2}
    assert capsys.readouterr().out == "2 toys were unreadable\n"


# ---- methods


def test_a_run_of_another_method_comes_back_as_that(make_config, tmp_path):
    config = make_config("pretrain", objective=ToySimMIMConfig(mask_ratio=0.25))
    task = PretrainTask(DOMAIN, config)
    train(task, config.training, tmp_path, run_config=config)
    trained = load_objective(DOMAIN, tmp_path)
    assert isinstance(trained.objective, SimMIM)
    assert trained.settings == config.objective
    result = hide_and_reconstruct(trained.objective, batch())
    assert torch.equal(result.prediction, hide_and_reconstruct(task.model, batch()).prediction)
    assert (tmp_path / "reconstructions.png").is_file()


def test_a_run_of_a_method_that_the_domain_does_not_have_is_refused(pretrained, tmp_path):
    copy_weights(pretrained[0], tmp_path, lambda text: text.replace("masked_autoregression", "contrastive"))
    with pytest.raises(
        UserError, match=r"describes objective.method 'contrastive', which map-toy does not have"
    ):
        load_objective(DOMAIN, tmp_path)


def test_a_description_without_a_method_is_of_the_first(pretrained, tmp_path):
    """Up to version 0.1 there was one."""

    def without_method(text):
        description = json.loads(text)
        description.get("objective", {}).pop("method", None)
        return json.dumps(description)

    copy_weights(pretrained[0], tmp_path, without_method)
    assert load_objective(DOMAIN, tmp_path).settings.method == "masked_autoregression"


def test_the_objective_is_told_how_long_training_is(make_config, monkeypatch):
    lengths = []
    monkeypatch.setattr(SimMIM, "begin", lambda self, total_steps: lengths.append(total_steps), raising=False)
    PretrainTask(DOMAIN, make_config("pretrain", objective=ToySimMIMConfig()))
    assert lengths == [6]  # two epochs of 24 samples in batches of 8


# ---- loading, refused


def test_a_classifier_has_no_decoder(finetuned):
    with pytest.raises(
        UserError, match=r"has no pretraining.safetensors with .* reconstruction needs the decoder"
    ):
        load_objective(DOMAIN, finetuned[0])


def test_a_decoder_that_does_not_fit_names_its_keys(pretrained, tmp_path):
    copy_weights(pretrained[0], tmp_path, lambda text: text.replace('"decoder_dim": 8', '"decoder_dim": 4'))
    with pytest.raises(
        UserError, match=r"pretraining.safetensors does not fit the objective that it describes: decoder\."
    ):
        load_objective(DOMAIN, tmp_path)


def test_a_decoder_of_another_size_is_distinguished_from_a_broken_description(pretrained, make_config):
    config = make_config("pretrain", init=str(pretrained[0]), init_decoder=True)
    PretrainTask(DOMAIN, config)
    wider = dataclasses.replace(config.objective, decoder_dim=4)
    message = (
        r"pretraining.safetensors does not fit this objective; set .* or leave --init_decoder out: decoder\."
    )
    with pytest.raises(UserError, match=message):
        PretrainTask(DOMAIN, dataclasses.replace(config, objective=wider))


# ---- pictures


@pytest.mark.parametrize("training", [True, False])
def test_reconstructing_leaves_the_objective_as_it_was(training):
    objective = toy_objective(masking=Masking(0.5, 0.1, scope="region")).train(training)
    masking = objective.masking
    result = hide_and_reconstruct(objective, torch.randn(2, 4, 3, CHANNELS), ratio=0.25, seed=1)
    assert result.mask.drop.shape == (2, 3)
    assert not result.prediction.requires_grad
    assert objective.masking is masking
    assert objective.training is training


def test_an_error_leaves_the_objective_as_it_was_too():
    objective = toy_objective()
    masking = objective.masking
    with pytest.raises(UserError, match="mask ratio must lie in"):
        hide_and_reconstruct(objective, torch.randn(2, 4, 3, CHANNELS), ratio=2.0)
    assert objective.masking is masking
    assert objective.training


@pytest.mark.parametrize(
    ("samples", "count", "indices"), [(24, 6, [0, 4, 8, 12, 16, 20]), (5, 6, [0, 1, 2, 3, 4]), (7, 2, [0, 3])]
)
def test_pictures_show_samples_spread_over_the_data(samples, count, indices):
    data = ToySamples(samples)
    assert torch.equal(inputs_to_draw(data, count), torch.stack([data[i][0] for i in indices]))


class BareInputs:
    """A user's minimal data set: tensors, no names, nothing else."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index][0]


class Labelled(BareInputs):
    def __getitem__(self, index):
        inputs, label = self.samples[index]
        return inputs, int(label)


def user_data(train):
    return OpenedData("my own", CLASSES, train, None, None)


@pytest.mark.parametrize("kind", [BareInputs, Labelled, list])
def test_any_map_style_data_set_is_trained_on_to_the_end(make_config, tmp_path, kind):
    samples = ToySamples(24)
    train_data = kind([samples[i] for i in range(24)])
    task = PretrainTask(DOMAIN, make_config("pretrain"), user_data(train_data))
    summary = train(task, task.config.training, str(tmp_path / "run"), run_config=task.config)
    assert summary["loss"] > 0
    assert (tmp_path / "run/reconstructions.png").exists()
    plain = PretrainTask(DOMAIN, make_config("pretrain"), user_data(samples))
    train(plain, plain.config.training, tmp_path / "plain", run_config=plain.config)
    for name in ("model.safetensors", "reconstructions.png"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_any_labelled_data_set_is_finetuned_on_to_the_end(make_config, tmp_path):
    task = FinetuneTask(DOMAIN, make_config("finetune"), user_data(Labelled(ToySamples(24))))
    train(task, task.config.training, tmp_path / "run", run_config=task.config)
    assert DOMAIN.models.classifier(tmp_path / "run")[1] == CLASSES


@pytest.mark.parametrize(
    "form",
    [lambda x, label: x, lambda x, label: (x,), lambda x, label: (x, "name"), lambda x, label: (x, label, "name")],
    ids=["inputs", "one part", "a name", "three parts"],
)  # fmt: skip
def test_samples_of_every_form_are_monitored_alike(make_config, tmp_path, form):
    config = make_config("pretrain", monitor=MonitorConfig(samples=16))
    summaries = []
    for name, samples in (("plain", all_of(24)), ("other", [form(*sample) for sample in all_of(24)])):
        data = dataclasses.replace(user_data(samples), classes=(), plain_train=samples, evaluation=samples)
        task = PretrainTask(DOMAIN, config, data)
        summaries.append(train(task, config.training, tmp_path / name, run_config=config))
    for name in ("loss", "heldout_loss", "rankme"):
        assert summaries[0][name] == summaries[1][name]


def all_of(count):
    samples = ToySamples(count)
    return [samples[i] for i in range(count)]


def test_samples_with_more_parts_than_a_label_are_finetuned_on_and_measured_alike(make_config, tmp_path):
    plain, config = all_of(24), make_config("finetune")
    summaries = []
    for name, samples in (("plain", plain), ("named", [(x, int(label), "name") for x, label in plain])):
        data = dataclasses.replace(user_data(samples), classes=CLASSES, evaluation=samples)
        task = FinetuneTask(DOMAIN, config, data)
        summaries.append(train(task, config.training, tmp_path / name, run_config=config))
    for name in ("loss", "test_accuracy", "test_loss"):
        assert summaries[0][name] == summaries[1][name]


def test_samples_to_measure_on_have_the_form_of_those_to_train_on(make_config):
    """Labels that are missing would be measured as class 0."""
    bare, labelled = BareInputs(ToySamples(8)), Labelled(ToySamples(24))
    data = dataclasses.replace(user_data(labelled), classes=CLASSES, plain_train=labelled, evaluation=bare)
    message = r"a sample must be \(input tensor, whole number\); sample 0 of BareInputs is Tensor"
    with pytest.raises(UserError, match=message):
        FinetuneTask(DOMAIN, make_config("finetune"), data)
    with pytest.raises(UserError, match=message):
        PretrainTask(DOMAIN, make_config("pretrain", monitor=MonitorConfig(samples=16)), data)
    with pytest.raises(UserError, match="list has no samples; give a data set that has some"):
        FinetuneTask(DOMAIN, make_config("finetune"), dataclasses.replace(data, evaluation=[]))


@pytest.mark.parametrize(
    ("task", "train_data", "message"),
    [
        (
            PretrainTask,
            [{"image": 1}],
            "a sample must be an input tensor, or a tuple .*; sample 0 of list is dict;",
        ),
        (
            FinetuneTask,
            BareInputs(ToySamples(8)),
            r"a sample must be \(input tensor, whole number\); .* is Tensor;",
        ),
        (
            FinetuneTask,
            [(torch.zeros(3), 1.5)],
            r"a sample must be .*; sample 0 of list is Tensor, float; change its",
        ),
    ],
)
def test_other_data_sets_are_refused_before_anything_is_trained(make_config, task, train_data, message):
    config = make_config("pretrain" if task is PretrainTask else "finetune")
    with pytest.raises(UserError, match=message):
        task(DOMAIN, config, user_data(train_data))


def test_the_averaged_weights_of_a_run_are_the_average_of_its_last_checkpoint(pretrained):
    """Of the encoder, and of the decoder and head beside it."""
    out, _ = pretrained
    backbone, rest = (load_file(out / f"{name}_ema.safetensors") for name in ("model", "pretraining"))
    exported = {f"backbone.{key}": value for key, value in backbone.items()} | rest
    average = load_file(max((out / "checkpoints").glob("step_*")) / "ema.safetensors")
    assert exported.keys() == average.keys()
    assert all(torch.equal(value, average[key]) for key, value in exported.items())
