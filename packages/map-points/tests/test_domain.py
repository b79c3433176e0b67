"""Classifiers of clouds trained by the tasks of map-core: finetuning, probing, and what their runs leave."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from map_core import Draw
from map_core.commands.standard import configs
from map_core.errors import UserError
from map_core.tasks.classification import ClassificationConfig, FinetuneTask, LinearProbeTask
from map_core.tasks.pretraining import PretrainTask
from map_core.tasks.weights import read_description, read_weights
from map_core.training import train
from map_points.data import CloudSamples, PointDataConfig
from map_points.domain import DOMAIN, example_cloud, open_data, open_files, thumbnail
from map_points.factory import MODELS, PointModelConfig

TASKS = {"finetune": FinetuneTask, "linear-probe": LinearProbeTask}


@pytest.fixture(scope="module", params=list(TASKS))
def classified(request, tmp_path_factory, pretrained, tiny_model, short_training, two_classes):
    """A run that trained a classifier from the pretraining run (its directory), its task and its summary."""
    config = configs(DOMAIN).finetune(model=tiny_model, training=short_training, init=str(pretrained[0]))
    task = TASKS[request.param](DOMAIN, config, two_classes)
    out = tmp_path_factory.mktemp("classified") / "run"
    return out, task, train(task, config.training, out, run_config=config)


def test_files_are_drawn_upright_as_the_clouds_of_the_run(tmp_path, tiny_model):
    tall = np.random.default_rng(0).normal(size=(200, 3)) * [0.1, 0.1, 1.0]
    np.save(tmp_path / "z.npy", tall)
    np.save(tmp_path / "y.npy", tall[:, [0, 2, 1]])
    for name, source in (("z", "folder"), ("y", "shapenet55")):
        config = PointDataConfig(source, str(tmp_path), num_points=64)
        samples = open_files(str(tmp_path / f"{name}.npy"), config, tiny_model)
        rows, columns = np.nonzero(thumbnail(samples, 0, {}).min(axis=-1) < 255)
        assert np.ptp(rows) > 2 * np.ptp(columns)


def test_a_model_is_tried_on_a_cloud_that_its_patches_fit():
    assert example_cloud(PointModelConfig()).shape == (1, 1024, 3)
    assert example_cloud(PointModelConfig(num_patches=2048, in_chans=4)).shape == (1, 2048, 4)


def clouds_of(samples):
    return torch.stack([samples[i][0] for i in range(len(samples))])


def test_the_exported_classifier_equals_what_was_trained(classified, two_classes):
    run, task, _ = classified
    model, classes = MODELS.classifier(run)
    clouds = clouds_of(two_classes.evaluation)
    assert classes == ("round", "flat")
    with torch.no_grad():
        torch.testing.assert_close(model(clouds), task.model.eval()(clouds), rtol=1e-4, atol=1e-5)


def test_the_summary_measures_the_exported_classifier(classified, two_classes):
    run, _, summary = classified
    model, _ = MODELS.classifier(run)
    logits, labels = model(clouds_of(two_classes.evaluation)).detach(), torch.tensor([0, 0, 1, 1])
    accuracy = 100 * float((logits.argmax(1) == labels).float().mean())
    assert summary["test_accuracy"] == pytest.approx(accuracy)
    assert summary["test_accuracy_class_mean"] == pytest.approx(accuracy)  # as many clouds of either class
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert summary["test_loss"] == pytest.approx(float(loss), rel=1e-4)


def test_a_run_names_its_protocol_and_its_classes(classified):
    run, task, summary = classified
    assert summary["protocol"].startswith("last epoch: no_vote: ")
    assert summary["evaluated_on"] == "test split"
    description = read_description(run)
    assert description["classes"] == ["round", "flat"]
    assert (description["task"], description["holds"]) == (task.name, "classifier")


def test_a_probe_leaves_the_encoder_and_its_statistics_as_they_were(
    pretrained, short_training, tiny_model, two_classes
):
    config = configs(DOMAIN).finetune(model=tiny_model, training=short_training, init=str(pretrained[0]))
    task = LinearProbeTask(DOMAIN, config, two_classes)
    batch = next(iter(torch.utils.data.DataLoader(two_classes.train, batch_size=8)))
    task.model.train()
    task.loss(task.model, batch, Draw.of_batch(8)).loss.backward()
    assert {name for name, p in task.model.named_parameters() if p.grad is not None} == {
        "head.weight",
        "head.bias",
    }
    state = task.model.backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in read_weights(pretrained[0]).items())


def test_a_probed_classifier_has_one_linear_layer_on_the_pretrained_encoder(
    tmp_path, pretrained, short_training, tiny_model, two_classes
):
    config = configs(DOMAIN).finetune(model=tiny_model, training=short_training, init=str(pretrained[0]))
    train(LinearProbeTask(DOMAIN, config, two_classes), config.training, tmp_path / "run", run_config=config)
    probed, encoder = read_weights(tmp_path / "run"), read_weights(pretrained[0])
    assert set(probed) == set(encoder) | {"head.weight", "head.bias"}
    assert all(torch.equal(probed[name], value) for name, value in encoder.items())
    assert probed["head.weight"].shape == (2, 16)


def test_a_probe_without_a_pretrained_encoder_is_refused(tiny_model, short_training, two_classes):
    config = configs(DOMAIN).finetune(model=tiny_model, training=short_training)
    with pytest.raises(UserError, match="a linear probe reads a pretrained encoder: give --init RUN"):
        LinearProbeTask(DOMAIN, config, two_classes)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
@pytest.mark.parametrize("task", list(TASKS))
def test_a_smoothing_that_no_loss_can_have_is_refused(
    task, smoothing, pretrained, tiny_model, short_training, two_classes
):
    objective = ClassificationConfig(smoothing=smoothing)
    config = configs(DOMAIN).finetune(
        model=tiny_model, training=short_training, objective=objective, init=str(pretrained[0])
    )
    with pytest.raises(UserError, match=rf"objective.smoothing must lie in \[0, 1\); got {smoothing}"):
        TASKS[task](DOMAIN, config, two_classes)


def test_smoothing_is_of_the_loss(tiny_model, short_training, two_classes):
    batch = next(iter(torch.utils.data.DataLoader(two_classes.evaluation, batch_size=4)))
    objective = ClassificationConfig(smoothing=0.2)
    task = FinetuneTask(
        DOMAIN,
        configs(DOMAIN).finetune(model=tiny_model, training=short_training, objective=objective),
        two_classes,
    )
    model = task.model.eval()
    log_probability = model(batch[0]).log_softmax(1)
    label_log_probability = log_probability[torch.arange(4), batch[1]]
    expected = -(0.8 * label_log_probability + 0.2 * log_probability.mean(1)).mean()
    torch.testing.assert_close(task.loss(model, batch, Draw.of_batch(4)).loss, expected)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_pretraining_hides_as_much_as_its_settings_say(
    ratio, tiny_model, tiny_objective, short_training, two_classes
):
    config = configs(DOMAIN).pretrain(
        model=tiny_model, objective=replace(tiny_objective, mask_ratio=ratio), training=short_training
    )
    task = PretrainTask(DOMAIN, config, two_classes)
    assert task.model.masking.ratio == ratio


@pytest.mark.parametrize("purpose", ["pretrain", "finetune", "features", "evaluate"])
def test_data_are_opened_for_a_purpose(purpose, tmp_path, tiny_model):
    pytest.importorskip("trimesh")
    data = open_data(PointDataConfig(num_points=64, shapes_per_class=2), tiny_model, purpose)
    assert len(data.classes) == 8
    if purpose == "evaluate":
        assert data.train is None
        assert data.plain_train is None
    else:
        assert isinstance(data.train, CloudSamples)
        assert data.train.training
        assert not data.plain_train.training
        assert len(data.train) == len(data.plain_train) == 16
    if purpose == "pretrain":
        assert data.evaluation is None
    else:
        assert not data.evaluation.training
        assert len(data.evaluation) == 200
