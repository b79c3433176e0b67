"""Describes tensors to the Triton kernels, and allocates those that the kernels write."""

import torch
from torch import Tensor

from map_core.ops.scan.triton.arguments import Direction, Gate, Gradients, Rows
from map_core.ops.scan.triton.grid import Grid
from map_core.ops.scan.triton.loading import constexpr


def rows(x: Tensor) -> Rows:
    """Describe a (batch, length, x) tensor."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return Rows(x, x.stride(0), x.stride(1))


def gate_of(z: Tensor | None, grad_out: Tensor | None, directions: int) -> Gate:
    """Describe the gate on the average of ``directions`` directions."""
    return Gate(
        z=None if z is None else rows(z),
        grad_out=None if grad_out is None else rows(grad_out),
        scale=constexpr(1.0 / directions),
    )


def _empty_float32(device: torch.device, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)


def describe_direction(
    tensors: dict[str, Tensor], softplus: int, reverse: int, grid: Grid, keep: bool
) -> Direction:
    """Describe one direction; ``keep`` allocates room for the state before every chunk."""
    device, state, cut = tensors["u"].device, (grid.state, grid.channels), grid.segments > 1
    return Direction(
        u=rows(tensors["u"]),
        delta=rows(tensors["delta"]),
        B=rows(tensors["B"]),
        C=rows(tensors["C"]),
        A=tensors["A"].t().contiguous(),
        D=tensors["D"].contiguous() if "D" in tensors else None,
        bias=tensors["bias"].contiguous() if "bias" in tensors else None,
        starts=_empty_float32(device, grid.batch, grid.chunks, *state) if keep else None,
        ends=_empty_float32(device, grid.batch, grid.segments, *state) if cut else None,
        totals=_empty_float32(device, grid.batch, grid.segments, grid.channels) if cut else None,
        softplus=constexpr(bool(softplus)),
        reverse=constexpr(bool(reverse)),
    )


def allocate_gradients(tensors: dict[str, Tensor], grid: Grid) -> Gradients:
    """Allocate the gradients that one direction's programs write."""
    u, state, by_batch = tensors["u"], (grid.state, grid.channels), grid.segments * grid.batch
    by_step = (grid.blocks, grid.batch, grid.length, grid.state)
    vectors = {
        name: _empty_float32(u.device, by_batch, grid.channels) for name in ("D", "bias") if name in tensors
    }
    return Gradients(
        u=rows(torch.empty(u.shape, dtype=u.dtype, device=u.device)),
        delta=rows(torch.empty(u.shape, dtype=tensors["delta"].dtype, device=u.device)),
        B=_empty_float32(u.device, *by_step),
        C=_empty_float32(u.device, *by_step),
        A=_empty_float32(u.device, by_batch, *state),
        D=vectors.get("D"),
        bias=vectors.get("bias"),
        ends=_empty_float32(u.device, grid.batch, grid.segments, *state) if grid.segments > 1 else None,
    )
