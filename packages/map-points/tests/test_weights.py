"""Which weights a point model may start from, and what of it starts anew."""

import re
from dataclasses import replace

import pytest
import torch

from map_core.commands.standard import model_of_weights
from map_core.errors import UserError
from map_core.tasks.weights import read_weights, save_weights
from map_points.domain import DOMAIN
from map_points.factory import MODELS, PointModelConfig, create_backbone, create_classifier, create_probed
from map_points.segmentation.task import PART_SEGMENTER, SegmentationConfig, build_segmenter
from map_points.weights import load_init

CLASS_TOKEN = {"encoder.registers.token", "encoder.registers.position"}


def head_of(model):
    """Names of what a classifier's head learns and measures."""
    names = (f"head.{name}" for name in model.head.state_dict())
    return {name for name in names if not name.endswith("num_batches_tracked")}


@pytest.fixture
def save_model(tmp_path):
    """Saves a model's weights and returns their file."""

    def save(model):
        save_weights(tmp_path / "model.safetensors", model.state_dict(), {})
        return tmp_path / "model.safetensors"

    return save


def test_a_classifier_starts_from_the_pretrained_encoder(save_model, tiny_model):
    file = save_model(create_backbone(tiny_model))
    model = create_classifier(tiny_model, 2)
    missing = load_init(model, file).missing
    assert set(missing) == head_of(model) | CLASS_TOKEN
    for name, value in read_weights(file).items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("create", [create_backbone, lambda model: create_probed(model, 2)])
def test_an_encoder_starts_from_a_classifier_without_class_token_and_head(
    save_model, tiny_model, caplog, create
):
    classifier, model = create_classifier(tiny_model, 3), create(tiny_model)
    file = save_model(classifier)
    report = load_init(model, file)
    assert set(report.unused) >= head_of(classifier) | CLASS_TOKEN
    for name, value in classifier.state_dict().items():
        if name.startswith("encoder.blocks."):
            assert torch.equal(model.state_dict()[name], value)
    assert f"{file}: loaded; new: " in caplog.text
    assert "encoder.registers.token" in caplog.text.partition("; left: ")[2]


def test_a_head_for_another_number_of_classes_is_reinitialised(save_model, tiny_model):
    file, model = save_model(create_classifier(tiny_model, 2)), create_classifier(tiny_model, 5)
    assert set(load_init(model, file).missing) == head_of(model)


def test_a_head_of_another_kind_is_reinitialised(save_model, tiny_model):
    file, model = save_model(create_probed(tiny_model, 2)), create_classifier(tiny_model, 2)
    assert set(load_init(model, file).missing) == head_of(model) | CLASS_TOKEN


@pytest.mark.parametrize("keep_head", [True, False])
def test_a_head_of_the_same_shape_is_kept_where_asked_for(save_model, tiny_model, keep_head):
    source, model = create_classifier(tiny_model, 2), create_classifier(tiny_model, 2)
    load_init(model, save_model(source), keep_head=keep_head)
    assert torch.equal(model.head[0].weight, source.head[0].weight) == keep_head
    assert torch.equal(model.encoder.blocks[0].norm1.weight, source.encoder.blocks[0].norm1.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "MMTM"}, r"does not fit this model: missing: encoder.blocks.3"),
        ({"layout": "MM"}, r"does not fit this model: not used: encoder.blocks.2"),
        ({"embed_dim": 32}, r"shapes: .*\(16,\) for \(32,\)"),
    ],
    ids=["missing", "not used", "shapes"],
)
def test_weights_of_another_model_are_refused(save_model, tiny_model, changes, message):
    file = save_model(create_backbone(tiny_model))
    with pytest.raises(UserError, match=message):
        load_init(create_classifier(replace(tiny_model, **changes), 2), file)


def test_a_path_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        read_weights(tmp_path / "nothing")


def test_a_file_that_is_cut_off_is_refused(save_model, tiny_model):
    file = save_model(create_backbone(tiny_model))
    file.write_bytes(b"cut off")
    with pytest.raises(UserError, match=r"is not a weights file \(looks like text\)"):
        load_init(create_backbone(tiny_model), file)


@pytest.mark.parametrize(
    ("trained", "now", "message"),
    [
        ({}, {"order": "z_order"}, "order 'fps', this model has 'z_order'"),
        ({"num_heads": 3}, {}, "num_heads 3, this model has 6"),
        ({"scan": "channel_flip"}, {}, "scan 'channel_flip', this model has 'both'"),
        ({"neighbors": 8}, {}, "neighbors 8, this model has 4"),
        ({"patch_size": 16}, {}, "patch_size 16, this model has 32"),
    ],
)  # fmt: skip
def test_settings_that_shapes_do_not_show_are_compared(tmp_path, trained, now, message):
    before, after = PointModelConfig(**trained), PointModelConfig(**now)
    save_weights(tmp_path / "model.safetensors", {}, MODELS.describe(before))
    MODELS.refuse_other_settings(before, tmp_path)
    with pytest.raises(
        UserError, match=f"was trained with model.{re.escape(message)}: even where its weights fit, they"
    ):
        MODELS.refuse_other_settings(after, tmp_path)
    MODELS.refuse_other_settings(after, tmp_path, may_differ=[message.split()[0]])


@pytest.mark.parametrize(
    ("setting", "value"), [("pool", "max"), ("second_order", "z_order"), ("local_class_token", True)]
)
def test_no_encoder_was_trained_with_the_settings_of_a_classifier(tmp_path, setting, value):
    before, after = PointModelConfig(), PointModelConfig(**{setting: value})
    save_weights(tmp_path / "model.safetensors", {}, MODELS.describe(before, holds="encoder"))
    MODELS.refuse_other_settings(after, tmp_path)
    inherited = model_of_weights(DOMAIN, {"init": str(tmp_path)})
    assert "model.order" in inherited
    assert f"model.{setting}" not in inherited  # so that a recipe's value holds
    with pytest.raises(UserError, match=r"was trained with model.order 'fps', this model has 'z_order'"):
        MODELS.refuse_other_settings(replace(after, order="z_order"), tmp_path)
    description = MODELS.describe(before, holds="classifier", classes=["a", "b"])
    save_weights(tmp_path / "model.safetensors", {}, description)
    with pytest.raises(UserError, match=f"was trained with model.{setting} .*, this model has {value!r}"):
        MODELS.refuse_other_settings(after, tmp_path)


def test_weights_without_a_description_are_taken_as_they_are(tmp_path):
    save_weights(tmp_path / "model.safetensors", {}, {})
    MODELS.refuse_other_settings(PointModelConfig(), tmp_path)


@pytest.mark.parametrize("create", [create_backbone, lambda model: create_classifier(model, 2)])
def test_a_run_of_a_part_segmenter_starts_no_other_model(tmp_path, tiny_model, create):
    segmenter = build_segmenter(tiny_model, SegmentationConfig(hidden_dim=8), 2, 4)
    description = MODELS.describe(tiny_model, holds=PART_SEGMENTER)
    save_weights(tmp_path / "model.safetensors", segmenter.state_dict(), description)
    with pytest.raises(
        UserError, match=rf"{tmp_path} holds a part segmenter: map-points segment starts from it"
    ):
        load_init(create(tiny_model), tmp_path)


def test_a_manifest_makes_no_checkpoint_of_a_run(tiny_model, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    torch.save({"foo.weight": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="is a checkpoint of no family that is known here"):
        load_init(create_classifier(tiny_model, 2), tmp_path / "x.pth")


def test_checkpoints_and_decoders_of_a_run_lead_to_the_run(pretrained, tiny_model):
    run, _ = pretrained
    (checkpoint,) = (run / "checkpoints").iterdir()
    for path in (checkpoint, checkpoint / "model.safetensors", run / "pretraining.safetensors"):
        with pytest.raises(
            UserError,
            match=rf"is a checkpoint or the decoder of the run {run}: give {run} itself, to start from",
        ):
            load_init(create_classifier(tiny_model, 2), path)
