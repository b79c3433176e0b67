"""Running models over samples, and accuracies against loops."""

import math

import pytest
import torch
from toy_domain import ToyNet, ToySamples

from map_core import UserError
from map_core.tasks.evaluation import (
    EvaluationConfig,
    choose_device,
    class_totals,
    classification_metrics,
    collect,
    extract_features,
)

CPU = torch.device("cpu")


def settings(**changes):
    return EvaluationConfig(**({"batch_size": 3, "workers": 0, "progress": False} | changes))


# ---- accuracies


def slow_metrics(logits, labels):
    """Sample by sample."""
    ranking = [sorted(range(len(row)), key=lambda c, row=row: -row[c]) for row in logits.tolist()]
    first = [order[0] == y for order, y in zip(ranking, labels.tolist(), strict=True)]
    in_top5 = [y in order[:5] for order, y in zip(ranking, labels.tolist(), strict=True)]
    by_class = {}
    for y, right in zip(labels.tolist(), first, strict=True):
        by_class.setdefault(y, []).append(right)
    loss = [
        -math.log(math.exp(row[y]) / sum(map(math.exp, row)))
        for row, y in zip(logits.tolist(), labels, strict=True)
    ]
    return {
        "test_accuracy": 100 * sum(first) / len(first),
        "test_accuracy_top5": 100 * sum(in_top5) / len(in_top5),
        "test_accuracy_class_mean": 100 * sum(sum(r) / len(r) for r in by_class.values()) / len(by_class),
        "test_loss": sum(loss) / len(loss),
    }


@pytest.mark.parametrize("classes", [6, 9])
def test_metrics_are_those_of_a_loop(classes):
    """Classes differ in size, and one has no samples."""
    logits, labels = torch.randn(50, classes), torch.randint(classes - 1, (50,))
    metrics = classification_metrics(class_totals(logits, labels))
    assert metrics == pytest.approx(slow_metrics(logits, labels), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
def test_five_classes_and_fewer_have_no_accuracy_among_five(classes):
    logits, labels = torch.randn(20, classes), torch.randint(classes, (20,))
    metrics, slow = classification_metrics(class_totals(logits, labels)), slow_metrics(logits, labels)
    del slow["test_accuracy_top5"]
    assert metrics == pytest.approx(slow, rel=1e-6)


def test_totals_of_shards_add_up():
    logits, labels = torch.randn(50, 7), torch.randint(7, (50,))
    shards = sum(class_totals(logits[i::3], labels[i::3]) for i in range(3))
    torch.testing.assert_close(shards, class_totals(logits, labels))


# ---- running


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_what_is_collected_stands_in_the_order_of_the_samples(batch_size):
    samples = ToySamples(8)
    values, labels = collect(lambda x: x.flatten(1), samples, settings(batch_size=batch_size), CPU)
    assert torch.equal(values, torch.stack([samples[i][0].flatten() for i in range(8)]))
    assert labels.tolist() == [i % 3 for i in range(8)]


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_a_shard_is_every_third_sample(shard):
    whole, _ = collect(lambda x: x.flatten(1), ToySamples(8), settings(), CPU)
    part, labels = collect(lambda x: x.flatten(1), ToySamples(8), settings(), CPU, shard=(shard, 3))
    assert torch.equal(part, whole[shard::3])
    assert labels.tolist() == [i % 3 for i in range(8)][shard::3]


def test_randomness_of_samples_is_keyed():
    def values(**keys):
        return collect(lambda x: x.flatten(1), ToySamples(4, noisy=True), settings(), CPU, **keys)[0]

    assert torch.equal(values(seed=1, pass_number=2), values(seed=1, pass_number=2))
    assert not torch.equal(values(seed=1, pass_number=2), values(seed=1, pass_number=3))
    assert not torch.equal(values(seed=1, pass_number=2), values(seed=2, pass_number=2))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_arithmetic_and_results_are_float32(precision, dtype):
    dtypes = set()
    weight = torch.randn(48, 2)

    def function(x):
        y = x.flatten(1) @ weight
        dtypes.add(y.dtype)
        return y

    values, _ = collect(function, ToySamples(4), settings(precision=precision), CPU)
    assert dtypes == {dtype}
    assert values.dtype == torch.float32


def test_features_are_what_the_head_reads():
    model, samples = ToyNet(num_classes=3), ToySamples(5)
    features, labels = extract_features(model, samples, settings(device="cpu"))
    with torch.no_grad():
        logits = model(torch.stack([samples[i][0] for i in range(5)]))
        head_output = model.head(torch.from_numpy(features))
    torch.testing.assert_close(head_output, logits)
    assert labels.tolist() == [0, 1, 2, 0, 1]


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "evaluation.batch_size must be at least 1; got 0"),
        ({"workers": -1}, "evaluation.workers must be 0 or more; got -1"),
        ({"precision": "fp16"}, "evaluation.precision 'fp16' is unknown; known names: bf16, fp32"),
        ({"device": "gpu"}, "evaluation.device 'gpu' is unknown; did you mean cpu"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_no_evaluation_can_have(changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes).validate()


def test_an_unknown_device_is_refused():
    with pytest.raises(UserError, match="device 'gpu' is unknown; did you mean cpu"):
        choose_device("gpu")


@pytest.mark.parametrize(
    ("name", "available", "device"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, name, available, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device(name) == torch.device(device)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=r"device 'cuda' asked for, but torch sees no GPU; use --evaluation.dev"
    ):
        choose_device("cuda")
