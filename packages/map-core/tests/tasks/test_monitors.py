"""Monitors: the measures against slow definitions, and that they disturb nothing."""

import dataclasses
import json
import math

import pytest
import torch
from sklearn.linear_model import Ridge
from toy_domain import CLASSES, DOMAIN, ToyNet, ToySamples, open_data

from map_core import Draw
from map_core.errors import UserError
from map_core.objective import Objective
from map_core.runs.metrics import read_metrics
from map_core.tasks.evaluation import EvaluationConfig, collect, pooled_features
from map_core.tasks.features import knn_accuracy
from map_core.tasks.monitors import MonitorConfig, open_monitor, probe_accuracy, rankme, spread
from map_core.tasks.pretraining import PretrainTask, load_objective
from map_core.testing import toy_objective
from map_core.training import train


def opening(**changes):
    """The toy domain, with changes to the data that it opens."""

    def open_changed(data, model, purpose, trained=None):
        return dataclasses.replace(open_data(data, model, purpose), **changes)

    return dataclasses.replace(DOMAIN, open_data=open_changed)


def run(make_config, out, domain=DOMAIN, **settings):
    config = make_config("pretrain", monitor=MonitorConfig(**settings))
    task = PretrainTask(domain, config)
    return train(task, config.training, out, run_config=config), task


def evaluations(out):
    return [line for line in read_metrics(out) if line["kind"] == "evaluation"]


def test_measures_are_written_at_every_evaluation(make_config, tmp_path):
    summary, _ = run(make_config, tmp_path / "run", samples=16)
    lines = evaluations(tmp_path / "run")
    assert [line["step"] for line in lines] == [3, 6]
    assert summary["knn_accuracy"] == lines[-1]["knn_accuracy"]
    encoder, device = DOMAIN.models.load(tmp_path / "run"), torch.device("cpu")
    arrays = []
    for samples in (spread(ToySamples(24), 16), ToySamples(10, first=1000)):
        features, labels = collect(pooled_features(encoder), samples, EvaluationConfig(workers=0), device)
        arrays += [features.numpy(), labels.numpy()]
    assert lines[-1]["knn_accuracy"] == knn_accuracy(*arrays) > 40
    assert "rankme" not in lines[-1]


@pytest.mark.parametrize("count", [10, 64, 100])
def test_samples_are_spread_over_sorted_classes_and_of_none_alone_where_classes_take_turns(count):
    chosen = list(spread(ToySamples(1000), count).indices)
    parts = [range(part * 1000 // count, (part + 1) * 1000 // count) for part in range(count)]
    assert all(index in part for index, part in zip(chosen, parts, strict=True))
    assert {index % 2 for index in chosen} == {0, 1}


def test_the_held_out_loss_is_the_objective_s_over_the_evaluation_split(make_config, tmp_path):
    summary, task = run(make_config, tmp_path / "run", samples=100)
    samples = ToySamples(10, first=1000)
    inputs = torch.stack([samples[i][0] for i in range(10)])
    objective = load_objective(DOMAIN, tmp_path / "run").objective.eval()
    losses = []
    size = task.monitor.loading.batch_size
    for number, start in enumerate(range(0, 10, size)):
        part = inputs[start : start + size]
        losses += [objective(part, Draw.of_batch(len(part), step=number)).loss.item()] * len(part)
    assert summary["heldout_loss"] == pytest.approx(sum(losses) / 10, rel=1e-5)


def test_nothing_that_is_trained_changes(make_config, tmp_path):
    for name, samples in (("plain", 0), ("monitored", 16)):
        run(make_config, tmp_path / name, samples=samples)
    plain, monitored = (
        [line["loss"] for line in read_metrics(tmp_path / name) if line["kind"] == "train"]
        for name in ("plain", "monitored")
    )
    assert plain == monitored
    assert not evaluations(tmp_path / "plain")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"evaluation": None}, {"rankme"}),
        ({"classes": ()}, {"heldout_loss", "rankme"}),
        ({}, {"heldout_loss", "knn_accuracy", "probe_accuracy"}),
    ],
)
def test_what_is_measured_follows_from_labels_and_splits(make_config, tmp_path, changes, names):
    summary, task = run(make_config, tmp_path / "run", opening(**changes), samples=16)
    assert names == set(task.monitor.names)
    assert names <= summary.keys()
    assert all(math.isfinite(summary[name]) for name in names)
    measured = {"heldout_loss", "knn_accuracy", "probe_accuracy", "rankme"} & summary.keys()
    assert measured == names


def test_the_best_encoder_is_kept_across_a_resume(make_config, tmp_path, monkeypatch):
    values = iter([0.5, 0.9, 0.7, 0.8])
    config = make_config("pretrain", monitor=MonitorConfig(samples=16, keep_best="probe_accuracy"))
    config.training.epochs, config.training.keep_checkpoints = 4, 9

    def start(**changes):
        task = PretrainTask(DOMAIN, config)
        task.evaluate = lambda model, accelerator: {"probe_accuracy": next(values)}
        training = dataclasses.replace(config.training, **changes)
        train(task, training, tmp_path / "run", resume="auto", run_config=config)

    start(max_steps=6)
    best = (tmp_path / "run" / "model_best.safetensors").read_bytes()
    assert best == (tmp_path / "run" / "model.safetensors").read_bytes()
    start()
    assert (tmp_path / "run" / "model_best.safetensors").read_bytes() == best
    assert (tmp_path / "run" / "model.safetensors").read_bytes() != best
    assert json.loads((tmp_path / "run" / "model_best.json").read_text())["weights"] == "best"
    assert load_objective(DOMAIN, tmp_path / "run" / "model_best.safetensors")


def test_an_objective_of_pairs_is_measured_by_its_features(make_config):
    class Pairs(Objective):
        def forward(self, inputs, draw):
            raise AssertionError("single views have no loss")

    pairs = Pairs()
    pairs.backbone = toy_objective(backbone=ToyNet()).backbone
    config = make_config("pretrain", monitor=MonitorConfig(samples=16))
    measures = open_monitor(DOMAIN, config, pairs).measure(pairs, torch.device("cpu"))
    assert measures.keys() == {"knn_accuracy", "probe_accuracy"}


def test_data_of_the_caller_are_monitored(make_config):
    config = make_config("pretrain", monitor=MonitorConfig(samples=16))
    data = open_data(config.data, config.model, "features")
    task = PretrainTask(DOMAIN, config, data)
    assert task.monitor.training_samples.dataset is data.plain_train
    assert task.reason_not_to_shard.startswith("monitor.samples asks the encoder alone")


def test_data_that_cannot_be_monitored_stops_no_run(make_config, tmp_path, caplog):
    def refuse(data, model, purpose, trained=None):
        if purpose == "features":
            raise UserError("no such split")
        return open_data(data, model, purpose)

    summary, task = run(
        make_config, tmp_path / "run", dataclasses.replace(DOMAIN, open_data=refuse), samples=4
    )
    assert task.monitor is None
    assert "loss" in summary
    assert "nothing is monitored: no such split" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": -1}, "monitor.samples must be 0 or at least 2; got -1"),
        ({"samples": 1}, "monitor.samples must be 0 or at least 2; got 1"),
        ({"neighbors": 5}, "monitor.neighbors 5 has no effect with monitor.samples 0: leave it at 20"),
        ({"neighbors": 0}, "monitor.neighbors must be at least 1; got 0"),
        ({"samples": 4, "keep_best": "knn"}, "monitor.keep_best 'knn'.*knn_accuracy"),
        ({"keep_best": "rankme"}, "needs measures: set monitor.samples"),
        ({"samples": 4, "keep_best": "rankme"}, "gives heldout_loss, knn_accuracy, probe_accuracy only"),
    ],
)
def test_settings_that_no_monitor_can_have(make_config, settings, message):
    with pytest.raises(UserError, match=message):
        open_monitor(DOMAIN, make_config("pretrain", monitor=MonitorConfig(**settings)), toy_objective())


def test_rankme_is_the_rank_of_features_with_equal_singular_values():
    basis, _ = torch.linalg.qr(torch.randn(50, 12))
    assert rankme(basis[:, :5] @ torch.eye(5, 12)) == pytest.approx(5, rel=1e-3)
    assert rankme(basis) == pytest.approx(12, rel=1e-3)
    assert rankme(torch.zeros(9, 12)) == pytest.approx(1, rel=1e-3)  # collapsed
    assert rankme(basis * torch.tensor([10.0] + [1.0] * 11)) < 11


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rankme_of_features_that_are_not_finite_is_nan(value):
    assert math.isnan(rankme(torch.eye(4).index_fill(0, torch.tensor([1]), value)))


def test_the_probe_is_ridge_regression_of_standardised_features():
    features, queries = torch.randn(40, 5) * 3 + 1, torch.randn(30, 5)
    labels, query_labels = (torch.randint(0, len(CLASSES), (count,)) for count in (40, 30))
    scaled = [(x - features.mean(0)) / (features.std(0) + 1e-6) for x in (features, queries)]
    x, q = (torch.cat([value, torch.ones(len(value), 1)], 1).double().numpy() for value in scaled)
    ridge = Ridge(alpha=1e-2 * 40, fit_intercept=False).fit(x, torch.eye(3)[labels].numpy())
    expected = 100 * (ridge.predict(q).argmax(1) == query_labels.numpy()).mean()
    assert probe_accuracy(features, labels, queries, query_labels, 3) == pytest.approx(expected)


def test_a_run_that_kept_weights_and_was_killed_before_its_first_checkpoint_starts_over(
    make_config, tmp_path
):
    config = make_config("pretrain", monitor=MonitorConfig(samples=16, keep_best="probe_accuracy"))
    config.training.epochs, config.training.checkpoint_epochs = 3, 3
    values = iter([50.0])

    def start(resume="auto"):
        task = PretrainTask(DOMAIN, config)
        task.evaluate = lambda model, accelerator: {"probe_accuracy": next(values)}
        return train(task, config.training, tmp_path / "run", resume=resume, run_config=config)

    with pytest.raises(StopIteration):
        start()  # dies in its second evaluation
    assert (tmp_path / "run" / "model_best.safetensors").is_file()
    with pytest.raises(UserError, match="exists and is not empty"):
        start(resume=None)
    values = iter([40.0, 45.0, 44.0])
    assert start()["probe_accuracy"] == 44.0
    best = (tmp_path / "run" / "model_best.safetensors").read_bytes()
    assert best != (tmp_path / "run" / "model.safetensors").read_bytes()


def test_as_many_neighbours_vote_as_the_setting_says(make_config, monkeypatch):
    class Pairs(Objective):
        """One whose held-out loss is not measured."""

        def forward(self, inputs, draw): ...

    counts = []
    monkeypatch.setattr(
        "map_core.tasks.monitors.knn_accuracy", lambda *arrays, neighbors=20: counts.append(neighbors) or 0.0
    )
    pairs = Pairs()
    pairs.backbone = ToyNet()
    config = make_config("pretrain", monitor=MonitorConfig(samples=16, neighbors=3))
    open_monitor(DOMAIN, config, pairs).measure(pairs, torch.device("cpu"))
    assert counts == [3]
