"""Nothing in a training step waits for the device: either it or the host would be idle.

See :class:`map_core.testing.NoWaiting` for how this is checked on a machine without one.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from map_core import ConsecutiveRegions, Draw, GridRegions, Masking, RegionsAfterMask, make_position
from map_core.blocks import MambaBlock
from map_core.blocks.four_way import FourWayBlock
from map_core.objectives.autoregression import Autoregression, NextRegionDecoder
from map_core.objectives.contrastive import Contrastive
from map_core.objectives.simmim import SimMIM
from map_core.orders import scan_order
from map_core.testing import (
    ACCELERATOR,
    GridBackbone,
    LinearPosition,
    NoWaiting,
    toy_encoder,
    toy_objective,
)
from map_core.tracing import fx_leaf
from map_core.training.finite import FiniteGuard

ROWS, COLS, CHANNELS = 4, 4, 4


def inputs():
    return torch.randn(2, ROWS, COLS, CHANNELS, device=ACCELERATOR)


MASKINGS = {
    "random": Masking(),
    "sequential": Masking(strategy="sequential"),
    "diagonal": Masking(strategy="diagonal"),
    "within regions": Masking(scope="region"),
    "drawn ratio": Masking(ratio_std=0.25),
}
RULES = {
    "rows": GridRegions("row"),
    "blocks": GridRegions("block", (2, 3)),
    "consecutive": ConsecutiveRegions(3),
    "another order": ConsecutiveRegions(3, "hilbert"),
    "after the mask": RegionsAfterMask(3),
}


def step(objective, draw):
    """One forward and backward pass."""
    objective = objective.to(ACCELERATOR)
    batch = inputs()
    with NoWaiting():
        objective(batch, draw).loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


@pytest.mark.parametrize("attention", ["map", "mae", "local_mae", "ar"])
def test_a_step_reads_nothing_from_the_device(attention):
    step(toy_objective(attention=attention), Draw.of_batch(2))


@pytest.mark.parametrize("masking", MASKINGS.values(), ids=MASKINGS.keys())
def test_hiding_reads_nothing_from_the_device(masking):
    step(toy_objective(masking=masking), Draw.of_batch(2))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_regions_read_nothing_from_the_device(rule):
    step(toy_objective(regions=rule), Draw.of_batch(2))


@pytest.mark.parametrize("kind", ["learned", "sincos", "fourier", "mlp"])
def test_positions_read_nothing_from_the_device(kind):
    position = make_position(kind, 16, grid=(ROWS, COLS))
    step(toy_objective(backbone=GridBackbone(CHANNELS, toy_encoder(position=position))), Draw.of_batch(2))


@pytest.mark.parametrize("order", ["row", "snake", "hilbert", "random"])
def test_orders_read_nothing_from_the_device(order):
    cells = torch.cartesian_prod(torch.arange(ROWS), torch.arange(COLS))[None].float().to(ACCELERATOR)
    with NoWaiting():
        assert scan_order(cells, order, grid=(ROWS, COLS)).device == ACCELERATOR


def test_blocks_that_scan_rows_and_columns_read_nothing_from_the_device():
    tokens = torch.randn(2, ROWS * COLS + 3, 16, device=ACCELERATOR)
    position = torch.zeros(1, ROWS * COLS, 2, device=ACCELERATOR)
    block = FourWayBlock(16).to(ACCELERATOR)
    with NoWaiting():
        block(tokens, position)


def test_waiting_inside_an_fx_leaf_is_detected():
    @fx_leaf
    def waits(x):
        return x + torch.tensor(1.0, device=x.device)

    with pytest.raises(AssertionError, match="tensor copies to the device"), NoWaiting():
        waits(torch.zeros(3, device=ACCELERATOR))


def test_layers_read_nothing_from_the_device():
    encoder = toy_encoder(layout="MTMT", drop_path_rate=0.5, repeat_position=True)
    step(toy_objective(backbone=GridBackbone(CHANNELS, encoder)), Draw.of_batch(2))


def one_way():
    """A backbone that scans forward, for causal objectives."""
    blocks = {"M": lambda width, drop_path: MambaBlock(width, bidirectional=False)}
    return GridBackbone(CHANNELS, toy_encoder(layout="MM", block_makers=blocks))


def linear(width=16):
    return nn.Linear(width, CHANNELS)


OBJECTIVES = {
    "causal encoder": lambda: toy_objective(backbone=one_way(), encoder="causal"),
    "ratio 0": lambda: toy_objective(masking=Masking(0.0)),
    "autoregression": lambda: Autoregression(
        one_way(), NextRegionDecoder(16, LinearPosition(8), embed_dim=8, depth=1, num_heads=2), linear(8)
    ),
    "simmim": lambda: SimMIM(GridBackbone(CHANNELS, toy_encoder()), linear(), masking=Masking(unit=2)),
    "moco v2": lambda: Paired("v2"),
    "moco v3": lambda: Paired("v3"),
}


class Paired(Contrastive):
    """Makes views of its inputs, so that it accepts the same inputs as the others."""

    def __init__(self, version):
        super().__init__(GridBackbone(CHANNELS, toy_encoder()), version, hidden_dim=8, out_dim=8, queue=4)

    def forward(self, inputs, draw):
        return super().forward(torch.stack([inputs, inputs], 1), draw)

    def parameters(self, recurse=True):
        return (parameter for parameter in super().parameters(recurse) if parameter.requires_grad)


@pytest.mark.parametrize("build", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_other_objectives_read_nothing_from_the_device(build):
    step(build(), Draw.of_batch(2))


@pytest.mark.usefixtures("unchecked")  # a stand-in for Accelerate
def test_watching_for_broken_steps_reads_nothing_until_asked():
    parameter = nn.Parameter(torch.zeros(3, device=ACCELERATOR))
    optimizer = torch.optim.AdamW([parameter])
    accelerator = SimpleNamespace(device=ACCELERATOR, num_processes=1)
    guard = FiniteGuard(accelerator, optimizer, waits=False)
    numbers = {name: torch.zeros((), device=ACCELERATOR) for name in ("loss", "grad_norm")}
    with NoWaiting():
        for number in range(3):
            guard.watch(number, 0.1, numbers)
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        guard.raise_if_broken()


# ---- the harness itself


READS = {
    "item": lambda x: x.sum().item(),
    "int": lambda x: int(x.max()),
    "tolist": lambda x: x.tolist(),
    "bool": lambda x: bool((x > 0).any()),
    "boolean index": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.detach().numpy(),
    "from Python": lambda x: x.new_tensor([1.0, 2.0]),
    "from the host": lambda x: torch.ones(3).to(x.device),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS.keys())
def test_a_wait_would_be_seen(read):
    objective = toy_objective()

    def loss(prediction, target):
        read(prediction)
        return prediction.square().mean()

    objective.loss = loss
    with pytest.raises((RuntimeError, AssertionError, TypeError)):
        step(objective, Draw.of_batch(2))
