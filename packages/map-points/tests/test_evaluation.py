"""Protocols of evaluation, their arithmetic, and the measures of classifiers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from map_core.errors import UserError
from map_core.tasks.evaluation import class_totals, classification_metrics
from map_core.tasks.parts import ResultsInParts
from map_core.training.processes import Peers
from map_points import evaluation
from map_points.data import CloudSamples, PointDataConfig, collate_clouds, read_cloud_files
from map_points.evaluation import VOTES, EvaluationConfig, voted_logits
from map_points.factory import create_classifier


@pytest.fixture
def model(tiny_model):
    return create_classifier(tiny_model, 2).eval()


def logits_of(model, samples, labelled=True, **settings):
    config = EvaluationConfig(progress=False, device="cpu", **settings)
    return voted_logits(model, samples, config, collate=collate_clouds, title="a title", labelled=labelled)


def test_metrics_by_hand():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 1])
    metrics = classification_metrics(class_totals(logits, labels))
    assert set(metrics) == {"test_accuracy", "test_accuracy_class_mean", "test_loss"}
    assert metrics["test_accuracy"] == pytest.approx(75)
    assert metrics["test_accuracy_class_mean"] == pytest.approx((100 * 2 / 3 + 100) / 2)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert metrics["test_loss"] == pytest.approx(float(expected), rel=1e-6)
    halves = sum(class_totals(logits[i::2], labels[i::2]) for i in range(2))
    assert classification_metrics(halves) == pytest.approx(metrics)


def test_more_than_five_classes_are_also_measured_among_five():
    logits = torch.arange(8.0).flip(0).expand(8, 8)  # class 0 first, class 7 last, for every cloud
    metrics = classification_metrics(class_totals(logits, torch.arange(8)))
    assert metrics["test_accuracy"] == pytest.approx(100 / 8)
    assert metrics["test_accuracy_top5"] == pytest.approx(100 * 5 / 8)


def test_votes_are_keyed_averaged_and_differ(model, two_classes):
    outputs = []
    model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    logits, labels = logits_of(model, two_classes.evaluation, protocol="vote_10")
    assert len(outputs) == VOTES
    torch.testing.assert_close(logits, torch.stack(outputs).mean(0))
    assert not torch.allclose(outputs[0], outputs[1])
    assert torch.equal(labels, torch.tensor([0, 0, 1, 1]))
    assert torch.equal(logits, logits_of(model, two_classes.evaluation, protocol="vote_10")[0])
    other_seed, _ = logits_of(model, two_classes.evaluation, protocol="vote_10", seed=1)
    assert not torch.allclose(logits, other_seed)


def test_votes_in_parts_are_the_votes(model, two_classes, tmp_path):
    """Each vote is a pass of parts, with draws of its own."""
    parts = ResultsInParts(tmp_path, Peers(), "job")
    config = EvaluationConfig(progress=False, device="cpu", protocol="vote_10", batch_size=3)
    logits, labels = voted_logits(
        model,
        two_classes.evaluation,
        config,
        collate=collate_clouds,
        title="evaluate",
        gather=parts.collector("x"),
    )
    assert len(parts.passes) == VOTES == len(set(parts.passes))
    expected = logits_of(model, two_classes.evaluation, protocol="vote_10", batch_size=3)
    assert torch.equal(logits, expected[0])
    assert torch.equal(labels, expected[1])


def test_without_votes_every_cloud_is_seen_once_as_it_is(model, two_classes):
    plain, labels = logits_of(model, two_classes.evaluation)
    torch.testing.assert_close(plain, model(torch.stack([two_classes.evaluation[i][0] for i in range(4)])))
    assert torch.equal(labels, torch.tensor([0, 0, 1, 1]))


def test_the_best_round_is_the_one_with_most_clouds_right(model, two_classes, monkeypatch):
    monkeypatch.setattr(evaluation, "ROUNDS", 4)
    monkeypatch.setattr(evaluation, "VOTES", 1)
    outputs = []
    model.register_forward_hook(lambda module, arguments, output: outputs.append(output))
    logits, labels = logits_of(model, two_classes.evaluation, protocol="best_of_299")
    correct_counts = [int((votes.argmax(1) == labels).sum()) for votes in outputs]
    assert len(outputs) == 4
    assert torch.equal(logits, outputs[correct_counts.index(max(correct_counts))])


def test_the_best_round_is_refused_where_there_are_no_labels(model, two_classes):
    with pytest.raises(
        UserError, match="'best_of_299' chooses a round by labels, which clouds to predict lack"
    ):
        logits_of(model, two_classes.evaluation, labelled=False, protocol="best_of_299")


@pytest.mark.parametrize("protocol", ["no_vote", "vote_10"])
def test_bf16_is_the_arithmetic_of_the_forward_pass(model, two_classes, protocol):
    exact, _ = logits_of(model, two_classes.evaluation, protocol=protocol)
    rounded, _ = logits_of(model, two_classes.evaluation, protocol=protocol, precision="bf16")
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.05)


def test_bf16_logits_are_those_of_autocast(model, two_classes):
    rounded, _ = logits_of(model, two_classes.evaluation, precision="bf16")
    clouds = torch.stack([two_classes.evaluation[i][0] for i in range(4)])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(clouds).float()
    assert torch.equal(rounded, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "evaluation.batch_size must be at least 1; got 0"),
        ({"workers": -1}, "evaluation.workers must be 0 or more; got -1"),
        (
            {"precision": "fp16"},
            "evaluation.precision 'fp16' is unknown; known names: bf16, fp32",
        ),
        (
            {"protocol": "vote_11"},
            "evaluation.protocol 'vote_11' is unknown; did you mean vote_10",
        ),
        ({"seed": 7}, "evaluation.seed 7 has no effect with evaluation.protocol no_vote: leave it at 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_no_evaluation_can_have_are_refused(changes, message):
    config = EvaluationConfig()
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match=message):
        config.validate()


def test_no_vote_is_the_default():
    assert EvaluationConfig().describe().startswith("no_vote: ")


def test_every_vote_sees_its_clouds_scaled_and_shifted_anew(model, two_classes):
    """Within the ranges of the data section; a cloud itself has its centre at the origin."""
    inputs = []
    model.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    logits_of(model, two_classes.evaluation, protocol="vote_10")
    votes, clouds = torch.stack(inputs), torch.stack([two_classes.evaluation[i][0] for i in range(4)])
    factor = (votes.amax(2) - votes.amin(2)) / (clouds.amax(1) - clouds.amin(1))  # (votes, clouds, 3)
    shift = votes.mean(2)
    assert ((factor > 2 / 3 - 1e-4) & (factor < 3 / 2 + 1e-4)).all()
    assert (shift.abs() < 0.2 + 1e-4).all()
    assert min(factor.std(0).min(), shift.std(0).min()) > 0.01


def test_no_two_votes_of_the_best_round_share_a_draw(model, two_classes, monkeypatch):
    monkeypatch.setattr(evaluation, "ROUNDS", 3)
    draws = []

    def gather(*arguments, pass_number, **options):
        draws.append(pass_number)
        return evaluation.collect(*arguments, pass_number=pass_number, **options)

    config = EvaluationConfig(progress=False, device="cpu", protocol="best_of_299")
    voted_logits(model, two_classes.evaluation, config, collate=collate_clouds, title="votes", gather=gather)
    assert draws == list(range(3 * VOTES))


def test_votes_see_their_clouds_with_all_channels(tiny_model, tmp_path):
    """Dropping channels is for training."""
    rng, channels = np.random.default_rng(0), ("curvature",)
    for index in range(4):
        np.save(tmp_path / f"{index}.npy", rng.normal(size=(64, 4)).astype(np.float32))
    clouds = read_cloud_files(str(tmp_path), channels=channels, columns=("x", "y", "z", *channels))
    config = PointDataConfig("folder", str(tmp_path), num_points=64, channels=channels, channel_dropout=0.9)
    model = create_classifier(replace(tiny_model, in_chans=4), num_classes=2).eval()
    inputs = []
    model.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    logits_of(model, CloudSamples(clouds, config, training=False), protocol="vote_10")
    assert len(inputs) == VOTES
    assert all(cloud[:, 3].any() for batch in inputs for cloud in batch)
