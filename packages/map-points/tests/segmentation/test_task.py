"""Training of part segmenters: settings, the loss, and a run that can be read back."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import map_points
from map_core import Draw
from map_core.errors import UserError
from map_core.tasks.weights import read_weights
from map_core.training import train
from map_points.data import PointDataConfig, load_part_data
from map_points.data.shapenetpart import CATEGORIES, PARTS_OF_SYNSET, UNLABELLED
from map_points.segmentation.metrics import part_metrics
from map_points.segmentation.task import (
    SegmentationConfig,
    SegmentConfig,
    SegmentTask,
    build_segmenter,
    load_segmenter,
    refuse_another_head,
    segmentation_totals,
    start_from,
)


@pytest.fixture(scope="module")
def config(two_part_shapes, tiny_model, short_training):
    pytest.importorskip("trimesh")
    return SegmentConfig(
        data=PointDataConfig("shapenetpart", str(two_part_shapes), num_points=64),
        model=tiny_model,
        objective=SegmentationConfig(hidden_dim=16),
        training=replace(short_training, epochs=2, batch_size=8),
    )


@pytest.fixture(scope="module")
def segmented(config, tmp_path_factory):
    """A run that trained a part segmenter (its directory), its task and its summary."""
    out = tmp_path_factory.mktemp("segmented") / "run"
    task = SegmentTask(config)
    return out, task, train(task, config.training, out, run_config=config)


def test_a_run_can_be_read_back(segmented):
    out, task, summary = segmented
    assert summary["protocol"].startswith("last epoch: ")
    assert summary["evaluated_on"] == "test split"
    run, state = load_segmenter(out), task.model.state_dict()
    assert run.parts == tuple((2 * i, 2 * i + 1) for i in range(5))
    assert run.model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in run.model.state_dict().items())


def test_samples_are_named_by_their_files(segmented):
    _, task, _ = segmented
    names = task.train_data.names
    assert len(set(names)) == len(task.train_data)
    assert all(name.endswith(".txt") for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": [[0, 1]]}, "does not list the parts of each of its classes; export the run again"),
        ({"parts": [["x"]] * 5}, "does not list the parts of each of its classes"),
        ({"parts": [[]] * 5}, "does not list the parts of each of its classes"),
        ({"parts": [3] * 5}, "does not list the parts of each of its classes"),
        ({"parts": {}}, "parts must be a list; got {}; export the run again"),
        ({"classes": 3}, "classes must be a list; got 3; export the run again"),
        ({"head": {"hidden_dim": "x"}}, "describes hidden_dim as 'x', which must be int; export the run again"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)  # fmt: skip
def test_a_broken_description_is_reported_in_one_sentence(segmented, tmp_path, change, message):
    run = shutil.copytree(segmented[0], tmp_path / "run")
    description = json.loads((run / "model.json").read_text())
    (run / "model.json").write_text(json.dumps(description | change))
    with pytest.raises(UserError, match=re.escape(message)):
        load_segmenter(run)


def test_a_budget_of_samples_is_measured_in_batches_that_fit_the_data(config, tmp_path):
    """Three parts of a batch of 64 do not fit it; those of the batch that the budget makes of it do."""
    training = replace(config.training, sample_budget=30, batch_size=64, accumulation_steps=3)
    task = SegmentTask(replace(config, training=training))
    samples = len(task.train_data)
    assert task.config.training == training.resolved_for(samples)
    assert task.config.training.batch_size % 3 == 0
    assert "test_instance_miou" in train(task, training, tmp_path / "run", run_config=task.config)


@pytest.mark.parametrize("batch_size", [3, 10])
def test_the_summary_measures_the_segmenter_that_was_exported(segmented, config, batch_size):
    out, _, summary = segmented
    run, data = load_segmenter(out), load_part_data(config.data)
    totals = segmentation_totals(
        run.model, data.evaluation, run.parts, batch_size=batch_size, device=torch.device("cpu")
    )
    for name, value in part_metrics(totals.float(), run.classes).items():
        assert value == pytest.approx(summary[name], abs=1e-3)


def test_bf16_is_the_arithmetic_of_the_forward_pass(segmented, config):
    run, data = load_segmenter(segmented[0]), load_part_data(config.data)
    dtypes = []
    run.model.register_forward_hook(lambda module, arguments, output: dtypes.append(output.dtype))
    for precision in ("fp32", "bf16"):
        segmentation_totals(
            run.model,
            data.evaluation,
            run.parts,
            batch_size=10,
            device=torch.device("cpu"),
            precision=precision,
        )
    assert dtypes == [torch.float32, torch.bfloat16]


def test_the_loss_is_the_mean_over_points_of_all_parts(config):
    task = SegmentTask(replace(config, objective=SegmentationConfig(hidden_dim=16, smoothing=0.2)))
    model = task.model.eval()
    points, category, parts = (
        torch.stack(column)
        for column in zip(
            *(tuple(map(torch.as_tensor, task.data.evaluation[i])) for i in range(4)), strict=True
        )
    )
    log_probability = model(points, category).log_softmax(-1)
    one_hot = F.one_hot(parts, log_probability.shape[-1])
    expected = -(log_probability * (0.8 * one_hot + 0.2 / log_probability.shape[-1])).sum(-1).mean()
    terms = task.loss(model, (points, category, parts), Draw.of_batch(4))
    torch.testing.assert_close(terms.loss, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_points_without_a_part_are_not_in_the_loss(config, smoothing):
    task = SegmentTask(replace(config, objective=SegmentationConfig(hidden_dim=16, smoothing=smoothing)))
    model = task.model.eval()
    points, category = torch.stack([task.data.evaluation[i][0] for i in range(4)]), torch.arange(4)
    parts = torch.randint(0, 10, (4, 64))
    parts[:, 40:] = UNLABELLED
    log_probability = model(points, category)[:, :40].log_softmax(-1)
    one_hot = F.one_hot(parts[:, :40], log_probability.shape[-1])
    target = (1 - smoothing) * one_hot + smoothing / log_probability.shape[-1]
    loss = task.loss(model, (points, category, parts), Draw.of_batch(4)).loss
    torch.testing.assert_close(loss, -(log_probability * target).sum(-1).mean())
    empty = task.loss(model, (points, category, torch.full((4, 64), UNLABELLED)), Draw.of_batch(4)).loss
    empty.backward()
    assert float(empty.detach()) == 0
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all((gradient == 0).all() for gradient in gradients)


def test_settings_that_segmentation_does_not_read_are_refused(config):
    data = replace(config.data, train_sampling="random")
    with pytest.raises(
        UserError, match=r"data.train_sampling random has no effect with segmentation, .*: leave it"
    ):
        SegmentTask(replace(config, data=data))


def test_a_held_out_part_and_the_test_split_are_not_both_evaluated_on(config):
    data = replace(config.data, holdout=0.25, eval_split="test")
    with pytest.raises(UserError, match=r"data.eval_split 'test' and data.holdout \(0.25\) each name what"):
        SegmentTask(replace(config, data=data))
    assert load_part_data(data).evaluated_on == "test split"  # in a later evaluation


def test_a_segmenter_starts_from_the_pretrained_encoder(config, pretrained):
    state = SegmentTask(replace(config, init=str(pretrained[0]))).model.state_dict()
    for name, value in read_weights(pretrained[0]).items():
        assert torch.equal(state[f"backbone.{name}"], value)


def test_a_segmenter_goes_on_from_one_that_computes_the_same(segmented, config):
    out, task, _ = segmented
    state = SegmentTask(replace(config, init=str(out))).model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in task.model.state_dict().items())
    objective = replace(config.objective, category_slope=0.2)
    message = (
        "was trained with objective.category_slope 0.0, this model has 0.2: its weights fit, but would mean"
    )
    with pytest.raises(UserError, match=message):
        SegmentTask(replace(config, init=str(out), objective=objective))


def test_a_segmenter_of_other_layers_is_no_start(config):
    model = build_segmenter(config.model, replace(config.objective, layers=(3, 1)), 5, 10)
    refuse_another_head(model, SegmentationConfig(layers=(1, 3)), "run")
    with pytest.raises(
        UserError, match=r"objective.layers \[2, 3\], this model has \[1, 3\]: its weights fit, but"
    ):
        refuse_another_head(model, SegmentationConfig(layers=(2, 3)), "run")


def test_a_run_describes_its_categories_and_parts(segmented, tiny_model):
    description = json.loads((segmented[0] / "model.json").read_text())
    assert (description["task"], description["holds"]) == ("segment", "part segmenter")
    assert description["arguments"] == tiny_model.arguments()
    assert description["classes"] == ["hammer", "lamp", "lollipop", "mug", "table"]
    assert description["parts"] == [[2 * i, 2 * i + 1] for i in range(5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smoothing": 1.0}, r"objective.smoothing must lie in \[0, 1\); got 1.0"),
        ({"smoothing": -0.1}, r"objective.smoothing must lie in \[0, 1\); got -0.1"),
        ({"hidden_dim": 3}, "objective.hidden_dim must be at least 4; got 3"),
        ({"drop_rate": 1.0}, r"objective.drop_rate must lie in \[0, 1\); got 1.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        SegmentationConfig(**changes).validate()


@pytest.mark.parametrize("load", [map_points.load, map_points.from_pretrained])
def test_a_run_is_loaded_as_its_segmenter(segmented, load):
    out, task, _ = segmented
    model, (points, category, _) = load(out), task.data.evaluation[0]
    assert not model.training
    assert model.classes == ("hammer", "lamp", "lollipop", "mug", "table")
    assert model.parts == tuple((2 * i, 2 * i + 1) for i in range(5))
    batch = points.unsqueeze(0), torch.tensor([category])
    torch.testing.assert_close(model(*batch), task.model.eval()(*batch))


def test_a_run_of_something_else_is_refused(pretrained):
    with pytest.raises(UserError, match="describes no part segmenter: give a run of map-points segment"):
        load_segmenter(pretrained[0])


def test_activation_checkpointing_reaches_the_backbone(config):
    training = replace(config.training, activation_checkpointing=True, recompute_every=2)
    encoder = SegmentTask(replace(config, training=training)).model.backbone.encoder
    assert (encoder.activation_checkpointing, encoder.recompute_every) == (True, 2)


@pytest.mark.parametrize(
    ("classes", "parts"),
    [
        (("a", "b", "c", "d", "e"), tuple((2 * i, 2 * i + 1) for i in range(5))),
        (("hammer", "lamp", "lollipop", "mug", "table"), (*((i, i + 5) for i in range(5)),)),
        (("hammer", "lamp"), ((0, 1), (2, 3))),
    ],
    ids=["categories", "parts", "counts"],
)
def test_the_head_of_a_segmenter_of_other_categories_or_parts_starts_anew(
    segmented, config, classes, parts, capsys
):
    out, task, _ = segmented
    torch.manual_seed(1)
    model = build_segmenter(config.model, config.objective, len(classes), 1 + max(map(max, parts)))
    fresh = model.head[1].weight.clone()
    start_from(model, str(out), classes, parts)
    for name, value in task.model.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)
    assert torch.equal(model.head[1].weight, fresh)
    message = (
        r"the head of .* is for other categories or parts \(5 categories, hammer, lamp, .*: it starts anew"
    )
    assert re.search(message, capsys.readouterr().out)


def test_a_head_is_kept_for_the_categories_that_data_name_by_synset(segmented, config, tmp_path):
    """As data without a category list do, where the weights have its names."""
    out, task, _ = segmented
    for name in ("model.safetensors", "model.json"):
        shutil.copy(out / name, tmp_path / name)
    description = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(description | {"classes": CATEGORIES[:5]}))
    model = build_segmenter(config.model, config.objective, 5, 10)
    start_from(model, str(tmp_path), tuple(PARTS_OF_SYNSET)[:5], tuple((2 * i, 2 * i + 1) for i in range(5)))
    assert torch.equal(model.head[1].weight, task.model.head[1].weight)
