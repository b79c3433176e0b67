"""Makes a PyTorch operator, differentiable, compilable and exportable, of a pair of scan kernels.

Operators take lists of tensors, but no lists in which some are missing: ``present`` says for each field of
each direction whether it is there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from map_core.ops.selective_scan.inputs import ScanInputs

FIELDS = ("u", "delta", "A", "B", "C", "D", "bias")
Apply = Callable[[Sequence[ScanInputs], Tensor | None, Sequence[bool]], Tensor]


def by_direction(tensors: Sequence[Tensor], present: Sequence[bool]) -> list[dict[str, Tensor]]:
    """Name the tensors of each direction."""
    remaining = iter(tensors)
    directions: list[dict[str, Tensor]] = []
    for place, there in enumerate(present):
        if place % len(FIELDS) == 0:
            directions.append({})
        if there:
            directions[-1][FIELDS[place % len(FIELDS)]] = next(remaining)
    return directions


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def scan_operator(
    name: str,
    devices: str | Sequence[str],
    forward: Callable[..., Tensor],
    backward: Callable[..., list[Tensor]],
) -> Apply:
    """Register ``map_core::name`` and its backward; return what runs it.

    Args:
        name: Name of the operator.
        devices: Device types that it serves.
        forward: ``(tensors, z, present, softplus, reverse)`` to the average of the scans whose inputs are
            listed in ``tensors``, in the order of ``FIELDS``, gated by ``z``.
        backward: The cotangent and the same to the gradients of ``tensors``, then that of ``z`` if there is one.
    """

    @torch.library.custom_op(f"map_core::{name}", mutates_args=(), device_types=devices)
    def forward_operator(
        tensors: Sequence[Tensor],
        z: Tensor | None,
        present: Sequence[bool],
        softplus: Sequence[bool],
        reverse: Sequence[bool],
    ) -> Tensor:
        return forward(tensors, z, present, softplus, reverse)

    @torch.library.custom_op(f"map_core::{name}_backward", mutates_args=(), device_types=devices)
    def backward_operator(
        grad_out: Tensor,
        tensors: Sequence[Tensor],
        z: Tensor | None,
        present: Sequence[bool],
        softplus: Sequence[bool],
        reverse: Sequence[bool],
    ) -> list[Tensor]:
        return backward(grad_out, tensors, z, present, softplus, reverse)

    @forward_operator.register_fake
    def _(tensors: Sequence[Tensor], z: Tensor | None, *_: Sequence[bool]) -> Tensor:
        return _like(tensors[0])

    @backward_operator.register_fake
    def _(grad_out: Tensor, tensors: Sequence[Tensor], z: Tensor | None, *_: Sequence[bool]) -> list[Tensor]:
        return [_like(x) for x in tensors] if z is None else [_like(x) for x in (*tensors, z)]

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors, z, ctx.present, ctx.softplus, ctx.reverse = inputs
        ctx.save_for_backward(*tensors, z)

    def differentiate(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        *tensors, z = ctx.saved_tensors
        grads = backward_operator(grad_out, tensors, z, ctx.present, ctx.softplus, ctx.reverse)
        grad_z = None if z is None else grads[-1]
        return grads[: len(tensors)], grad_z, None, None, None

    forward_operator.register_autograd(differentiate, setup_context=keep)

    def apply(directions: Sequence[ScanInputs], z: Tensor | None, reverse: Sequence[bool]) -> Tensor:
        fields = [
            x for one in directions for x in (one.u, one.delta, one.A, one.B, one.C, one.D, one.delta_bias)
        ]
        present = [x is not None for x in fields]
        softplus = [one.delta_softplus for one in directions]
        return forward_operator([x for x in fields if x is not None], z, present, softplus, list(reverse))

    return apply
