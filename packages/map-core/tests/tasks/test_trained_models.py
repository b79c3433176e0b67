"""Models of runs are rebuilt whole, or refused with what is there instead."""

import pytest
import torch
from toy_domain import DOMAIN, ToyModelConfig, ToyNet

from map_core import UserError
from map_core.tasks.weights import save_weights

MODELS = DOMAIN.models
WIDE = ToyModelConfig(embed_dim=12)


def export(directory, num_classes, **description):
    """A model of another width than the default, and its run."""
    model = ToyNet(12, num_classes)
    save_weights(directory / "model.safetensors", model.state_dict(), MODELS.describe(WIDE, **description))
    return model


def same(one, other):
    state, other_state = one.state_dict(), other.state_dict()
    return state.keys() == other_state.keys() and all(
        torch.equal(state[key], other_state[key]) for key in state
    )


@pytest.mark.parametrize("name", ["", "model.safetensors"], ids=["directory", "file"])
def test_a_classifier_comes_back_in_evaluation_mode_with_its_classes(tmp_path, name):
    model = export(tmp_path, 2, holds="classifier", classes=["cat", "dog"])
    rebuilt, classes = MODELS.classifier(tmp_path / name)
    assert classes == ("cat", "dog")
    assert same(rebuilt, model)
    assert not rebuilt.training


@pytest.mark.parametrize(
    ("num_classes", "description"),
    [(0, {"holds": "encoder"}), (2, {"holds": "classifier", "classes": ["cat", "dog"]})],
    ids=["of a pretraining run", "of a classifier, whose head reads them"],
)
def test_an_encoder_comes_back_in_evaluation_mode(tmp_path, num_classes, description):
    model = export(tmp_path, num_classes, **description)
    rebuilt = MODELS.encoder(tmp_path)
    assert same(rebuilt, model)
    assert not rebuilt.training


@pytest.mark.parametrize(
    ("num_classes", "description", "classes"),
    [
        (0, {"holds": "encoder"}, ()),
        (2, {"holds": "classifier", "classes": ["cat", "dog"]}, ("cat", "dog")),
    ],
)
def test_a_loaded_model_knows_its_class_names(tmp_path, num_classes, description, classes):
    model = export(tmp_path, num_classes, **description)
    loaded = MODELS.load(tmp_path)
    assert same(loaded, model)
    assert loaded.classes == classes


def test_a_model_is_described_by_its_name_and_the_changes_to_it():
    assert MODELS.describe(WIDE, holds="encoder") == {
        "name": "toy", "arguments": {"embed_dim": 12}, "holds": "encoder",
    }  # fmt: skip
    assert MODELS.describe(ToyModelConfig()) == {"name": "toy", "arguments": {}}


def test_a_description_gives_the_configuration_back(tmp_path):
    export(tmp_path, 0, holds="encoder")
    assert MODELS.read_model_config(tmp_path) == WIDE
    (tmp_path / "model.json").unlink()
    assert MODELS.read_model_config(tmp_path) is None


@pytest.mark.parametrize(
    "read", [MODELS.read_model_config, MODELS.load, MODELS.classifier], ids=["settings", "load", "classifier"]
)
def test_a_model_of_another_domain_is_told_by_its_name(tmp_path, read):
    """Before settings of the same names, or of none that are known here, are taken for this domain's."""
    save_weights(tmp_path / "model.safetensors", {}, {"name": "cloud", "arguments": {"points": 8}})
    message = f"^{tmp_path} holds cloud, which is no model of this program: use the program that wrote it, or a newer"
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_a_pretrained_encoder_is_no_classifier(tmp_path):
    export(tmp_path, 0, holds="encoder")
    with pytest.raises(
        UserError, match=r"does not describe a classifier \(its .json says: encoder\); give a run that"
    ):
        MODELS.classifier(tmp_path)


@pytest.mark.parametrize("rebuild", [MODELS.classifier, MODELS.encoder], ids=["classifier", "encoder"])
def test_parameters_that_are_missing_are_named(tmp_path, rebuild):
    export(tmp_path, 0, holds="classifier", classes=["cat", "dog"])
    with pytest.raises(UserError, match=r"lacks head.weight, head.bias: it does not hold a complete model"):
        rebuild(tmp_path)


@pytest.mark.parametrize(
    ("rebuild", "message"),
    [
        (MODELS.classifier, r"does not describe a classifier \(its .json says: nothing\)"),
        (MODELS.encoder, "has no .json that describes its model: give a run's directory or its weights file"),
    ],
    ids=["classifier", "encoder"],
)
def test_weights_without_a_description_are_refused(tmp_path, rebuild, message):
    export(tmp_path, 2)
    (tmp_path / "model.json").unlink()
    with pytest.raises(UserError, match=message):
        rebuild(tmp_path)


@pytest.mark.parametrize("rebuild", [MODELS.classifier, MODELS.encoder], ids=["classifier", "encoder"])
def test_missing_weights_are_reported_as_such(tmp_path, rebuild):
    with pytest.raises(
        UserError, match=r"no weights at .*model.safetensors; give a finished run's directory"
    ):
        rebuild(tmp_path)
