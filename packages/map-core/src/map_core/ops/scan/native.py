"""The native scan as an operator, for one direction or the average of two."""

from collections.abc import Sequence

import torch
from torch import Tensor

from map_core.ops.native.calls import ScanCall, ScanDirection, address, common_dtype, readable, rows
from map_core.ops.native.library import run
from map_core.ops.scan.directions import by_direction, check_shapes
from map_core.ops.scan.inputs import ScanInputs
from map_core.ops.scan.operator import scan_operator

_WEIGHTS = ("A", "D", "bias")
# Like z and the result, read and written in bfloat16 if all of these have that dtype; the others never are.
_HALVED = ("u", "delta")


def _dtype(directions: list[dict[str, Tensor]], *others: Tensor | None) -> torch.dtype:
    return common_dtype(*others, *(tensors[name] for tensors in directions for name in _HALVED))


def _call(
    dtype: torch.dtype,
    directions: list[dict[str, Tensor]],
    z: Tensor | None,
    softplus: Sequence[int],
    reverse: Sequence[int],
) -> tuple[ScanCall, list[object]]:
    """Describe a scan of a dtype, and return the tensors that must live until it has run.

    Raises:
        ValueError: shapes that do not match.
    """
    check_shapes(directions, z)
    read_z = None if z is None else readable(z, dtype)
    keep_alive: list[object] = [read_z]
    call = ScanCall(threads=torch.get_num_threads(), directions=len(directions), z=rows(read_z))
    call.half = dtype == torch.bfloat16
    call.batch, call.length, call.channels = directions[0]["u"].shape
    for number, tensors in enumerate(directions):
        inputs = {
            name: readable(x, dtype if name in _HALVED else torch.float32) for name, x in tensors.items()
        }
        inputs["A"] = inputs["A"].t()  # (d, n) -> (n, d), as the kernel reads it
        weights = {name: inputs[name].contiguous() for name in _WEIGHTS if name in inputs}
        keep_alive += [inputs, weights]
        call.direction[number] = ScanDirection(
            **{name: rows(inputs[name]) for name in ("u", "delta", "B", "C")},
            **{name: address(weights.get(name)) for name in _WEIGHTS},
            state=weights["A"].shape[0],
            softplus=softplus[number],
            reverse=reverse[number],
        )
    return call, keep_alive


def _forward(
    tensors: Sequence[Tensor],
    z: Tensor | None,
    present: Sequence[int],
    softplus: Sequence[int],
    reverse: Sequence[int],
) -> Tensor:
    """Average the scans whose inputs are listed in ``tensors``, in the order of ``FIELDS``."""
    directions = by_direction(tensors, present)
    dtype = _dtype(directions, z)
    call, keep_alive = _call(dtype, directions, z, softplus, reverse)
    out = torch.empty(tensors[0].shape, dtype=dtype)
    call.out = out.data_ptr()
    run("map_ops_scan_forward", call)
    del keep_alive
    return out.to(tensors[0].dtype)


def _backward(
    grad_out: Tensor,
    tensors: Sequence[Tensor],
    z: Tensor | None,
    present: Sequence[int],
    softplus: Sequence[int],
    reverse: Sequence[int],
) -> list[Tensor]:
    """Return the gradients of ``tensors``, then that of ``z`` if there is one."""
    directions = by_direction(tensors, present)
    dtype = _dtype(directions, z, grad_out)
    call, keep_alive = _call(dtype, directions, z, softplus, reverse)
    read_grad = readable(grad_out, dtype)
    call.grad_out = rows(read_grad)
    grads = []
    for number, fields in enumerate(directions):
        for name, x in fields.items():
            shape = x.t().shape if name == "A" else x.shape
            grad = torch.empty(shape, dtype=dtype if name in _HALVED else torch.float32)
            setattr(call.direction[number], f"grad_{name}", grad.data_ptr())
            grads.append(grad.t() if name == "A" else grad)
    if z is not None:
        grads.append(torch.empty(z.shape, dtype=dtype))
        call.grad_z = grads[-1].data_ptr()
    run("map_ops_scan_backward", call)
    del keep_alive
    inputs = [*tensors] if z is None else [*tensors, z]
    return [grad.to(x.dtype).contiguous() for grad, x in zip(grads, inputs, strict=True)]


_apply = scan_operator("selective_scan", "cpu", _forward, _backward)


def native_scan(inputs: ScanInputs, z: Tensor | None, reverse: bool) -> Tensor:
    """Compute what ``reference_scan`` defines with the native kernel."""
    return _apply([inputs], z, [int(reverse)])


def native_bidirectional_scan(forward: ScanInputs, backward: ScanInputs, z: Tensor | None) -> Tensor:
    """Compute the gated average of both directions in one pass, without flips."""
    return _apply([forward, backward], z, [0, 1])
