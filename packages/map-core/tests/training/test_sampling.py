"""Which samples are seen is a function of the seed and the step, and of nothing else."""

import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_task import ToyData, ToyTask, toy_config

from map_core import UserError
from map_core.randomness import keyed_generator
from map_core.training import TrainingConfig, train
from map_core.training.loading import batches_in_order
from map_core.training.plan import RunPlan, SampleKey
from map_core.training.sampling import KeyedDataset, RunSampler, seed_everything


def keys_by_step(config, processes, samples=70, start=0, stop=16):
    """For every optimizer step, the keys in the order in which ``Draw.samples`` numbers them."""
    steps = {}
    for process in range(processes):
        plan = RunPlan.of(config, samples, processes, process)
        sampler = RunSampler(plan, start, stop)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for number, keys in enumerate(batches):
            step, micro = start + number // plan.accumulation_steps, number % plan.accumulation_steps
            slots = plan.draw(step, micro).samples
            steps.setdefault(step, [None] * plan.batch_size)[slots] = keys
    return steps


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 2), (4, 2), (2, 8)])
def test_processes_and_accumulation_split_the_same_global_batches(processes, accumulation):
    expected = keys_by_step(toy_config(), 1)
    assert keys_by_step(toy_config(accumulation_steps=accumulation), processes) == expected


def test_a_later_start_sees_what_an_earlier_one_would_have():
    assert keys_by_step(toy_config(), 1, start=5) == {
        step: keys for step, keys in keys_by_step(toy_config(), 1).items() if step >= 5
    }


def test_dropout_is_drawn_anew_by_every_process_step_and_micro_step():
    plans = [RunPlan.of(toy_config(accumulation_steps=2), 70, 4, process) for process in range(4)]
    seeds = [plan.step_seed(step, micro) for plan in plans for step in range(3) for micro in range(2)]
    assert len(set(seeds)) == 4 * 3 * 2


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(64, None), (70, "; each epoch leaves out 6 samples, drawn anew, that fill no batch")],
)
def test_samples_that_fill_no_batch_are_counted(samples, expected):
    text = RunPlan.of(toy_config(), samples, 1, 0).describe("pretrain", toy_config(), torch.device("cpu"), 0)
    assert (expected in text) if expected else ("leaves out" not in text)


@pytest.mark.parametrize(
    ("lr", "expected"),
    [
        (0.01, "learning rate 0.01 as training.lr says (training.base_lr counts where that is null)"),
        (None, "learning rate 3.125e-05 = 0.0005 * 16 / 256"),
    ],
)
def test_the_first_line_names_the_setting_that_the_learning_rate_comes_from(lr, expected):
    config = toy_config(lr=lr, base_lr=5e-4)
    assert expected in RunPlan.of(config, 64, 1, 0).describe("pretrain", config, torch.device("cpu"), 0)


def expected_keys(plan, epoch):
    """The definition: every sample of a permutation ``repeats`` times in a row, cut to whole batches."""
    permutation = torch.randperm(
        plan.num_samples, generator=keyed_generator(plan.seed, "order", epoch)
    ).tolist()
    repeated = [SampleKey(epoch, n, repeat) for n in permutation for repeat in range(plan.repeats)]
    return repeated[: plan.num_samples // plan.batch_size * plan.batch_size]


def epoch_keys(plan, epoch):
    per_epoch = plan.steps_per_epoch
    return [key for batch in RunSampler(plan, epoch * per_epoch, (epoch + 1) * per_epoch) for key in batch]


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("samples", [70, 64, 23])
def test_the_order_of_an_epoch_is_its_definition(samples, seed, repeats, epoch):
    plan = RunPlan.of(toy_config(seed=seed, repeated_augmentation=repeats), samples, 1, 0)
    assert epoch_keys(plan, epoch) == expected_keys(plan, epoch)


@pytest.mark.parametrize(
    ("seed", "epoch", "repeats", "first"),
    [
        (0, 0, 1, [(2, 0), (35, 0), (42, 0), (67, 0), (59, 0), (48, 0)]),
        (0, 2, 1, [(40, 0), (66, 0), (63, 0), (20, 0), (64, 0), (57, 0)]),
        (3, 1, 3, [(30, 0), (30, 1), (30, 2), (39, 0), (39, 1), (39, 2)]),
    ],
)  # fmt: skip
def test_the_order_of_an_epoch_is_that_of_version_0_1(seed, epoch, repeats, first):
    plan = RunPlan.of(toy_config(seed=seed, repeated_augmentation=repeats), 70, 1, 0)
    assert [(key.sample, key.repeat) for key in epoch_keys(plan, epoch)[:6]] == first


def test_an_epoch_visits_samples_once_in_an_order_of_its_own():
    plan = RunPlan.of(toy_config(), 70, 1, 0)
    orders = [[key.sample for key in epoch_keys(plan, epoch)] for epoch in range(3)]
    assert all(len(set(order)) == len(order) == 64 for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert [k.sample for k in epoch_keys(RunPlan.of(toy_config(seed=1), 70, 1, 0), 0)] != orders[0]


def test_repeated_augmentation_repeats_samples_and_keeps_the_length():
    keys = epoch_keys(RunPlan.of(toy_config(repeated_augmentation=3), 70, 1, 0), 0)
    assert len(keys) == len(set(keys)) == 64
    assert all(keys[3 * i].sample == keys[3 * i + 1].sample == keys[3 * i + 2].sample for i in range(21))
    assert len({key.sample for key in keys}) == 22


def test_an_order_of_a_million_samples_is_one_array():
    plan = RunPlan.of(toy_config(batch_size=1000), 1_000_000, 1, 0)
    order = plan.epoch_order(0)
    assert order.untyped_storage().nbytes() == 8_000_000
    tracemalloc.start()
    try:
        assert len(next(iter(RunSampler(plan, 5, 10)))) == 1000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000, "Python objects were made of more than a batch"
    finally:
        tracemalloc.stop()


def test_a_data_set_may_be_read_in_an_order_of_its_own():
    def backwards(generator):
        assert generator.initial_seed() == keyed_generator(0, "order", 1).initial_seed()
        return torch.arange(69, -1, -1)

    plan = RunPlan.of(toy_config(), 70, 1, 0, backwards)
    assert [key.sample for key in epoch_keys(plan, 1)] == [*range(69, 5, -1)]


def test_a_sample_is_a_function_of_its_key_and_leaves_no_trace():
    data = KeyedDataset(ToyData(), seed=0)
    seed_everything(3)
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    seed_everything(3)
    first = data[SampleKey(0, 5, 0)][0]
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002
    assert torch.equal(data[SampleKey(0, 5, 0)][0], first)
    others = [data[key][0] for key in (SampleKey(1, 5, 0), SampleKey(0, 5, 1), SampleKey(0, 6, 0))]
    assert not any(torch.equal(other, first) for other in others)
    assert not torch.equal(KeyedDataset(ToyData(), seed=1)[SampleKey(0, 5, 0)][0], first)


def test_a_batch_is_its_samples_and_leaves_no_trace():
    data, keys = KeyedDataset(ToyData(), seed=0), [SampleKey(1, index, 0) for index in (5, 2, 5)]
    seed_everything(3)
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    seed_everything(3)
    batch = data.__getitems__(keys)  # as PyTorch's loader reads
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002
    for (inputs, label), key in zip(batch, keys, strict=True):
        assert torch.equal(inputs, data[key][0])
        assert label == data[key][1]


def test_workers_load_the_same_samples(tmp_path):
    without_workers, with_workers = ToyTask(), ToyTask()
    train(without_workers, toy_config(max_steps=3), tmp_path / "alone")
    train(with_workers, toy_config(max_steps=3, workers=2), tmp_path / "helped")
    assert all(
        torch.equal(a[1], b[1])
        for a, b in zip(without_workers.loss_inputs, with_workers.loss_inputs, strict=True)
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_error_in_a_sample_arrives_unchanged(tmp_path, workers):
    with pytest.raises(UserError, match=r"^picture 7 cannot be read; remove it$"):
        train(ToyTask(broken=7, samples=16), toy_config(workers=workers), tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_in_order_are_those_of_their_keys(workers):
    settings = {
        "batch_size": 3,
        "workers": workers,
        "device": torch.device("cpu"),
        "seed": 5,
        "pass_number": 2,
    }
    state = torch.get_rng_state()
    whole = list(batches_in_order(ToyData(8), **settings))
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(labels) for _, labels in whole] == [3, 3, 2]
    expected = [KeyedDataset(ToyData(8), seed=5)[SampleKey(2, index, 0)] for index in range(8)]
    inputs, labels = (torch.cat(parts) for parts in zip(*whole, strict=True))
    assert torch.equal(inputs, torch.stack([sample[0] for sample in expected]))
    assert labels.tolist() == [index % 3 for index in range(8)]


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_shards_in_order_are_every_third_sample(shard):
    settings = {"batch_size": 3, "workers": 0, "device": torch.device("cpu"), "seed": 5, "pass_number": 2}
    whole, part = (
        torch.cat([inputs for inputs, _ in batches_in_order(ToyData(8), shard=index_and_count, **settings)])
        for index_and_count in ((0, 1), (shard, 3))
    )
    assert torch.equal(part, whole[shard::3])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_users_error_ends_a_pass_in_order(workers):
    with pytest.raises(UserError, match=r"^picture 7 cannot be read; remove it$"):
        list(
            batches_in_order(ToyData(8, broken=7), batch_size=3, workers=workers, device=torch.device("cpu"))
        )


class Growing:
    """The seventh sample is longer."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.zeros(3 if index == 6 else 2), index


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_of_unequal_shapes_are_reported_with_their_shapes(workers):
    batches = batches_in_order(Growing(), batch_size=4, workers=workers, device=torch.device("cpu"))
    assert len(next(batches)[1]) == 4
    message = r"^samples of shapes \(2,\) and \(3,\) do not fit into one batch \(.*\); make their shapes equal where"
    with pytest.raises(UserError, match=message):
        next(batches)


def test_an_error_of_a_collate_function_over_equal_shapes_is_passed_on():
    def fail(samples):
        raise RuntimeError("an error of another kind")

    settings = {"batch_size": 4, "workers": 0, "device": torch.device("cpu"), "collate": fail}
    with pytest.raises(RuntimeError, match=r"^an error of another kind$"):
        next(batches_in_order(ToyData(8), **settings))


def test_too_little_data_is_refused():
    with pytest.raises(
        UserError, match=r"holds 10 samples, fewer than one batch .*16.*lower --training.batch_size"
    ):
        RunPlan.of(toy_config(), 10, 1, 0)


def test_a_batch_that_does_not_split_evenly_is_refused():
    with pytest.raises(UserError, match=r"batch_size \(16\) must be a multiple .* \(3 \* 2 = 6\); set .* 18"):
        RunPlan.of(toy_config(accumulation_steps=2), 70, 3, 0)


def test_draws_of_a_step_share_its_keys_and_split_its_samples():
    plans = [RunPlan.of(toy_config(accumulation_steps=2, seed=4), 70, 2, process) for process in range(2)]
    draws = [plan.draw(9, micro) for micro in range(2) for plan in plans]
    assert {(draw.seed, draw.step, draw.global_batch) for draw in draws} == {(4, 9, 16)}
    assert [range(16)[draw.samples] for draw in draws] == [range(4 * i, 4 * i + 4) for i in range(4)]


@pytest.mark.parametrize(
    ("samples", "epochs", "batch", "every"),
    [(12, 1000, 12, 50), (300, 47, 64, 3), (5000, 2, 64, 1), (1_000_000, 1, 64, 1)],
)
def test_a_budget_of_samples_fits_any_number_of_them(samples, epochs, batch, every):
    config = TrainingConfig(sample_budget=12_000, batch_size=64).resolved_for(samples)
    config.validate()
    assert (config.epochs, config.batch_size, config.sample_budget) == (epochs, batch, None)
    assert config.checkpoint_epochs == config.evaluate_epochs == every
    assert config.warmup_epochs == epochs / 20
    assert RunPlan.of(config, samples, 1, 0).total_steps > 0
    assert config.resolved_for(samples) == config


def test_under_a_budget_checkpoints_and_evaluations_may_be_rarer_but_not_more_frequent():
    config = TrainingConfig(sample_budget=12_000, batch_size=64, checkpoint_epochs=2, evaluate_epochs=1000)
    resolved = config.resolved_for(300)  # 47 epochs, a twentieth of which are 3
    assert (resolved.checkpoint_epochs, resolved.evaluate_epochs) == (3, 1000)


@pytest.mark.parametrize("budget", [1000, 200_000])
@pytest.mark.parametrize("batch", [1, 2, 63, 64, 128, 255])
def test_as_many_samples_are_seen_as_the_budget_says(budget, batch):
    """What fills no batch is not seen; the budget is met to within half an epoch of what is."""
    for samples in (1, 12, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 383, 500, 999, 5000, 150_001):
        config = TrainingConfig(sample_budget=budget, batch_size=batch).resolved_for(samples)
        plan = RunPlan.of(config, samples, 1, 0)
        epoch = plan.steps_per_epoch * plan.batch_size
        if plan.epochs > 1:
            assert abs(plan.total_steps * plan.batch_size - budget) <= epoch / 2, samples
        else:
            assert budget <= 1.5 * epoch, samples


def test_a_batch_in_parts_stays_whole_under_a_budget():
    assert (
        TrainingConfig(sample_budget=100, batch_size=64, accumulation_steps=4).resolved_for(14).batch_size
        == 12
    )


@pytest.mark.parametrize(("batch", "samples", "cure"), [(15, None, 16), (15, 15, 12), (3, 100, 4)])
def test_mixing_needs_micro_batches_of_whole_pairs(batch, samples, cure):
    config = TrainingConfig(batch_size=batch)
    message = (
        rf"training.batch_size \({batch}\) must be a multiple of processes times accumulation_steps times 2, "
        rf"as samples are mixed in pairs \(2 \* 1 \* 2 = 4\); set --training.batch_size {cure}"
    )
    with pytest.raises(UserError, match=message):
        config.micro_batch(2, samples, pairs=True)
    assert replace(config, batch_size=cure).micro_batch(2, pairs=True) * 2 == cure


def test_no_batch_is_suggested_that_the_samples_do_not_fill():
    with pytest.raises(UserError, match=r"= 4\); the 3 training samples fill none: use fewer processes or"):
        TrainingConfig(batch_size=1).micro_batch(2, 3, pairs=True)


@pytest.mark.parametrize(
    ("samples", "processes", "steps", "pairs", "batch"),
    [
        (101, 1, 1, True, 100),
        (101, 2, 1, False, 100),
        (101, 2, 3, True, 96),
        (101, 8, 4, True, 64),
        (3, 2, 1, True, 256),
    ],
)
def test_a_budget_fits_a_batch_that_micro_batches_share_evenly(samples, processes, steps, pairs, batch):
    config = TrainingConfig(sample_budget=1000, accumulation_steps=steps)
    resolved = config.resolved_for(samples, processes=processes, pairs=pairs)
    assert resolved.batch_size == batch
    if batch <= samples:
        assert RunPlan.of(resolved, samples, processes, 0).steps_per_epoch == 1
    assert (
        replace(config, batch_size=33).resolved_for(1000, processes=1, pairs=pairs).batch_size == 33
    )  # as it was set


def test_the_cure_for_an_uneven_batch_needs_no_more_samples_than_there_are():
    config = TrainingConfig(sample_budget=1000).resolved_for(101)
    with pytest.raises(
        UserError, match=r"batch_size \(101\) must be a multiple .*; set --training.batch_size 100"
    ):
        RunPlan.of(config, 101, 2, 0)
    assert (
        RunPlan.of(TrainingConfig(sample_budget=1000, batch_size=100).resolved_for(101), 101, 2, 0).batch_size
        == 100
    )
