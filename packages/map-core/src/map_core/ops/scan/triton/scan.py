"""The Triton scan as an operator, for one direction or the average of two."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from map_core.ops.scan.directions import FIELDS, by_direction, check_shapes
from map_core.ops.scan.inputs import ScanInputs
from map_core.ops.scan.operator import scan_operator
from map_core.ops.scan.triton.arguments import Direction, Gate, Gradients
from map_core.ops.scan.triton.description import allocate_gradients, describe_direction, gate_of, rows
from map_core.ops.scan.triton.grid import BACKWARD_VALUES, FORWARD_VALUES, Grid, grid_of
from map_core.ops.scan.triton.loading import kernels


def _pair(items: list[Any]) -> tuple[Any, Any]:
    return items[0], (items[1] if len(items) == 2 else None)


def _summarize(directions: list[Direction], grads: list[Gradients], gate: Gate | None, grid: Grid) -> None:
    """Summarise every segment as if nothing entered it: of the scans, or with ``grads`` of their gradients."""
    if grid.segments > 1:
        kernel = kernels().summary_kernel
        pairs = *_pair(directions), *_pair(grads or [None])
        grid.launch(kernel, len(directions), *pairs, gate, GRADIENTS=bool(grads))


def _scan(directions: list[Direction], gate: Gate, out: Tensor | None, grid: Grid) -> None:
    """Run the forward kernel: the gated average to ``out``, or with a cotangent the gradient of z."""
    _summarize(directions, [], None, grid)
    meeting = None
    if len(directions) == 2 and out is not None:
        # y of one direction is read back in float32 when the other arrives; out itself will do if it is float32.
        meeting = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    outputs = [None if x is None else rows(x) for x in (out, meeting)]
    grid.launch(kernels().forward_kernel, 1, *_pair(directions), gate, *outputs, CHUNK=grid.chunk)


def _forward(
    tensors: Sequence[Tensor],
    z: Tensor | None,
    present: Sequence[int],
    softplus: Sequence[int],
    reverse: Sequence[int],
) -> Tensor:
    """Average the scans whose inputs are listed in ``tensors``, in the order of ``FIELDS``."""
    direction_tensors = by_direction(tensors, present)
    check_shapes(direction_tensors, z)
    u = direction_tensors[0]["u"]
    out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(u):
        grid = grid_of(direction_tensors[0], FORWARD_VALUES, 1)
        directions = [
            describe_direction(fields, soft, back, grid, keep=False)
            for fields, soft, back in zip(direction_tensors, softplus, reverse, strict=True)
        ]
        _scan(directions, gate_of(z, None, len(direction_tensors)), out, grid)
    return out


def _backward(
    grad_out: Tensor,
    tensors: Sequence[Tensor],
    z: Tensor | None,
    present: Sequence[int],
    softplus: Sequence[int],
    reverse: Sequence[int],
) -> list[Tensor]:
    """Return the gradients of ``tensors``, then that of ``z`` if there is one."""
    inputs = [*tensors] if z is None else [*tensors, z]
    if grad_out.numel() == 0:
        return [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in inputs]
    direction_tensors = by_direction(tensors, present)
    with torch.cuda.device_of(grad_out):
        grid = grid_of(direction_tensors[0], BACKWARD_VALUES, len(direction_tensors))
        directions = [
            describe_direction(fields, soft, back, grid, keep=True)
            for fields, soft, back in zip(direction_tensors, softplus, reverse, strict=True)
        ]
        grad_z = None if z is None else torch.empty(z.shape, dtype=z.dtype, device=z.device)
        gate = gate_of(z, grad_out, len(direction_tensors))
        # Without z there is no gradient to write: the forward kernel then only stores the chunks' states.
        _scan(
            directions,
            gate if z is not None else gate_of(None, None, len(direction_tensors)),
            grad_z,
            replace(grid, values=FORWARD_VALUES),
        )

        buffers = [allocate_gradients(fields, grid) for fields in direction_tensors]
        _summarize(directions, buffers, gate, grid)
        grid.launch(
            kernels().backward_kernel,
            len(direction_tensors),
            *_pair(directions),
            *_pair(buffers),
            gate,
            CHUNK=grid.chunk,
        )
        grads = [grad for pair in zip(direction_tensors, buffers, strict=True) for grad in _sum(*pair)]
    return grads if grad_z is None else [*grads, grad_z]


def _sum(tensors: dict[str, Tensor], gradients: Gradients) -> list[Tensor]:
    """Return the gradients of one direction in the order of its tensors; sums in a fixed order."""
    summed = {name: getattr(gradients, name).sum(0) for name in tensors if name not in ("u", "delta")}
    summed |= {"u": gradients.u.data, "delta": gradients.delta.data, "A": summed["A"].t().contiguous()}
    return [summed[name].to(tensors[name].dtype) for name in FIELDS if name in tensors]


_apply = scan_operator("triton_selective_scan", ("cpu", "cuda"), _forward, _backward)


def triton_scan(inputs: ScanInputs, z: Tensor | None, reverse: bool) -> Tensor:
    """Compute what ``reference_scan`` defines with the Triton kernels."""
    return _apply([inputs], z, [int(reverse)])


def triton_bidirectional_scan(forward: ScanInputs, backward: ScanInputs, z: Tensor | None) -> Tensor:
    """Compute the gated average of both directions at once, without flips."""
    if forward.A.shape[1] != backward.A.shape[1]:  # one launch has one state size
        return 0.5 * (triton_scan(forward, z, False) + triton_scan(backward, z, True))
    return _apply([forward, backward], z, [0, 1])
