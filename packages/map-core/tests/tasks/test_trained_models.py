"""Models of runs are rebuilt whole, or refused with what is there instead."""

import pytest
import torch
from map_core.trained_models import TrainedModels
from map_core.weights import load_init, read_description, save_weights
from torch import nn

from map_core import UserError


class Toy(nn.Module):
    def __init__(self, width, num_classes):
        super().__init__()
        self.body = nn.Linear(2, width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()


TOYS = TrainedModels(
    described=lambda path: read_description(path).get("width"),
    create_classifier=Toy,
    create_backbone=lambda width: Toy(width, 0),
    load_init=lambda model, path: load_init(model, path, may_be_missing=("head.",)),
)


def export(directory, model, **description):
    save_weights(directory / "model.safetensors", model.state_dict(), {"width": 3, **description})
    return directory


def test_classifier_and_encoder_come_back_in_evaluation_mode(tmp_path):
    torch.manual_seed(0)
    model = Toy(3, 2)
    run = export(tmp_path, model, holds="classifier", classes=["cat", "dog"])
    for path in (run, str(run / "model.safetensors")):
        rebuilt, classes = TOYS.classifier(path)
        assert classes == ("cat", "dog")
        for found in (
            rebuilt,
            TOYS.encoder(path),
        ):  # features of a classifier are those that its own head reads
            assert not found.training
            assert all(torch.equal(a, b) for a, b in zip(found.parameters(), model.parameters(), strict=True))


def test_a_pretrained_encoder_is_no_classifier(tmp_path):
    model = Toy(3, 0)
    run = export(tmp_path, model, holds="encoder")
    assert torch.equal(TOYS.encoder(run).body.weight, model.body.weight)
    with pytest.raises(
        UserError, match=r"describes no classifier \(its .json says: encoder\); give a run that"
    ):
        TOYS.classifier(run)


def test_what_is_missing_is_named(tmp_path):
    run = export(tmp_path, Toy(3, 0), holds="classifier", classes=["cat", "dog"])
    with pytest.raises(UserError, match=r"lacks head.weight, head.bias: it holds no whole model"):
        TOYS.classifier(run)
    (run / "model.json").unlink()
    with pytest.raises(UserError, match=r"describes no classifier \(its .json says: nothing\)"):
        TOYS.classifier(run)
    with pytest.raises(UserError, match=r"has no .json that describes its model: give a run's directory"):
        TOYS.encoder(run)
    (run / "model.safetensors").unlink()
    for rebuild in (TOYS.classifier, TOYS.encoder):
        with pytest.raises(
            UserError, match=r"no weights at .*model.safetensors; give a finished run's directory"
        ):
            rebuild(run)
