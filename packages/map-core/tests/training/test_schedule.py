"""The learning rate by step."""

import pytest

from map_core.training import TrainingConfig
from map_core.training.schedule import Schedule


def test_the_schedule_rises_linearly_and_falls_as_a_cosine():
    config = TrainingConfig(epochs=10, warmup_epochs=2.0, lr=1.0, warmup_lr=0.1, min_lr=0.2)
    rate = Schedule.of(config, steps_per_epoch=5)
    assert [rate(0), rate(5), rate(10)] == pytest.approx([0.1, 0.55, 1.0])
    assert [rate(20), rate(30), rate(50)] == pytest.approx([0.2 + 0.8 * 0.8535533906, 0.6, 0.2])
    assert all(rate(step) >= rate(step + 1) for step in range(10, 50))


def test_base_lr_scales_with_the_global_batch_and_absolute_rates_stay_below_it():
    config = TrainingConfig(batch_size=64, base_lr=1e-3, min_lr=1.0, warmup_lr=1.0)
    assert config.peak_lr == pytest.approx(2.5e-4)
    rate = Schedule.of(config, steps_per_epoch=1)
    assert max(rate(step) for step in range(101)) <= config.peak_lr
    assert TrainingConfig(batch_size=64, lr=0.5).peak_lr == 0.5
