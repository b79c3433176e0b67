"""The native scan as an operator, for one direction or the average of two."""

from collections.abc import Sequence

import torch
from torch import Tensor

from map_core.ops.native.calls import ScanCall, ScanDirection, address, rows, widen
from map_core.ops.native.library import run
from map_core.ops.scan.directions import by_direction
from map_core.ops.scan.inputs import ScanInputs
from map_core.ops.scan.operator import scan_operator

_WEIGHTS = ("A", "D", "bias")


def _call(
    directions: list[dict[str, Tensor]], z: Tensor | None, softplus: Sequence[int], reverse: Sequence[int]
) -> tuple[ScanCall, list[object]]:
    """Describe a scan, and return the widened tensors that must live until it has run."""
    wide_z = None if z is None else widen(z)
    kept: list[object] = [wide_z]
    call = ScanCall(threads=torch.get_num_threads(), directions=len(directions), z=rows(wide_z))
    call.batch, call.length, call.channels = directions[0]["u"].shape
    for number, tensors in enumerate(directions):
        wide = {name: widen(x) for name, x in tensors.items()}
        wide["A"] = wide["A"].t()  # (d, n) -> (n, d), as the kernel reads it
        weights = {name: wide[name].contiguous() for name in _WEIGHTS if name in wide}
        kept += [wide, weights]
        call.direction[number] = ScanDirection(
            **{name: rows(wide[name]) for name in ("u", "delta", "B", "C")},
            **{name: address(weights.get(name)) for name in _WEIGHTS},
            state=weights["A"].shape[0],
            softplus=softplus[number],
            reverse=reverse[number],
        )
    return call, kept


def _forward(
    tensors: Sequence[Tensor],
    z: Tensor | None,
    present: Sequence[int],
    softplus: Sequence[int],
    reverse: Sequence[int],
) -> Tensor:
    """Average the scans whose inputs are listed in ``tensors``, in the order of ``FIELDS``."""
    call, kept = _call(by_direction(tensors, present), z, softplus, reverse)
    out = torch.empty(tensors[0].shape, dtype=torch.float32)
    call.out = out.data_ptr()
    run("map_ops_scan_forward", call)
    del kept
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
    call, kept = _call(by_direction(tensors, present), z, softplus, reverse)
    wide_grad = widen(grad_out)
    call.grad_out = rows(wide_grad)
    inputs = [*tensors] if z is None else [*tensors, z]
    grads = [torch.empty(x.shape, dtype=torch.float32) for x in inputs]
    by_state = []
    for number, named in enumerate(by_direction(grads, present)):
        by_state.append(torch.empty(named["A"].t().shape, dtype=torch.float32))
        for name, grad in (named | {"A": by_state[-1]}).items():
            setattr(call.direction[number], f"grad_{name}", grad.data_ptr())
    call.grad_z = None if z is None else grads[-1].data_ptr()
    run("map_ops_scan_backward", call)
    del kept
    for named, grad in zip(by_direction(grads, present), by_state, strict=True):
        named["A"].copy_(grad.t())
    return [grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True)]


_apply = scan_operator("selective_scan", "cpu", _forward, _backward)


def native_scan(inputs: ScanInputs, z: Tensor | None, reverse: bool) -> Tensor:
    """Compute what ``reference_scan`` defines with the native kernel."""
    return _apply([inputs], z, [int(reverse)])


def native_bidirectional_scan(forward: ScanInputs, backward: ScanInputs, z: Tensor | None) -> Tensor:
    """Compute the gated average of both directions in one pass, without flips."""
    return _apply([forward, backward], z, [0, 1])
