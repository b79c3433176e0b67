"""Moments of channels, and the deviation of a channel that never varies."""

import pytest
import torch

from map_core.data.statistics import Moments, deviations


@pytest.mark.parametrize("value", [0.0, 77 / 255, 100 / 255, 0.3, -1e6])
def test_a_constant_channel_has_a_deviation_of_one_whatever_the_rounding(value: float) -> None:
    varied, warnings = torch.linspace(0, 1, 999, dtype=torch.float64), list[str]()
    channels = torch.stack([varied, torch.full_like(varied, value)])
    total = Moments(0.0, torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    for part in channels.split(100, dim=1):
        mean = part.mean(1)
        total = total.merged(Moments(float(part.shape[1]), mean, (part - mean[:, None]).square().sum(1)))
    actual = deviations(total, warnings.append)
    assert actual == (pytest.approx(varied.std(correction=0).item()), 1.0)
    assert warnings == ["channels without variation, whose deviation is written as 1: 1"]
