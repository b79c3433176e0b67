"""Makes a PyTorch operator of a forward and a backward kernel, which compilers and counters understand.

Every operator of the project is made here. Arguments are tensors, tensors that may be absent, lists of tensors, and
plain values; lists of booleans are written as integers, because JIT tracing refuses them.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

Devices = str | Sequence[str] | None
FLOPS: dict[str, Callable[..., int]] = {}  # of each operator's forward, by name


def _tensors_in(arguments: Sequence[Any]) -> list[Tensor]:
    """List the tensors among the arguments and in their lists, in order."""
    tensors: list[Tensor] = []
    for x in arguments:
        if isinstance(x, Tensor):
            tensors.append(x)
        elif isinstance(x, (list, tuple)):
            tensors += [y for y in x if isinstance(y, Tensor)]
    return tensors


def _slot(x: Any) -> Any:
    """Return the argument with the type Tensor in the place of every tensor."""
    if isinstance(x, Tensor):
        return Tensor
    return [_slot(y) for y in x] if isinstance(x, (list, tuple)) else x


def _fill(slot: Any, tensors: Iterator[Tensor]) -> Any:
    """Put the next tensors back where ``_slot`` took them."""
    if slot is Tensor:
        return next(tensors)
    return [_fill(y, tensors) for y in slot] if isinstance(slot, list) else slot


def _gradient(x: Any, grads: Iterator[Tensor]) -> Any:
    """Return the gradient of an argument; that of a plain value, of a list of them or of a mask is None."""
    if isinstance(x, list) and _tensors_in(x):
        return [_gradient(y, grads) for y in x]
    return next(grads) if isinstance(x, Tensor) and x.is_floating_point() else None


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _like_first(*arguments: Any) -> Tensor:
    return _like(_tensors_in(arguments)[0])


def register_operator(
    name: str,
    forward: Callable[..., Any],
    backward: Callable[..., list[Tensor]],
    *,
    devices: Devices = None,
    fake: Callable[..., Any] = _like_first,
    rereads_output: bool = False,
    flops: Callable[..., int],
    backward_flops: Callable[..., int],
) -> Callable[..., Any]:
    """Register ``map_core::name`` and ``map_core::name_backward``; return a function that runs the former.

    Args:
        name: Name of the operator.
        forward: Kernel; its annotations are the operator's schema. It returns a tensor, or a tuple of it and of
            tensors that backward reads.
        backward: Kernel of the gradients of all floating-point tensors among the arguments, in their order. It takes
            the gradient of the output, then what forward saved, then forward's arguments.
        devices: Device types that the kernels serve; all if None.
        fake: Forward without values, for compilers; the output is like the first tensor unless it says otherwise.
        rereads_output: Backward reads the output too, as the first of what forward saved.
        flops: Operations that FlopCounterMode counts for forward; it is passed shapes where the kernel takes tensors.
        backward_flops: The same for backward.
    """
    run = torch.library.custom_op(f"map_core::{name}", forward, mutates_args=(), device_types=devices)
    run_backward = torch.library.custom_op(
        f"map_core::{name}_backward", backward, mutates_args=(), device_types=devices
    )
    run.register_fake(fake)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = (output,) if isinstance(output, Tensor) else output
        saved_outputs = outputs if rereads_output else outputs[1:]
        ctx.save_for_backward(*saved_outputs, *_tensors_in(inputs))
        ctx.num_saved_outputs = len(saved_outputs)
        ctx.slots = [_slot(x) for x in inputs]
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if grad_out is None:
            return (None,) * len(ctx.slots)
        saved = ctx.saved_tensors
        tensors = iter(saved[ctx.num_saved_outputs :])
        arguments = [_fill(slot, tensors) for slot in ctx.slots]
        grads = iter(run_backward(grad_out, *saved[: ctx.num_saved_outputs], *arguments))
        return tuple(_gradient(x, grads) for x in arguments)

    num_inputs = len(inspect.signature(forward).parameters)

    def fake_backward(grad_out: Tensor, *arguments: Any) -> list[Tensor]:
        return [_like(x) for x in _tensors_in(arguments[-num_inputs:]) if x.is_floating_point()]

    run_backward.register_fake(fake_backward)
    run.register_autograd(differentiate, setup_context=setup_context)
    FLOPS[name] = flops
    register_flop_formula(getattr(torch.ops.map_core, name))(flops)
    register_flop_formula(getattr(torch.ops.map_core, f"{name}_backward"))(backward_flops)
    return run
