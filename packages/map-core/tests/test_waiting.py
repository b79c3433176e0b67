"""Nothing in a step of training waits for the device: it would stand idle, or the host would.

See :class:`map_core.testing.NoWaiting` for how that is seen on a machine without one.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from map_core import ConsecutiveRegions, Draw, GridRegions, Masking, RegionsAfterMask, make_position
from map_core.testing import ACCELERATOR, GridBackbone, NoWaiting, toy_encoder, toy_objective
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


def test_layers_read_nothing_from_the_device():
    encoder = toy_encoder(layout="MTMT", drop_path_rate=0.5, repeat_position=True)
    step(toy_objective(backbone=GridBackbone(CHANNELS, encoder)), Draw.of_batch(2))


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
