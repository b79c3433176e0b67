"""Contrastive learning: the loss by hand, what carries a gradient, the slow copy, the queue, and several processes."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from processes import run_several

from map_core import Draw, UserError
from map_core.data.views import TwoViews
from map_core.objectives.contrastive import Contrastive, ContrastiveConfig
from map_core.objectives.contrastive.projection import direction
from map_core.testing import GridBackbone, take_step, toy_encoder

BATCH, CHANNELS = 6, 4
VERSIONS = ["v2", "v3"]
PROCESSES = Path(__file__).parents[1] / "toys/contrastive_processes.py"


@pytest.fixture
def views():
    """Two views of each of six samples: the sample and some noise."""
    samples = torch.randn(BATCH, 1, 3, 4, CHANNELS)
    return samples + 0.3 * torch.randn(BATCH, 2, 3, 4, CHANNELS)


def build(version, **options):
    settings = {"hidden_dim": 12, "out_dim": 8, "queue": 10, "momentum": 0.9} | options
    return Contrastive(GridBackbone(CHANNELS, toy_encoder(16)), version, **settings)


def draw(step=0):
    return Draw(0, step, slice(0, BATCH), BATCH)


def test_v3_is_the_cross_entropy_of_each_view_among_all_others(views):
    objective = build("v3", temperature=0.5)
    first, second = views.unbind(1)
    expected = 0
    for query_view, key_view in ((first, second), (second, first)):
        q, k = objective.query(query_view), objective.key(key_view)
        for i in range(BATCH):
            scores = torch.stack([q[i] @ k[j] / 0.5 for j in range(BATCH)])
            expected = expected - 2 * 0.5 * (scores[i] - scores.logsumexp(0)) / BATCH
    objective.eval()  # the copy stays where it is; batch statistics are the batch's either way
    for module in objective.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.train()
    torch.testing.assert_close(objective(views, draw()).loss, expected)


def test_v2_tells_the_other_view_from_the_queue(views):
    objective = build("v2", temperature=0.5).eval()
    first, second = views.unbind(1)
    q, k = objective.query(first), objective.key(second)
    terms = []
    for i in range(BATCH):
        scores = torch.cat([(q[i] @ k[i])[None], objective.queue.keys @ q[i]]) / 0.5
        terms.append(scores.logsumexp(0) - scores[0])
    torch.testing.assert_close(objective(views, draw()).loss, torch.stack(terms).mean())


@pytest.mark.parametrize("version", VERSIONS)
def test_views_are_compared_in_float32_in_bf16_runs_as_well(version):
    """Samples so alike that bf16, whose numbers lie .004 apart just below 1, cannot tell them apart."""
    samples, others = torch.randn(128) + 0.05 * torch.randn(2, 64, 128)
    queries, keys = (direction(samples + 0.01 * torch.randn(64, 128)) for _ in range(2))
    objective = build(version, out_dim=128, queue=64).eval()
    if version == "v2":
        objective.queue.put(direction(others))
    compare = objective._against_queue if version == "v2" else objective._against_batch
    plain = compare(queries, keys)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = compare(queries, keys)
    assert plain.scalars["accuracy"] == mixed.scalars["accuracy"] == 1
    assert torch.equal(plain.loss, mixed.loss)


@pytest.mark.parametrize("version", VERSIONS)
def test_keys_carry_no_gradient_and_the_copy_learns_nothing_by_it(views, version):
    objective = build(version)
    objective(views, draw()).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.slow.parameters())
    learning = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert [name for name, p in learning.items() if p.grad is None or not p.grad.any()] == []


def test_v2_reads_its_second_view_as_a_key_alone(views):
    first, second = (view.clone().requires_grad_() for view in views.unbind(1))
    build("v2")(torch.stack([first, second], 1), draw()).loss.backward()
    assert first.grad.any()
    assert not second.grad.any()


# ---- the slow copy


@pytest.mark.parametrize("version", VERSIONS)
def test_the_momentum_encoder_is_updated_once_per_step_however_many_micro_batches_it_has(views, version):
    objective = build(version)
    objective.begin(total_steps=100)
    model = torch.nn.ModuleList([objective.backbone, objective.projector])  # in the order of objective.slow
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in objective.slow.parameters()]
    for micro in range(3):
        objective(views, Draw(0, 7, slice(micro, micro + BATCH), 3 * BATCH))
    momentum = objective.step_momentum(7)
    for slow, old, new in zip(objective.slow.parameters(), before, model.parameters(), strict=True):
        torch.testing.assert_close(slow, momentum * old + (1 - momentum) * new)


def test_v3s_momentum_rises_to_1_and_v2s_stays():
    fast, slow = build("v3", momentum=0.99), build("v2", momentum=0.99)
    for objective in (fast, slow):
        objective.begin(total_steps=10)
    rising = [fast.step_momentum(step) for step in range(11)]
    assert rising[0] == pytest.approx(0.99)
    assert rising[5] == pytest.approx(0.995)
    assert rising[-1] == pytest.approx(1.0)
    assert rising == sorted(rising)
    assert {slow.step_momentum(step) for step in range(11)} == {0.99}


def test_training_begins_with_a_copy_of_the_backbone_as_it_was_loaded():
    objective = build("v3")
    with torch.no_grad():
        for parameter in objective.backbone.parameters():
            parameter.add_(1.0)
    objective.begin(total_steps=10)
    state, slow = objective.backbone.state_dict(), objective.slow["backbone"].state_dict()
    assert all(torch.equal(value, slow[name]) for name, value in state.items())


@pytest.mark.parametrize("version", VERSIONS)
def test_evaluation_changes_nothing(views, version):
    objective = build(version).eval()
    before = copy.deepcopy(objective.state_dict())
    objective(views, draw(3))
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


# ---- the queue


def test_the_queue_keeps_the_last_keys_oldest_first_out(views):
    objective, keys = build("v2"), []
    for step in range(4):
        objective(views, draw(step))
        keys.append(objective.key(views[:, 1]))
    latest = torch.cat(keys)[-10:]
    assert objective.queue.place == 4 * BATCH % 10
    oldest_first = objective.queue.keys.roll(-int(objective.queue.place), dims=0)
    torch.testing.assert_close(oldest_first, latest)


def test_a_resumed_objective_goes_on_as_if_it_had_not_stopped(views):
    """Queue, its place and the slow copy are in the state."""
    whole = build("v2")
    optimizer = torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], 0.1)
    for step in range(5):
        if step == 3:
            resumed = build("v2")
            resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
            resumed_optimizer = torch.optim.SGD([p for p in resumed.parameters() if p.requires_grad], 0.1)
        pairs = ((whole, optimizer), *([(resumed, resumed_optimizer)] if step >= 3 else []))
        assert len({take_step(objective, stepper, views, draw(step)) for objective, stepper in pairs}) == 1
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


# ---- processes


@pytest.mark.parametrize("version", VERSIONS)
def test_two_processes_compare_with_the_keys_of_both_and_learn_as_one(version):
    errors = json.loads(run_several(PROCESSES, version).splitlines()[-1])
    assert errors["loss"] < 1e-5
    assert errors["gradient"] < 1e-4
    assert errors["queue"] < 1e-5


# ---- learning


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("version", "momentum"), [("v2", 0.999), ("v3", 0.9)])
def test_learning_finds_the_other_view_of_samples_that_it_has_not_seen(version, momentum):
    objective = build(version, queue=48, momentum=momentum)
    objective.begin(total_steps=120)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(120):
        samples = torch.randn(16, 1, 3, 4, CHANNELS) + 0.5 * torch.randn(16, 2, 3, 4, CHANNELS)
        losses.append(take_step(objective, optimizer, samples, Draw(0, step, slice(0, 16), 16)))
    # for the first three steps v2's queue is random vectors, easily told apart from samples
    assert sum(losses[-10:]) < 0.93 * sum(losses[10:20])


# ---- bad input


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_version_is_refused():
    with pytest.raises(UserError, match=r"version of contrastive learning 'moco_v2' is unknown; "):
        build("moco_v2")


def test_a_batch_of_one_is_refused(views):
    with pytest.raises(
        UserError, match=r"compares the samples of a batch, but a process got one: raise training.batc"
    ):
        build("v3")(views[:1], Draw.of_batch(1))


@pytest.mark.usefixtures("unchecked")
def test_inputs_that_are_no_pairs_are_refused(views):
    with pytest.raises(UserError, match=r"takes two views of each sample, \(b, 2, ...\); got \(6, 3, 4, 4\)"):
        build("v3")(views[:, 0], draw())


@pytest.mark.parametrize(
    ("settings", "micro_batch", "message"),
    [
        ({}, 1, r"of a micro-batch, and here it has 1: raise training.batch_size \(8\), which is split over"),
        (
            {"version": "v2"},
            8,
            r"objective.queue \(65536\) is larger than the epoch of 24 samples, .*: lower it",
        ),
        (
            {"version": "v2", "queue": 4},
            8,
            r"objective.queue \(4\) is smaller than training.batch_size \(8\)",
        ),
    ],
)
def test_data_that_cannot_be_compared_is_refused(settings, micro_batch, message):
    data = SimpleNamespace(train=range(24))
    with pytest.raises(UserError, match=message):
        ContrastiveConfig(**settings).training_samples(data, batch_size=8, micro_batch=micro_batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, r"objective.temperature must be a positive number; got 0.0"),
        ({"momentum": 1.5}, r"objective.momentum must lie in \[0, 1\]; got 1.5"),
        ({"queue": 0}, r"objective.queue must be at least 1; got 0"),
        ({"out_dim": 0}, r"objective.out_dim must be at least 1; got 0"),
        (
            {"queue": 64},
            r"objective.queue 64 has no effect with objective.version v3: leave it at 65536",
        ),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        ContrastiveConfig(**settings).validate()


@pytest.mark.parametrize(
    ("version", "hidden", "out", "momentum"), [("v2", 16, 128, 0.999), ("v3", 4096, 256, 0.99)]
)
def test_settings_that_are_not_given_are_those_of_the_version(version, hidden, out, momentum):
    objective = ContrastiveConfig(version=version, queue=32).build(GridBackbone(CHANNELS, toy_encoder(16)))
    assert objective.projector[0].weight.shape == (hidden, 16)
    assert objective.momentum == momentum
    assert objective.key(torch.randn(2, 3, 4, CHANNELS)).shape == (2, out)


# ---- views


def test_views_are_read_twice_and_changed_each_in_its_way():
    class Noisy:
        names = ("a", "b")

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return index + torch.rand(3), torch.tensor(index)

    samples = TwoViews(Noisy(), (lambda view: view, lambda view: view + 10))
    views, label = samples[1]
    assert views.shape == (2, 3)
    assert label == 1
    assert (views[0] >= 1).all()
    assert (views[1] >= 11).all()
    assert not torch.equal(views[0], views[1] - 10)
    assert (len(samples), samples.names) == (2, ("a", "b"))


def test_queries_and_keys_have_length_1(views):
    objective = build("v3")
    for vectors in (objective.query(views[:, 0]), objective.key(views[:, 0])):
        torch.testing.assert_close(F.normalize(vectors, dim=-1), vectors)


def test_samples_without_labels_are_read_twice_as_well():
    views, *others = TwoViews([torch.zeros(3, 2), torch.ones(3, 2)])[1]
    assert not others
    assert torch.equal(views, torch.ones(2, 3, 2))
