"""The native scan as an operator, for one direction or the average of two."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from map_core.ops.native.library import ScanCall, ScanDirection, address, rows, run, widen
from map_core.ops.selective_scan.inputs import ScanInputs

_FIELDS = ("u", "delta", "A", "B", "C", "D", "bias")  # of one direction, in the order of the operators' lists


def _call(
    tensors: Sequence[Tensor | None], z: Tensor | None, softplus: Sequence[bool], reverse: Sequence[bool]
) -> tuple[ScanCall, list[object]]:
    """Describe a scan of widened inputs, and return what must live until it has run."""
    kept: list[object] = [z]
    call = ScanCall(threads=torch.get_num_threads(), directions=len(softplus), z=rows(z))
    for number in range(len(softplus)):
        start = number * len(_FIELDS)
        u, delta, A, B, C, D, bias = tensors[start : start + len(_FIELDS)]
        assert u is not None
        assert A is not None
        weights = [None if x is None else x.contiguous() for x in (A, D, bias)]
        kept += [u, delta, B, C, *weights]
        call.batch, call.length, call.channels = u.shape
        call.direction[number] = ScanDirection(
            u=rows(u),
            delta=rows(delta),
            B=rows(B),
            C=rows(C),
            A=address(weights[0]),
            D=address(weights[1]),
            bias=address(weights[2]),
            state=A.shape[1],
            softplus=softplus[number],
            reverse=reverse[number],
        )
    return call, kept


@torch.library.custom_op("map_core::selective_scan", mutates_args=(), device_types="cpu")
def scan_operator(
    tensors: Sequence[Tensor | None], z: Tensor | None, softplus: Sequence[bool], reverse: Sequence[bool]
) -> Tensor:
    """Average the scans whose inputs (``_FIELDS`` of each direction) are listed in ``tensors``."""
    call, kept = _call([widen(x) for x in tensors], widen(z), softplus, reverse)
    u = tensors[0]
    assert u is not None
    out = torch.empty(u.shape, dtype=torch.float32)
    call.out = out.data_ptr()
    run("map_ops_scan_forward", call)
    del kept
    return out.to(u.dtype)


@torch.library.custom_op("map_core::selective_scan_backward", mutates_args=(), device_types="cpu")
def backward_operator(
    grad_out: Tensor,
    tensors: Sequence[Tensor | None],
    z: Tensor | None,
    softplus: Sequence[bool],
    reverse: Sequence[bool],
) -> list[Tensor]:
    """Return the gradients of ``tensors`` and of ``z``; those of absent ones are empty."""
    call, kept = _call([widen(x) for x in tensors], widen(z), softplus, reverse)
    grad = widen(grad_out)
    call.grad_out = rows(grad)
    inputs = [*tensors, z]
    grads = [torch.empty(() if x is None else x.shape, dtype=torch.float32) for x in inputs]
    for number in range(len(softplus)):
        for place, field in enumerate(_FIELDS):
            setattr(call.direction[number], f"grad_{field}", grads[number * len(_FIELDS) + place].data_ptr())
    call.grad_z = grads[-1].data_ptr()
    run("map_ops_scan_backward", call)
    del kept
    return [
        grad.new_zeros(0) if x is None else grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True)
    ]


@scan_operator.register_fake
def _(
    tensors: Sequence[Tensor | None], z: Tensor | None, softplus: Sequence[bool], reverse: Sequence[bool]
) -> Tensor:
    u = tensors[0]
    assert u is not None
    return torch.empty(u.shape, dtype=u.dtype, device=u.device)


@backward_operator.register_fake
def _(
    grad_out: Tensor,
    tensors: Sequence[Tensor | None],
    z: Tensor | None,
    softplus: Sequence[bool],
    reverse: Sequence[bool],
) -> list[Tensor]:
    return [
        grad_out.new_empty(0, dtype=torch.float32)
        if x is None
        else torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for x in (*tensors, z)
    ]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, z, ctx.softplus, ctx.reverse = inputs
    ctx.save_for_backward(*tensors, z)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    *tensors, z = ctx.saved_tensors
    *grads, grad_z = backward_operator(grad_out, tensors, z, ctx.softplus, ctx.reverse)
    listed = [None if x is None else grad for x, grad in zip(tensors, grads, strict=True)]
    return listed, None if z is None else grad_z, None, None


scan_operator.register_autograd(_backward, setup_context=_keep)


def _tensors(inputs: ScanInputs) -> list[Tensor | None]:
    return [inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, inputs.delta_bias]


def native_scan(inputs: ScanInputs, z: Tensor | None, reverse: bool) -> Tensor:
    """Compute what ``reference_scan`` defines with the native kernel."""
    return scan_operator(_tensors(inputs), z, [inputs.delta_softplus], [reverse])


def native_bidirectional_scan(forward: ScanInputs, backward: ScanInputs, z: Tensor | None) -> Tensor:
    """Compute the gated average of both directions in one pass, without flips."""
    softplus = [forward.delta_softplus, backward.delta_softplus]
    return scan_operator([*_tensors(forward), *_tensors(backward)], z, softplus, [False, True])
