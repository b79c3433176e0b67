"""Whole objectives on a GPU: determinism, mixed precision, compilation, and no waiting for the device.

    python -m pytest -o addopts=--import-mode=importlib packages/map-core/tests/cuda_cases.py

``benchmarks/gpu_check.sh`` runs this file without the runtime shape checker, which does not compile. Without a GPU it
runs on the CPU.
"""

import copy

import pytest
import torch

from map_core import Draw
from map_core.ops import attention
from map_core.regions import region_attention_mask
from map_core.testing import toy_objective

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DRAW = Draw.of_batch(4, seed=3)


@pytest.fixture
def vectors():
    return torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def loss_and_gradients(objective, vectors):
    objective.zero_grad()
    loss = objective(vectors, DRAW).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in objective.parameters())]


@pytest.fixture
def objective():
    torch.manual_seed(0)
    return toy_objective().to(DEVICE)


def test_two_passes_are_equal_to_the_last_bit(objective, vectors):
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (loss_and_gradients(objective, vectors) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_device_computes_what_a_cpu_does(objective, vectors):
    on_cpu = loss_and_gradients(copy.deepcopy(objective).cpu(), vectors.cpu())
    for a, b in zip(loss_and_gradients(objective, vectors), on_cpu, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4)


def test_mixed_precision_follows_float32(objective, vectors):
    wide, *_ = loss_and_gradients(objective, vectors)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        narrow = objective(vectors, DRAW).loss
    torch.testing.assert_close(narrow.float(), wide, rtol=0.02, atol=0)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"] if CUDA else ["eager"])
def test_a_compiled_step_equals_the_plain_one(objective, vectors, mode):
    plain = loss_and_gradients(objective, vectors)
    compiled = copy.deepcopy(objective)
    compiled.compile(dynamic=False, **({"mode": mode} if CUDA else {"backend": "eager"}))
    for a, b in zip(loss_and_gradients(compiled, vectors), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not CUDA, reason="only a GPU is waited for")
def test_a_step_waits_for_nothing(objective, vectors):
    loss_and_gradients(objective, vectors)  # the first step compiles and loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        objective(vectors, DRAW).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not CUDA, reason="FlexAttention has no backward pass on a CPU")
@pytest.mark.parametrize("kind", ["map", "local_mae", "ar"])
def test_flex_attention_equals_the_dense_mask(kind):
    region = torch.arange(1100, device=DEVICE).div(64, rounding_mode="floor").unsqueeze(0)
    mask = region_attention_mask(region, kind)
    results = []
    for backend in ("flex", "torch"):
        generator = torch.Generator().manual_seed(0)
        leaves = [
            torch.randn(2, 2, 1100, 32, generator=generator).to(DEVICE).requires_grad_() for _ in range(3)
        ]
        y = attention(*leaves, mask, backend=backend)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-3)
