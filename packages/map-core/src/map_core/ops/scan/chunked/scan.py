"""The chunked scan as an operator, so that compilers see one call and not the loop over steps."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from map_core.ops.operator import register_operator
from map_core.ops.scan.chunked.backward import backward
from map_core.ops.scan.chunked.recurrence import CHUNK, Chunks, chunks_per_segment, read_out
from map_core.ops.scan.flops import Shape, one_direction_backward_flops, one_direction_flops
from map_core.ops.scan.inputs import ScanInputs


def forward(
    inputs: ScanInputs, z: Float[Tensor, "b l d"] | None, reverse: bool, keep: bool
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "segments b d n"]]:
    """Return the gated scan, and the state at the start of every segment (of no segments unless ``keep``)."""
    scan = Chunks(inputs, reverse)
    starts = scan.empty_states(len(scan.segments()) if keep else 0)
    out = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=inputs.u.device)
    state = scan.empty_states().zero_()
    for number, segment in enumerate(scan.segments()):
        if keep:
            starts[number] = state
        for chunk in scan.chunks(segment):
            window = scan.run(chunk, state)
            y = read_out(window.states, window.C)
            if inputs.D is not None:
                y.addcmul_(window.u, inputs.D.to(scan.dtype))
            if z is not None:
                y *= F.silu(scan.load(z, chunk))
            scan.store(out, chunk, y)
            state = state.copy_(window.states[-1])
    return out, starts


def _forward_kernel(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    z: Tensor | None,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    with torch.autocast(u.device.type, enabled=False):
        return forward(ScanInputs(u, delta, A, B, C, D, delta_bias, delta_softplus), z, reverse, keep)


def _backward_kernel(
    grad_out: Tensor,
    starts: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    z: Tensor | None,
    reverse: bool,
    keep: bool,
) -> list[Tensor]:
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, delta_softplus)
    with torch.autocast(u.device.type, enabled=False):
        grads = backward(grad_out, starts, inputs, z, reverse)
    return [grads[name] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias", "z") if name in grads]


def _fake(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, length, channels = u.shape
    keep, chunks = others[-1], -(-length // CHUNK)
    segments = -(-chunks // chunks_per_segment(chunks)) if keep else 0
    starts = (segments, batch, channels, A.shape[1])
    dtype = torch.promote_types(u.dtype, torch.float32)
    return torch.empty(u.shape, dtype=u.dtype, device=u.device), u.new_empty(starts, dtype=dtype)


def _flops(u: Shape, delta: Shape, A: Shape, B: Shape, C: Shape, D: Shape | None, *_: Any, **__: Any) -> int:
    return one_direction_flops(u, A[1], D is not None)


def _backward_flops(
    grad_out: Shape, starts: Shape, u: Shape, delta: Shape, A: Shape, *rest: Any, **_: Any
) -> int:
    skip, gate = rest[2], rest[5]
    return one_direction_backward_flops(u, A[1], skip is not None, gate is not None)


_operator = register_operator(
    "chunked_selective_scan",
    _forward_kernel,
    _backward_kernel,
    fake=_fake,
    flops=_flops,
    backward_flops=_backward_flops,
)


def chunked_scan(
    inputs: ScanInputs, z: Float[Tensor, "b l d"] | None, reverse: bool
) -> Float[Tensor, "b l d"]:
    """Compute what ``reference_scan`` defines, differentiably, on any device that PyTorch knows."""
    fields = (inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, inputs.delta_bias)
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*fields, z))
    # a trace or an exported program may be differentiated later
    keep = needs_grad or torch.jit.is_tracing() or torch.compiler.is_exporting()
    return _operator(*fields, inputs.delta_softplus, z, reverse, keep)[0]
