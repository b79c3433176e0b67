"""Multiply-adds by kind, against the arithmetic of each operation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from map_core.ops import attention as attend
from map_core.ops import attention_backends, depthwise_causal_conv1d, selective_scan
from map_core.ops.attention.flops import ON_A_CPU
from map_core.ops.multiply_adds import count_multiply_adds

BATCH, LENGTH, CHANNELS, STATE, HEADS = 2, 5, 8, 4, 2


def scan():
    u, delta = torch.randn(2, BATCH, LENGTH, CHANNELS)
    B, C = torch.randn(2, BATCH, LENGTH, STATE)
    return selective_scan(u, delta, -torch.rand(CHANNELS, STATE), B, C, torch.ones(CHANNELS))


def attention(**options):
    q = torch.randn(BATCH, HEADS, LENGTH, CHANNELS // HEADS)
    k, v = torch.randn(2, BATCH, HEADS, 3, CHANNELS // HEADS)
    return F.scaled_dot_product_attention(q, k, v, **options)


def masked_attention():
    return attention(attn_mask=torch.ones(LENGTH, 3, dtype=torch.bool))


CASES = {
    "linear": (
        lambda: nn.Linear(CHANNELS, 3)(torch.randn(BATCH, LENGTH, CHANNELS)),
        {"linear layers": BATCH * LENGTH * CHANNELS * 3},
    ),
    "scan": (scan, {"scans": BATCH * LENGTH * CHANNELS * (7 * STATE + 3) // 2}),
    "attention": (attention, {"attention": 2 * BATCH * LENGTH * 3 * CHANNELS}),
    "masked attention": (masked_attention, {"attention": 2 * BATCH * LENGTH * 3 * CHANNELS}),
    "causal convolution": (
        lambda: depthwise_causal_conv1d(torch.randn(BATCH, LENGTH, CHANNELS), torch.randn(CHANNELS, 4)),
        {"convolutions": BATCH * LENGTH * CHANNELS * 4},
    ),
    "convolution of images": (
        lambda: nn.Conv2d(3, CHANNELS, 2, stride=2)(torch.randn(BATCH, 3, 6, 4)),
        {"convolutions": BATCH * 6 * CHANNELS * 3 * 4},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_is_counted_as_its_arithmetic_says(name):
    run, expected = CASES[name]
    assert count_multiply_adds(run) == expected


def test_kinds_of_one_program_are_summed():
    def run():
        scan(), attention(), scan()

    scans, products = (CASES[name][1] for name in ("scan", "attention"))
    assert count_multiply_adds(run) == {"scans": 2 * scans["scans"], **products}


BACKENDS = [s.name for s in attention_backends() if s.available and s.name != "flex"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [True, False])
def test_attention_costs_the_same_whatever_computes_it(masked, backend):
    q, k, v = (torch.randn(BATCH, HEADS, length, 6, requires_grad=True) for length in (LENGTH, 3, 3))
    mask = torch.ones(1, LENGTH, 3, dtype=torch.bool) if masked else None
    product = 2 * BATCH * HEADS * LENGTH * 3 * 6
    with FlopCounterMode(display=False, custom_mapping=ON_A_CPU) as counter:
        y = attend(q, k, v, mask, backend)
    assert counter.get_total_flops() == 2 * product
    with FlopCounterMode(display=False, custom_mapping=ON_A_CPU) as counter:
        y.sum().backward()
    # the definition has saved its scores; the others recompute them
    assert counter.get_total_flops() == (4 if backend == "reference" else 5) * product
