"""The objective over clouds: what it predicts, what may flow into a prediction, and what a run leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from map_core.weights import read_weights
from map_points.finetuning import FinetuneConfig, FinetuneTask
from map_points.reconstruction import reconstruct

from map_core import mask_noise
from map_core.commands.parser import load_recipe
from map_core.errors import UserError
from map_core.training import TrainingConfig, train
from map_points.cli import RECIPES
from map_points.data import CloudSamples, PointData, PointDataConfig
from map_points.data.clouds import ArrayClouds
from map_points.evaluation import VOTES, EvaluationConfig, class_totals, classification_metrics, voted_logits
from map_points.factory import PointModelConfig, create_backbone, create_classifier
from map_points.losses import masked_chamfer
from map_points.pretraining import (
    PointObjectiveConfig,
    PretrainConfig,
    PretrainTask,
    build_objective,
    load_pretraining,
)
from map_points.weights import load_init

MODEL = PointModelConfig(
    embed_dim=16, patch_hidden_dim=8, num_heads=2, num_patches=16, patch_size=4, layout="MMT", neighbors=3
)
OBJECTIVE = {"decoder_dim": 16, "decoder_heads": 2, "decoder_depth": 1}
SHORT = {
    "batch_size": 4,
    "epochs": 1,
    "warmup_epochs": 0.5,
    "lr": 1e-3,
    "workers": 0,
    "device": "cpu",
    "progress": False,
    "tensorboard": False,
}


def make_data(points=64):
    generator = np.random.default_rng(0)
    config = PointDataConfig(num_points=points)

    def split(count):
        clouds = generator.normal(size=(count, points, 3)).astype(np.float32)
        clouds[count // 2 :, :, 2] *= 0.1  # flat or not: two classes
        return ArrayClouds(np.arange(count) // (count // 2), ("round", "flat"), "z", clouds, "made up")

    return PointData(
        CloudSamples(split(8), config, training=True),
        CloudSamples(split(4), config, training=False),
        ("round", "flat"),
        "made up",
    )


def objective(**changes):
    torch.manual_seed(0)
    return build_objective(create_backbone(MODEL), PointObjectiveConfig(**OBJECTIVE, **changes)).eval()


def test_each_hidden_patch_is_predicted_once():
    found = objective()(torch.randn(3, 64, 3))
    assert found.mask.hidden.sum(1).tolist() == [8, 8, 8]
    assert found.prediction.shape == (3, 8, 12)
    assert found.tokens.target.shape == (3, 16, 4, 3)
    for drop, hidden in zip(found.mask.drop, found.mask.hidden, strict=True):
        assert drop.tolist() == hidden.nonzero().flatten().tolist()
    target = torch.stack([t[d] for t, d in zip(found.tokens.target, found.mask.drop, strict=True)])
    torch.testing.assert_close(found.loss, masked_chamfer(found.prediction, target))


def gradients_by_region(model, inputs):
    """For each hidden token i and token j: whether j's features or mask token reach the prediction of i."""
    captured = {}
    original = model.decoder.sequence

    def sequence(*arguments):
        out = original(*arguments)
        out.retain_grad()
        captured["sequence"] = out
        return out

    model.decoder.sequence = sequence
    found = model(inputs, noise=mask_noise(0, 0, slice(None), (1, model.tokenizer.num_patches)))
    reach = []
    for i in range(found.mask.drop.shape[1]):
        model.zero_grad()
        captured["sequence"].grad = None
        found.prediction[0, i].sum().backward(retain_graph=True)
        reach.append(captured["sequence"].grad[0].abs().sum(-1) > 0)
    return found, torch.stack(reach)


@pytest.mark.parametrize("name", ["own", "pretrain_shapes"])
def test_predictions_see_their_region_and_the_ones_before_it(name):
    if name == "own":
        model, points = objective(), torch.randn(1, 64, 3)
    else:
        config = load_recipe(RECIPES, name, PretrainConfig)
        torch.manual_seed(0)
        model = build_objective(create_backbone(config.model), config.objective).eval()
        points = torch.randn(1, 256, 3)
    found, reach = gradients_by_region(model, points)
    region = found.tokens.region[0]
    for i, row in zip(found.mask.drop[0].tolist(), reach, strict=True):
        assert torch.equal(row, region <= region[i])


def test_hidden_points_reach_no_prediction():
    model, points = objective(), torch.randn(1, 64, 3)
    captured = []
    model.tokenizer.patch_embed.register_forward_hook(
        lambda module, arguments, output: captured.append(output) or output.retain_grad()
    )
    found = model(points, noise=mask_noise(0, 0, slice(None), (1, 16)))
    found.prediction.square().sum().backward()
    gradient = captured[0].grad[0].abs().sum(-1)
    assert (gradient[found.mask.hidden[0]] == 0).all()
    assert (gradient[~found.mask.hidden[0]] > 0).all()


def test_after_mask_changes_who_sees_whom():
    torch.manual_seed(1)
    points, noise = torch.randn(1, 64, 3), torch.rand(1, 16)
    scan, after = (objective(regions=kind)(points, noise=noise) for kind in ("scan", "after_mask"))
    assert torch.equal(scan.mask.hidden, after.mask.hidden)
    assert not torch.allclose(scan.prediction, after.prediction)


def test_settings_that_do_not_fit_are_refused():
    for changes, told in (
        ({"regions": "after_mask", "region_order": "hilbert"}, "has no effect with"),
        ({"num_regions": 0}, "num_regions must be at least 1"),
        ({"num_regions": 17}, r"num_regions \(17\) must lie between 1 and the number of patches \(16\)"),
        ({"mask_ratio": 0.9}, r"model.neighbors \(3\) exceeds the 2 visible of 16 patches at ratio 0.9"),
    ):
        with pytest.raises(UserError, match=told):
            objective(**changes)
    with pytest.raises(UserError, match="pretraining has no class token"):
        build_objective(create_classifier(MODEL, 2), PointObjectiveConfig(**OBJECTIVE))


@pytest.fixture
def pretrained(tmp_path):
    config = PretrainConfig(
        model=MODEL, objective=PointObjectiveConfig(**OBJECTIVE), training=TrainingConfig(**SHORT)
    )
    task = PretrainTask(config, make_data())
    summary = train(task, config.training, tmp_path / "pre", run_config=config)
    assert np.isfinite(summary["loss"])
    return tmp_path / "pre", task


def test_a_pretraining_run_can_be_read_back(pretrained):
    run, task = pretrained
    points = torch.randn(2, 64, 3)
    noise = torch.rand(2, 16)
    read = load_pretraining(run).eval()
    expected = task.model.eval()(points, noise=noise)
    torch.testing.assert_close(read(points, noise=noise).prediction, expected.prediction)
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "model.safetensors",
        "pretraining.safetensors",
        "reconstructions.png",
        "summary.json",
    }
    views = reconstruct(read, points)
    assert views.visible.shape == (2, 8 * 4, 3)
    assert views.predicted.shape == (2, 8 * 4, 3)
    cloud = {tuple(p) for p in points[0].tolist()}
    assert all(any(np.allclose(p, q, atol=1e-6) for q in cloud) for p in views.visible[0].tolist())


def test_a_classifier_starts_from_the_pretrained_encoder(pretrained):
    run, _ = pretrained
    torch.manual_seed(1)
    model = create_classifier(MODEL, 2)
    fresh = load_init(model, run).fresh
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in fresh if "encoder" in name} == {
        "encoder.registers"
    }
    assert all(name.startswith(("encoder.registers.", "head.")) for name in fresh)
    for name, value in read_weights(run).items():
        assert torch.equal(model.state_dict()[name], value)


def test_weights_of_another_model_are_refused(pretrained):
    run, _ = pretrained
    with pytest.raises(UserError, match=r"does not fit this model: missing: encoder.blocks.3"):
        load_init(create_classifier(PointModelConfig(**{**vars(MODEL), "layout": "MMTM"}), 2), run)
    with pytest.raises(UserError, match=r"shapes: .*for"):
        load_init(create_classifier(PointModelConfig(**{**vars(MODEL), "embed_dim": 32}), 2), run)
    with pytest.raises(UserError, match="no weights at"):
        read_weights(run / "nothing")
    (run / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_weights(run)


def test_finetuning_writes_a_classifier_that_names_its_protocol(pretrained, tmp_path):
    run, _ = pretrained
    config = FinetuneConfig(model=MODEL, training=TrainingConfig(**SHORT), init=str(run))
    task = FinetuneTask(config, make_data())
    summary = train(task, config.training, tmp_path / "fine", run_config=config)
    assert summary["protocol"].startswith("last epoch")
    assert 0 <= summary["test_accuracy"] <= 100
    described = json.loads(Path(tmp_path / "fine" / "model.json").read_text())
    assert described["classes"] == ["round", "flat"]
    other = create_classifier(MODEL, 5)
    assert all(name.startswith("head.") for name in load_init(other, tmp_path / "fine").fresh)


def test_metrics_by_hand():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 1])
    found = classification_metrics(class_totals(logits, labels))
    assert found["test_accuracy"] == pytest.approx(75)
    assert found["test_accuracy_class_mean"] == pytest.approx((100 * 2 / 3 + 100) / 2)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert found["test_loss"] == pytest.approx(float(expected), rel=1e-6)
    halves = sum(class_totals(logits[i::2], labels[i::2]) for i in range(2))
    assert classification_metrics(halves) == pytest.approx(found)


def test_votes_are_keyed_averaged_and_differ():
    torch.manual_seed(0)
    model, data = create_classifier(MODEL, 2).eval(), make_data().evaluation
    device = torch.device("cpu")
    seen = []
    model.register_forward_hook(lambda module, arguments, output: seen.append(output))
    config = EvaluationConfig(protocol="vote_10", progress=False)
    logits, labels = voted_logits(model, data, config, device)
    assert len(seen) == VOTES
    torch.testing.assert_close(logits, torch.stack(seen).mean(0))
    assert not torch.allclose(seen[0], seen[1])
    assert torch.equal(labels, torch.tensor([0, 0, 1, 1]))
    again, _ = voted_logits(model, data, config, device)
    assert torch.equal(logits, again)
    plain, _ = voted_logits(model, data, EvaluationConfig(progress=False), device)
    torch.testing.assert_close(plain, model(torch.stack([data[i][0] for i in range(4)])))
