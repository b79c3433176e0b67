"""Finetuning and probing: the loss, what is measured, and models that come back as they were."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from toy_domain import CLASSES, DOMAIN, ToySamples, open_data

from map_core import Draw, UserError
from map_core.tasks.classification import ClassificationConfig, FinetuneTask, LinearProbeTask
from map_core.tasks.weights import read_description


def batch(samples, count=6):
    inputs, labels = zip(*(samples[i] for i in range(count)), strict=True)
    return torch.stack(inputs), torch.stack(labels)


# ---- the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_with_smoothed_labels(make_config, smoothing):
    task = FinetuneTask(DOMAIN, make_config("finetune", objective=ClassificationConfig(smoothing)))
    inputs, labels = batch(ToySamples(6))
    target = F.one_hot(labels, 3) * (1 - smoothing) + smoothing / 3
    expected = -(target * task.model(inputs).log_softmax(1)).sum(1).mean()
    loss = task.loss(task.model, (inputs, labels), Draw.of_batch(6)).loss
    torch.testing.assert_close(loss, expected)


def test_mixed_labels_are_not_smoothed_again(make_config):
    task = FinetuneTask(DOMAIN, make_config("finetune", objective=ClassificationConfig(0.1)))
    soft = torch.rand(6, 3).softmax(1)
    task.mixer = lambda inputs, labels, draw: (2 * inputs, soft)
    inputs, labels = batch(ToySamples(6))
    expected = -(soft * task.model(2 * inputs).log_softmax(1)).sum(1).mean()
    loss = task.loss(task.model, (inputs, labels), Draw.of_batch(6)).loss
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2.0])
def test_smoothing_outside_its_range_is_refused(make_config, smoothing):
    with pytest.raises(UserError, match=rf"objective.smoothing must lie in \[0, 1\); got {smoothing}"):
        FinetuneTask(DOMAIN, make_config("finetune", objective=ClassificationConfig(smoothing)))


# ---- what is measured


def test_accuracies_are_those_of_the_evaluation_split(finetuned):
    _, task = finetuned
    inputs, labels = batch(task.data.evaluation, 10)
    model = task.model.eval()
    with torch.no_grad():
        logits = model(inputs)
    correct = (logits.argmax(1) == labels).float()
    metrics = task.evaluate(model, Accelerator(cpu=True))
    assert metrics["test_accuracy"] == pytest.approx(100 * correct.mean().item())
    by_class = [correct[labels == c].mean().item() for c in range(3)]
    assert metrics["test_accuracy_class_mean"] == pytest.approx(100 * sum(by_class) / 3, rel=1e-5)
    assert metrics["test_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_without_an_evaluation_split_nothing_is_measured(make_config):
    data = dataclasses.replace(open_data(make_config("finetune").data, None, "finetune"), evaluation=None)
    task = FinetuneTask(DOMAIN, make_config("finetune"), data)
    assert task.evaluate(task.model, Accelerator(cpu=True)) == {}


def test_a_summary_says_what_was_evaluated(finetuned):
    summary = json.loads((finetuned[0] / "summary.json").read_text())
    assert summary["evaluated_on"] == "evaluation split"
    assert "protocol" not in summary


def test_training_data_is_needed(make_config):
    data = dataclasses.replace(open_data(make_config("finetune").data, None, "finetune"), train=None)
    with pytest.raises(
        UserError, match=r"no training split, which this needs, in toys for finetune: pass --data"
    ):
        FinetuneTask(DOMAIN, make_config("finetune"), data)


@pytest.mark.parametrize(("classes", "name"), [(("photos",), "photos"), ((), "none")])
@pytest.mark.parametrize("task", [FinetuneTask, LinearProbeTask])
def test_a_classifier_needs_two_classes(make_config, task, classes, name):
    """With one, any model is right about every sample."""
    data = dataclasses.replace(open_data(make_config("finetune").data, None, "finetune"), classes=classes)
    message = (
        f"toys for finetune: a classifier needs at least 2 classes; got {name}; is data.root one folder too"
    )
    with pytest.raises(UserError, match=message):
        task(DOMAIN, make_config("finetune"), data)


# ---- what starts from what


def test_a_classifier_starts_from_a_pretrained_backbone_with_a_new_head(pretrained, make_config):
    out, trained = pretrained
    task, fresh = (FinetuneTask(DOMAIN, make_config("finetune", init=init)) for init in (str(out), None))
    backbone = trained.model.backbone.state_dict()
    for key, value in task.model.state_dict().items():
        source = backbone if key in backbone else fresh.model.state_dict()
        assert torch.equal(value, source[key]), key


def test_a_head_of_the_same_classes_is_kept(finetuned, make_config, capsys):
    out, trained = finetuned
    task = FinetuneTask(DOMAIN, make_config("finetune", init=str(out)))
    assert torch.equal(task.model.head.weight, trained.model.head.weight)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("classes", [("low", "middle", "top"), ("a", "b")], ids=["as many", "fewer"])
def test_a_head_for_other_classes_is_reinitialised_with_a_note(finetuned, make_config, capsys, classes):
    out, trained = finetuned
    data = dataclasses.replace(open_data(make_config("finetune").data, None, "finetune"), classes=classes)
    task = FinetuneTask(DOMAIN, make_config("finetune", init=str(out)), data)
    assert not torch.equal(task.model.head.weight, trained.model.head.weight[: len(classes)])
    assert torch.equal(task.model.embed.weight, trained.model.embed.weight)
    output = capsys.readouterr().out
    assert (
        f"the head of {out} tells 3 classes low, middle, high, ... apart, the data has {len(classes)}"
        in output
    )
    assert output.endswith("it starts anew\n")


def test_a_probe_needs_a_pretrained_encoder(make_config):
    with pytest.raises(UserError, match="a linear probe reads a pretrained encoder: give --init RUN"):
        LinearProbeTask(DOMAIN, make_config("finetune"))


def test_probing_trains_the_head_and_nothing_else(pretrained, probed):
    backbone = pretrained[1].model.backbone.state_dict()
    _, task = probed
    for key, value in task.model.backbone.state_dict().items():
        assert torch.equal(value, backbone[key]), key
    start = LinearProbeTask(DOMAIN, task.config).model.head.weight
    assert not torch.equal(task.model.head.weight, start)


# ---- what is exported


@pytest.mark.parametrize("run", ["finetuned", "probed"])
def test_an_exported_classifier_gives_the_trained_models_logits(run, request):
    out, task = request.getfixturevalue(run)
    classifier, classes = DOMAIN.models.classifier(out)
    inputs, _ = batch(ToySamples(6))
    with torch.no_grad():
        torch.testing.assert_close(classifier(inputs), task.model.eval()(inputs), rtol=1e-4, atol=1e-5)
    assert classes == CLASSES
    description = read_description(out)
    assert (description["task"], description["holds"]) == (task.name, "classifier")
    assert description["flip"] is False, "how inputs are prepared"


def test_a_process_without_evaluation_samples_adds_nothing(finetuned, monkeypatch):
    _, task = finetuned
    model, whole = task.model.eval(), task.evaluate(task.model.eval(), Accelerator(cpu=True))
    count, sums = len(task.data.evaluation), []
    for index in range(count + 2):

        class One(Accelerator):
            process_index, num_processes = index, count + 2

            def reduce(self, totals):
                sums.append(totals)
                return sum(sums)

        monkeypatch.setattr(task.config.training, "micro_batch", lambda processes: 1, raising=False)
        metrics = task.evaluate(model, One(cpu=True))
    assert torch.count_nonzero(sums[-1]) == 0
    assert metrics == pytest.approx(whole)


@pytest.mark.parametrize("enabled", [False, True])
def test_activation_checkpointing_reaches_the_classifier(make_config, enabled):
    config = make_config("finetune")
    config.training.activation_checkpointing = enabled
    assert FinetuneTask(DOMAIN, config).model.encoder.activation_checkpointing is enabled
