"""Finetuning, probing and evaluation: keyed mixing, the loss, frozen backbones, accuracy, neighbours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from map_core.inference import choose_device, knn_accuracy
from map_vision.classifier import LinearProbe
from map_vision.evaluation import (
    EvaluationConfig,
    classification_metrics,
    classification_totals,
    extract_features,
    predict_probabilities,
)
from sklearn.neighbors import KNeighborsClassifier
from timm.loss import LabelSmoothingCrossEntropy

from map_core import UserError
from map_core.commands.parser import load_recipe
from map_core.training import Step
from map_vision.data import DataConfig, load_image_data
from map_vision.factory import create_model
from map_vision.finetuning import FinetuneConfig, FinetuneTask, LinearProbeTask
from map_vision.mixing import BatchMixer, MixingConfig
from map_vision.pretraining import PretrainConfig, PretrainTask

CPU = torch.device("cpu")


def step(index=0, start=0, seed=0):
    return Step(index=index, total=10, epoch=0, seed=seed, global_batch=16, samples=slice(start, start + 8))


@pytest.fixture
def batch():
    return torch.randn(8, 3, 8, 8), torch.arange(8) % 5


class TestMixing:
    @pytest.mark.parametrize(
        "config", [MixingConfig(mixup=0.8), MixingConfig(cutmix=1.0), MixingConfig(0.8, 1.0)]
    )
    def test_same_step_mixes_alike_and_another_otherwise(self, batch, config):
        mixer = BatchMixer(config, num_classes=5)
        images, labels = mixer(*batch, step())
        again, same = mixer(*batch, step())
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
        for other in (step(index=1), step(start=8), step(seed=1)):
            assert not torch.equal(mixer(*batch, other)[0], images)

    def test_mixup_mixes_images_and_labels_in_one_proportion(self, batch):
        images, labels = batch
        mixed, soft = BatchMixer(MixingConfig(mixup=0.8), num_classes=5)(images, labels, step())
        share = ((mixed - images.flip(0)) / (images - images.flip(0))).median()
        assert 0 < share < 1
        torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
        hard = F.one_hot(labels, 5).float()
        torch.testing.assert_close(soft, share * hard + (1 - share) * hard.flip(0))

    def test_the_batch_and_numpys_generator_are_left_alone(self, batch):
        images, labels = batch[0].clone(), batch[1]
        np.random.seed(7)  # noqa: NPY002
        expected = np.random.rand()  # noqa: NPY002
        np.random.seed(7)  # noqa: NPY002
        BatchMixer(MixingConfig(mixup=0.8), num_classes=5)(*batch, step())
        assert np.random.rand() == expected  # noqa: NPY002
        assert torch.equal(batch[0], images)
        assert torch.equal(batch[1], labels)

    def test_an_odd_batch_has_no_pairs(self, batch):
        mixer = BatchMixer(MixingConfig(mixup=0.8), num_classes=5)
        with pytest.raises(
            UserError, match=r"mixup and cutmix pair images, but a micro-batch has 7: choose an even"
        ):
            mixer(batch[0][:7], batch[1][:7], step())

    def test_off_by_default(self):
        assert not BatchMixer(MixingConfig(), num_classes=5).enabled


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("map_vision.recipes", "finetune_digits", FinetuneConfig)


@pytest.fixture(scope="module")
def digits():
    return load_image_data(DataConfig(source="digits"), img_size=(8, 8), in_chans=1, purpose="finetune")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pretraining run's directory, as far as ``--init`` reads it."""
    directory = tmp_path_factory.mktemp("pretrained")
    config = load_recipe("map_vision.recipes", "pretrain_digits", PretrainConfig)
    task = PretrainTask(config)
    task.export(task.model, directory, "raw")
    return directory


def some(data, count=8):
    samples = [data.train_unaugmented()[i] for i in range(count)]
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])


class TestLoss:
    def test_smoothing_is_timms(self, recipe, digits):
        task = FinetuneTask(recipe, digits)
        task.model.eval()
        images, labels = some(digits)
        expected = LabelSmoothingCrossEntropy(0.1)(task.model(images), labels)
        torch.testing.assert_close(task.loss(task.model, (images, labels), step())["loss"], expected)

    def test_mixed_labels_are_smoothed_once(self, recipe, digits):
        objective = replace(recipe.objective, mixup=0.8, smoothing=0.2)
        task = FinetuneTask(replace(recipe, objective=objective), digits)
        task.model.eval()
        images, labels = some(digits)
        mixed, soft = BatchMixer(objective, num_classes=10, smoothing=0.2)(images, labels, step())
        expected = -(soft * task.model(mixed).log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(task.loss(task.model, (images, labels), step())["loss"], expected)
        assert soft.min() > 0
        torch.testing.assert_close(soft.sum(1), torch.ones(8))


def test_finetuning_starts_from_the_pretrained_encoder(recipe, digits, pretrained):
    model = FinetuneTask(replace(recipe, init=str(pretrained)), digits).model
    scratch = FinetuneTask(recipe, digits).model
    start = FinetuneTask(replace(recipe, init=str(pretrained)), digits).model.state_dict()
    assert all(torch.equal(start[key], value) for key, value in model.state_dict().items())
    differing = {key for key, value in scratch.state_dict().items() if not torch.equal(start[key], value)}
    assert "encoder.blocks.0.mixer.in_proj.weight" in differing


class TestLinearProbe:
    @pytest.fixture
    def task(self, recipe, digits, pretrained):
        return LinearProbeTask(replace(recipe, init=str(pretrained)), digits)

    def train(self, task, digits, steps=3):
        task.model.train()
        groups = task.parameter_groups(task.config.training)
        optimizer = torch.optim.SGD(groups, lr=0.1)
        for index in range(steps):
            optimizer.zero_grad()
            task.loss(task.model, some(digits, 32), step(index))["loss"].backward()
            optimizer.step()

    def test_backbone_never_changes(self, task, digits):
        before = {key: value.clone() for key, value in task.model.state_dict().items()}
        self.train(task, digits)
        after = task.model.state_dict()
        changed = {key for key, value in before.items() if not torch.equal(after[key], value)}
        running = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
        assert changed == {"head.weight", "head.bias", *running}

    def test_backbone_stays_in_evaluation_mode(self, task):
        task.model.train()
        assert task.model.training
        assert task.model.norm.training
        assert not any(module.training for module in task.model.backbone.modules())

    def test_folded_classifier_has_equal_outputs(self, task, digits):
        self.train(task, digits)
        model_config, classifier = task.classifier(task.model.eval())
        images, _ = some(digits)
        torch.testing.assert_close(classifier.eval()(images), task.model(images), rtol=1e-4, atol=1e-5)
        rebuilt = create_model(model_config, num_classes=10).eval()
        rebuilt.load_state_dict(classifier.state_dict())
        torch.testing.assert_close(rebuilt(images), classifier(images))

    def test_it_needs_a_pretrained_encoder(self, recipe, digits):
        with pytest.raises(UserError, match=r"a linear probe reads a pretrained encoder: give --init RUN"):
            LinearProbeTask(recipe, digits)

    def test_features_are_normalised_before_the_head(self, make_tiny):
        backbone = make_tiny(num_registers=0, global_pool="avg", num_classes=0)
        probe = LinearProbe(backbone, num_classes=3).train()
        seen = []
        probe.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        probe(torch.randn(16, 3, 32, 32))
        torch.testing.assert_close(seen[0].mean(0), torch.zeros(32), rtol=0, atol=1e-5)
        torch.testing.assert_close(seen[0].var(0, unbiased=False), torch.ones(32), rtol=0, atol=0.05)


class TestEvaluation:
    @pytest.fixture
    def model(self, recipe):
        torch.manual_seed(0)
        return create_model(recipe.model, num_classes=10).eval()

    def totals(self, model, digits, shard=(0, 1), batch_size=100):
        samples = digits.evaluation.select(digits.evaluation.indices[:101])
        return classification_totals(
            model, samples, batch_size=batch_size, workers=0, device=CPU, shard=shard
        )

    def test_shards_sum_to_the_whole(self, model, digits):
        whole = self.totals(model, digits)
        for shards in (2, 3):
            parts = [self.totals(model, digits, shard=(i, shards), batch_size=17) for i in range(shards)]
            torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=1e-6)
        assert whole[3] == 101

    def test_totals_are_the_definition(self, model, digits):
        right = right_of_five = 0
        loss = 0.0
        with torch.no_grad():
            every = model(torch.stack([digits.evaluation[i][0] for i in range(101)]))
        for logits, label in zip(every, digits.evaluation.labels.tolist()[:101], strict=True):
            ranked = logits.argsort(descending=True).tolist()
            right += ranked[0] == label
            right_of_five += label in ranked[:5]
            loss -= float(logits.log_softmax(0)[label])
        totals = self.totals(model, digits)
        assert totals[:2].tolist() == [right, right_of_five]
        assert float(totals[2]) == pytest.approx(loss, rel=1e-4)
        metrics = classification_metrics(totals)
        assert metrics["test_accuracy"] == pytest.approx(100 * right / 101)
        assert metrics["test_accuracy_top5"] == pytest.approx(100 * right_of_five / 101)
        assert metrics["test_loss"] == pytest.approx(loss / 101, rel=1e-4)

    def test_fewer_than_five_classes(self, digits, make_tiny):
        model = make_tiny(img_size=8, patch_size=2, in_chans=1, num_classes=10)
        model.reset_classifier(3)
        samples = digits.evaluation.select(digits.evaluation.indices[digits.evaluation.labels < 3])
        totals = classification_totals(model, samples, batch_size=64, workers=0, device=CPU)
        assert totals[1] == totals[3] == len(samples)

    def test_features_and_probabilities_are_in_order(self, model, digits):
        samples = digits.evaluation.select(digits.evaluation.indices[:10])
        config = EvaluationConfig(batch_size=4, workers=0, device="cpu", progress=False)
        features, labels = extract_features(model, samples, config)
        probabilities = predict_probabilities(model, samples, config)
        assert labels.tolist() == samples.labels.tolist()
        images = torch.stack([samples[i][0] for i in range(10)])
        with torch.no_grad():
            torch.testing.assert_close(model.head(torch.from_numpy(features)), model(images))
            torch.testing.assert_close(torch.from_numpy(probabilities), model(images).softmax(1))

    def test_devices(self):
        assert choose_device("cpu").type == "cpu"
        with pytest.raises(UserError, match=r"device must be auto, cpu or cuda; got 'tpu'"):
            choose_device("tpu")


class TestNeighbours:
    @pytest.fixture
    def points(self):
        generator = np.random.default_rng(0)
        labels = generator.integers(0, 4, 90)
        return (generator.normal(size=(90, 6)) + np.eye(6)[labels] * 1.5).astype(np.float32), labels

    @pytest.mark.parametrize("neighbors", [1, 5, 20])
    def test_score_is_scikit_learns(self, points, neighbors):
        features, labels = points
        reference = KNeighborsClassifier(
            neighbors, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
        ).fit(features[:60], labels[:60])
        score = knn_accuracy(features[:60], labels[:60], features[60:], labels[60:], neighbors=neighbors)
        assert score == pytest.approx(100 * reference.score(features[60:], labels[60:]))
        assert 30 < score < 100

    def test_more_neighbours_than_samples(self, points):
        features, labels = points
        few = knn_accuracy(features[:5], labels[:5], features[60:], labels[60:], neighbors=20)
        assert few == knn_accuracy(features[:5], labels[:5], features[60:], labels[60:], neighbors=5)
