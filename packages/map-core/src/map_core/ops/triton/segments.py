# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""The Triton kernel that runs before the others where time is cut into segments: one program summarises one.

This module imports triton: it is loaded by the first call that needs it.
"""

import triton
import triton.language as tl

from map_core.ops.triton.kernels import (
    LOG2_E,
    _load,
    _matrix,
    _place,
    _step_size,
    _vector,
    unspecialized_jit,
)


@triton.jit
def _summarize(
    scan,
    grads,
    z,
    grad_out,
    scale,
    length,
    channels,
    blocks,
    span,
    STATE: tl.constexpr,
    PADDED_STATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program, segment, segments = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    batch = (program // blocks).to(tl.int64)
    columns = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    states = tl.arange(0, PADDED_STATE)
    seen = columns < channels
    held = states < STATE
    tile = held[:, None] & seen[None, :]
    begin = segment * span
    steps = tl.minimum(span, length - begin)

    rate = _matrix(scan.A, columns, states, tile, channels) * LOG2_E
    bias = _vector(scan.bias, columns, seen)
    state = tl.zeros((PADDED_STATE, BLOCK), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for step in range(steps):
        left, right = begin + step, begin + steps - 1 - step
        position = right if scan.reverse == (grads is None) else left  # gradients walk against the scan
        delta = _step_size(_load(scan.delta, batch, position, columns, seen) + bias, scan.softplus)
        decay = tl.exp2(delta[None, :] * rate)
        if grads is None:
            u = _load(scan.u, batch, position, columns, seen)
            B = _load(scan.B, batch, position, states, held)
            state = decay * state + (delta * u)[None, :] * B[:, None]
            total += delta
        else:
            C = _load(scan.C, batch, position, states, held)
            grad_y = _load(grad_out, batch, position, columns, seen) * scale
            if z is not None:
                gate_input = _load(z, batch, position, columns, seen)
                grad_y = grad_y * gate_input * tl.sigmoid(gate_input)
            state = decay * (state + grad_y[None, :] * C[:, None])

    end = _place(batch, segment, segments, states, columns, channels, STATE)
    if grads is None:
        tl.store(scan.ends + end, state, mask=tile)
        tl.store(scan.totals + (batch * segments + segment) * channels + columns, total, mask=seen)
    else:
        tl.store(grads.ends + end, state, mask=tile)


@unspecialized_jit
def summary_kernel(
    first,
    second,
    first_grads,
    second_grads,
    z,
    grad_out,
    length,
    channels,
    blocks,
    span,
    STATE: tl.constexpr,
    PADDED_STATE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Find ends and totals of the scans, or with gradients given their ends: one program a direction and segment."""
    if second is None:
        _summarize(
            first, first_grads, z, grad_out, 1.0, length, channels, blocks, span, STATE, PADDED_STATE, BLOCK
        )
    elif tl.program_id(1) == 0:
        _summarize(
            first, first_grads, z, grad_out, 0.5, length, channels, blocks, span, STATE, PADDED_STATE, BLOCK
        )
    else:
        _summarize(
            second, second_grads, z, grad_out, 0.5, length, channels, blocks, span, STATE, PADDED_STATE, BLOCK
        )
