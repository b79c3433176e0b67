"""The native scan as an operator, for one direction or the average of two.

Operators take lists of tensors, but no lists in which some are missing: ``present`` says for each field of
each direction whether it is there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from map_core.ops.native.library import ScanCall, ScanDirection, address, rows, run, widen
from map_core.ops.selective_scan.inputs import ScanInputs

_FIELDS = ("u", "delta", "A", "B", "C", "D", "bias")
_WEIGHTS = ("A", "D", "bias")


def _by_direction(tensors: Sequence[Tensor], present: Sequence[bool]) -> list[dict[str, Tensor]]:
    """Name the tensors of each direction."""
    remaining = iter(tensors)
    directions: list[dict[str, Tensor]] = []
    for place, there in enumerate(present):
        if place % len(_FIELDS) == 0:
            directions.append({})
        if there:
            directions[-1][_FIELDS[place % len(_FIELDS)]] = next(remaining)
    return directions


def _call(
    directions: list[dict[str, Tensor]], z: Tensor | None, softplus: Sequence[bool], reverse: Sequence[bool]
) -> tuple[ScanCall, list[object]]:
    """Describe a scan, and return the widened tensors that must live until it has run."""
    wide_z = None if z is None else widen(z)
    kept: list[object] = [wide_z]
    call = ScanCall(threads=torch.get_num_threads(), directions=len(directions), z=rows(wide_z))
    call.batch, call.length, call.channels = directions[0]["u"].shape
    for number, tensors in enumerate(directions):
        wide = {name: widen(x) for name, x in tensors.items()}
        weights = {name: wide[name].contiguous() for name in _WEIGHTS if name in wide}
        kept += [wide, weights]
        call.direction[number] = ScanDirection(
            **{name: rows(wide[name]) for name in ("u", "delta", "B", "C")},
            **{name: address(weights.get(name)) for name in _WEIGHTS},
            state=weights["A"].shape[1],
            softplus=softplus[number],
            reverse=reverse[number],
        )
    return call, kept


@torch.library.custom_op("map_core::selective_scan", mutates_args=(), device_types="cpu")
def scan_operator(
    tensors: Sequence[Tensor],
    z: Tensor | None,
    present: Sequence[bool],
    softplus: Sequence[bool],
    reverse: Sequence[bool],
) -> Tensor:
    """Average the scans whose inputs are listed in ``tensors``, in the order of ``_FIELDS``."""
    call, kept = _call(_by_direction(tensors, present), z, softplus, reverse)
    out = torch.empty(tensors[0].shape, dtype=torch.float32)
    call.out = out.data_ptr()
    run("map_ops_scan_forward", call)
    del kept
    return out.to(tensors[0].dtype)


@torch.library.custom_op("map_core::selective_scan_backward", mutates_args=(), device_types="cpu")
def backward_operator(
    grad_out: Tensor,
    tensors: Sequence[Tensor],
    z: Tensor | None,
    present: Sequence[bool],
    softplus: Sequence[bool],
    reverse: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of ``tensors``, then that of ``z`` if there is one."""
    call, kept = _call(_by_direction(tensors, present), z, softplus, reverse)
    wide_grad = widen(grad_out)
    call.grad_out = rows(wide_grad)
    inputs = [*tensors] if z is None else [*tensors, z]
    grads = [torch.empty(x.shape, dtype=torch.float32) for x in inputs]
    for number, named in enumerate(_by_direction(grads, present)):
        for name, grad in named.items():
            setattr(call.direction[number], f"grad_{name}", grad.data_ptr())
    call.grad_z = None if z is None else grads[-1].data_ptr()
    run("map_ops_scan_backward", call)
    del kept
    return [grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True)]


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@scan_operator.register_fake
def _(
    tensors: Sequence[Tensor],
    z: Tensor | None,
    present: Sequence[bool],
    softplus: Sequence[bool],
    reverse: Sequence[bool],
) -> Tensor:
    return _like(tensors[0])


@backward_operator.register_fake
def _(
    grad_out: Tensor,
    tensors: Sequence[Tensor],
    z: Tensor | None,
    present: Sequence[bool],
    softplus: Sequence[bool],
    reverse: Sequence[bool],
) -> list[Tensor]:
    return [_like(x) for x in tensors] if z is None else [_like(x) for x in (*tensors, z)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, z, ctx.present, ctx.softplus, ctx.reverse = inputs
    ctx.save_for_backward(*tensors, z)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    *tensors, z = ctx.saved_tensors
    grads = backward_operator(grad_out, tensors, z, ctx.present, ctx.softplus, ctx.reverse)
    grad_z = None if z is None else grads[-1]
    return grads[: len(tensors)], grad_z, None, None, None


scan_operator.register_autograd(_backward, setup_context=_keep)


def _apply(directions: Sequence[ScanInputs], z: Tensor | None, reverse: list[bool]) -> Tensor:
    fields = [x for one in directions for x in (one.u, one.delta, one.A, one.B, one.C, one.D, one.delta_bias)]
    present = [x is not None for x in fields]
    softplus = [one.delta_softplus for one in directions]
    return scan_operator([x for x in fields if x is not None], z, present, softplus, reverse)


def native_scan(inputs: ScanInputs, z: Tensor | None, reverse: bool) -> Tensor:
    """Compute what ``reference_scan`` defines with the native kernel."""
    return _apply([inputs], z, [reverse])


def native_bidirectional_scan(forward: ScanInputs, backward: ScanInputs, z: Tensor | None) -> Tensor:
    """Compute the gated average of both directions in one pass, without flips."""
    return _apply([forward, backward], z, [False, True])
