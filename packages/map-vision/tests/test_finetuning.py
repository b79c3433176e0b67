"""Classifiers of images: keyed mixing, timm's loss, probes of an encoder, and what an evaluation computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy

from map_core import Draw, UserError
from map_core.commands.parser import load_recipe
from map_core.commands.standard import configs
from map_core.tasks.classification import FinetuneTask, LinearProbeTask
from map_core.tasks.evaluation import (
    EvaluationConfig,
    autocast,
    class_totals,
    classification_metrics,
    collect,
    extract_features,
)
from map_core.tasks.pretraining import PretrainTask
from map_core.tasks.weights import read_description
from map_vision.domain import DOMAIN
from map_vision.factory import MODELS, create_model
from map_vision.finetuning import ClassificationConfig
from map_vision.mixing import BatchMixer, MixingConfig
from map_vision.pretraining import ImageObjectiveConfig

CPU = torch.device("cpu")
QUICK = EvaluationConfig(batch_size=4, workers=0, device="cpu", progress=False)


def step(index=0, start=0, seed=0):
    return Draw(seed, index, slice(start, start + 8), 16)


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

    def test_batches_are_mixed_as_often_as_the_setting_says(self, batch):
        """50 of 200 are expected, with a deviation of 6."""
        mixer = BatchMixer(MixingConfig(mixup=0.8, mix_prob=0.25), num_classes=5)
        mixed = sum(not torch.equal(mixer(*batch, step(index))[0], batch[0]) for index in range(200))
        assert 30 <= mixed <= 70

    def test_cutmix_takes_its_share_of_the_batches(self, batch):
        """Cut pixels are those of one image or the other; mixed ones are of neither."""
        mixer = BatchMixer(MixingConfig(0.8, 1.0, mix_switch_prob=0.25), num_classes=5)
        images, cut = batch[0], 0
        for index in range(200):
            result = mixer(*batch, step(index))[0]
            cut += bool(((result == images) | (result == images.flip(0))).all())
        assert 30 <= cut <= 70

    def test_labels_of_a_cut_are_the_shares_of_its_pixels(self, batch):
        """Also where the cut meets the border."""
        images, labels = batch
        mixer, hard = BatchMixer(MixingConfig(cutmix=1.0), num_classes=5), F.one_hot(labels, 5).float()
        for index in range(10):
            cut, soft = mixer(images, labels, step(index))
            share = (cut == images).float().mean((1, 2, 3)).unsqueeze(1)
            torch.testing.assert_close(soft, share * hard + (1 - share) * hard.flip(0))

    @pytest.mark.parametrize("changes", [{}, {"mixup": 0.8}, {"cutmix": 1.0}])
    def test_sections_mix_where_they_say_so(self, changes):
        assert (ClassificationConfig(**changes).mixer(5) is not None) == bool(changes)
        assert (ImageObjectiveConfig(**changes).mixer() is not None) == bool(changes)


@pytest.fixture(scope="module")
def recipe():
    return load_recipe(DOMAIN.recipes, "finetune_digits", configs(DOMAIN).finetune)


@pytest.fixture(scope="module")
def digits(recipe):
    return DOMAIN.open_data(recipe.data, recipe.model, "finetune")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pretraining run's directory, with what ``--init`` reads of it."""
    directory = tmp_path_factory.mktemp("pretrained")
    task = PretrainTask(DOMAIN, load_recipe(DOMAIN.recipes, "pretrain_digits", configs(DOMAIN).pretrain))
    task.export(task.model, directory, "raw")
    return directory


def some(data, count=8):
    samples = [data.plain_train[i] for i in range(count)]
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])


class TestLoss:
    def test_smoothing_is_timms(self, recipe, digits):
        task = FinetuneTask(DOMAIN, recipe, digits)
        task.model.eval()
        images, labels = some(digits)
        expected = LabelSmoothingCrossEntropy(0.1)(task.model(images), labels)
        torch.testing.assert_close(task.loss(task.model, (images, labels), step()).loss, expected)

    def test_mixed_labels_are_smoothed_once(self, recipe, digits):
        objective = replace(recipe.objective, mixup=0.8, smoothing=0.2)
        task = FinetuneTask(DOMAIN, replace(recipe, objective=objective), digits)
        task.model.eval()
        images, labels = some(digits)
        mixed, soft = BatchMixer(objective, num_classes=10, smoothing=0.2)(images, labels, step())
        expected = -(soft * task.model(mixed).log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(task.loss(task.model, (images, labels), step()).loss, expected)
        assert soft.min() > 0
        torch.testing.assert_close(soft.sum(1), torch.ones(8))

    def test_odd_micro_batches_cannot_be_mixed(self, recipe, digits):
        recipe.training.batch_size, recipe.training.accumulation_steps = 6, 2
        mixing = replace(recipe, objective=replace(recipe.objective, mixup=0.8))
        FinetuneTask(DOMAIN, recipe, digits)
        with pytest.raises(
            UserError, match=r"batch_size \(6\) must .* in pairs \(1 \* 2 \* 2 = 4\); set .* 8"
        ):
            FinetuneTask(DOMAIN, mixing, digits)

    @pytest.mark.parametrize("smoothing", [-0.1, 1.0])
    def test_smoothing_has_a_range(self, recipe, digits, smoothing):
        objective = replace(recipe.objective, smoothing=smoothing)
        with pytest.raises(UserError, match=rf"objective.smoothing must lie in \[0, 1\); got {smoothing}"):
            FinetuneTask(DOMAIN, replace(recipe, objective=objective), digits)


def test_finetuning_starts_from_the_pretrained_encoder(recipe, digits, pretrained):
    started = FinetuneTask(DOMAIN, replace(recipe, init=str(pretrained)), digits).model.state_dict()
    again = FinetuneTask(DOMAIN, replace(recipe, init=str(pretrained)), digits).model.state_dict()
    scratch = FinetuneTask(DOMAIN, recipe, digits).model.state_dict()
    encoder = MODELS.encoder(pretrained).state_dict()
    assert all(torch.equal(again[key], value) for key, value in started.items())
    for key, value in started.items():
        assert torch.equal(value, encoder.get(key, scratch[key])), key
    new = set(started) - set(encoder)
    assert {key.split(".")[0] for key in new} == {"encoder", "head"}
    assert {key for key in new if key.startswith("encoder")} == {
        "encoder.registers.token",
        "encoder.registers.position",
    }


class TestLinearProbe:
    @pytest.fixture
    def task(self, recipe, digits, pretrained):
        return LinearProbeTask(DOMAIN, replace(recipe, init=str(pretrained)), digits)

    def train(self, task, digits, steps=3):
        task.model.train()
        groups = task.parameter_groups(task.config.training)
        optimizer = torch.optim.SGD(groups, lr=0.1)
        for index in range(steps):
            optimizer.zero_grad()
            task.loss(task.model, some(digits, 32), step(index)).loss.backward()
            optimizer.step()

    def test_backbone_never_changes(self, task, digits, pretrained):
        before = {key: value.clone() for key, value in task.model.state_dict().items()}
        self.train(task, digits)
        after = task.model.state_dict()
        changed = {key for key, value in before.items() if not torch.equal(after[key], value)}
        running = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
        assert changed == {"head.weight", "head.bias", *running}
        encoder = MODELS.encoder(pretrained).state_dict()
        assert all(torch.equal(after[f"backbone.{key}"], value) for key, value in encoder.items())

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

    def test_exported_classifier_has_equal_outputs(self, task, digits, tmp_path):
        self.train(task, digits)
        task.export(task.model.eval(), tmp_path, "raw")
        classifier, classes = MODELS.classifier(tmp_path)
        images, _ = some(digits)
        torch.testing.assert_close(classifier(images), task.model(images), rtol=1e-4, atol=1e-5)
        assert classes == digits.classes
        arguments = read_description(tmp_path)["arguments"]
        assert (arguments["num_registers"], arguments["global_pool"]) == (0, "avg")

    def test_it_needs_a_pretrained_encoder(self, recipe, digits):
        with pytest.raises(UserError, match=r"a linear probe reads a pretrained encoder: give --init RUN"):
            LinearProbeTask(DOMAIN, recipe, digits)


class TestEvaluation:
    @pytest.fixture
    def model(self, recipe):
        torch.manual_seed(0)
        return create_model(recipe.model, num_classes=10).eval()

    @pytest.fixture
    def samples(self, digits):
        return digits.evaluation.select(digits.evaluation.indices[:41])

    def totals(self, model, samples, shard=(0, 1), **changes):
        config = replace(QUICK, batch_size=16, **changes)
        return class_totals(*collect(model, samples, config, CPU, shard=shard))

    @pytest.mark.parametrize("shards", [2, 3])
    def test_shards_sum_to_the_whole(self, model, samples, shards):
        whole = self.totals(model, samples)
        parts = [self.totals(model, samples, shard=(i, shards)) for i in range(shards)]
        torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=1e-6)
        assert whole[0].sum() == 41

    def test_metrics_are_the_definition(self, model, samples):
        right = right_of_five = 0
        loss = 0.0
        with torch.no_grad():
            every = model(torch.stack([samples[i][0] for i in range(41)]))
        for logits, label in zip(every, samples.labels.tolist(), strict=True):
            ranked = logits.argsort(descending=True).tolist()
            right += ranked[0] == label
            right_of_five += label in ranked[:5]
            loss -= float(logits.log_softmax(0)[label])
        metrics = classification_metrics(self.totals(model, samples))
        assert metrics["test_accuracy"] == pytest.approx(100 * right / 41)
        assert metrics["test_accuracy_top5"] == pytest.approx(100 * right_of_five / 41)
        assert metrics["test_loss"] == pytest.approx(loss / 41, rel=1e-4)

    def test_bf16_is_the_arithmetic_of_autocast(self, model, samples):
        logits, labels = collect(model, samples, replace(QUICK, precision="bf16"), CPU)
        images = torch.stack([samples[i][0] for i in range(41)])
        with torch.no_grad(), autocast(CPU, "bf16"):
            expected = torch.cat([model(part).float() for part in images.split(4)])
        assert logits.dtype == torch.float32
        assert labels.tolist() == samples.labels.tolist()
        assert torch.equal(logits, expected)
        exact, _ = collect(model, samples, QUICK, CPU)
        assert not torch.equal(logits, exact)
        torch.testing.assert_close(logits, exact, rtol=0, atol=0.05 * float(exact.abs().max()))

    def test_features_are_what_the_head_reads_in_order(self, model, samples):
        features, labels = extract_features(model, samples, QUICK)
        images = torch.stack([samples[i][0] for i in range(41)])
        assert labels.tolist() == samples.labels.tolist()
        with torch.no_grad():
            torch.testing.assert_close(model.head(torch.from_numpy(features)), model(images))

    def test_a_classifier_is_run_plainly(self, model, samples):
        logits, labels = DOMAIN.logits(model, samples, QUICK, collate=DOMAIN.collate, title="evaluate")
        with torch.no_grad():
            torch.testing.assert_close(logits, model(torch.stack([samples[i][0] for i in range(41)])))
        assert labels.tolist() == samples.labels.tolist()
