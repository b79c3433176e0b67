# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""The Triton kernel of the forward scan, which backward runs again for the gradient of z and the chunks' states."""

import triton
import triton.language as tl

from map_core.ops.scan.triton.program import (
    Sizes,
    advance,
    load_channels,
    load_states,
    load_weights,
    step_size,
    store_channels,
    this_program,
    tile_offsets,
    unspecialized_jit,
    walk,
)
from map_core.ops.scan.triton.segments import entering


@triton.jit
def _step(scan, weights, own, here, state):
    """Advance one direction by one step. Returns the new state and y."""
    u = load_channels(scan.u, own, here)
    delta = step_size(load_channels(scan.delta, own, here) + weights.bias, scan.softplus)
    B = load_states(scan.B, own, here)
    C = load_states(scan.C, own, here)
    state = advance(state, delta, u, weights.A, B)
    return state, tl.sum(state * C[:, None], axis=0) + weights.skip * u


@triton.jit
def _finish(y, gate, out, own, here):
    """Write the gated output, or the gradient of the gate if there is a cotangent."""
    y = y * gate.scale
    if gate.grad_out is not None:
        grad = load_channels(gate.grad_out, own, here)
        z = load_channels(gate.z, own, here)
        sigmoid = tl.sigmoid(z)
        y = grad * y * sigmoid * (1.0 + z * (1.0 - sigmoid))
    elif gate.z is not None:
        z = load_channels(gate.z, own, here)
        y = y * z * tl.sigmoid(z)
    store_channels(out, own, here, y)


@triton.jit
def _meet(y, y_2, gate, out, meeting, own, step):
    """Join what the direction from the left and that from the right (``_2``) have after so many steps."""
    left, right = walk(own, step, False), walk(own, step, True)
    if left.position < right.position:
        store_channels(meeting, own, left, y)
        store_channels(meeting, own, right, y_2)
    elif left.position == right.position:
        _finish(y + y_2, gate, out, own, left)
    else:
        if step == (own.steps + 1) // 2:
            tl.debug_barrier()  # what is read from here on was written before it
        y += load_channels(meeting, own, left)
        y_2 += load_channels(meeting, own, right)
        _finish(y, gate, out, own, left)
        _finish(y_2, gate, out, own, right)


@unspecialized_jit
def forward_kernel(
    first,
    second,
    gate,
    out,
    meeting,
    batches,
    length,
    channels,
    blocks,
    chunks,
    span,
    tile: tl.constexpr,
    BOTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the (average of the) scans, gated, to out: one program a batch element, channel block and segment.

    With ``gate.grad_out`` out takes the gradient of z instead; without ``out`` only chunk starts are kept.
    Of two directions ``first`` scans from the left and ``second`` from the right.
    """
    own = this_program(Sizes(batches, length, channels, blocks, chunks, span), tile)
    weights = load_weights(first, own)
    state = entering(first.ends, first.totals, weights, own, tile, first.reverse)
    if BOTH:
        weights_2 = load_weights(second, own)
        state_2 = entering(second.ends, second.totals, weights_2, own, tile, second.reverse)

    for step in range(own.steps):
        if first.starts is not None:  # noqa: SIM102 (decided at compile time, unlike the next)
            if step % CHUNK == 0:
                chunk = (own.begin + step) // CHUNK
                start = tile_offsets(own, tile, chunk, chunks)
                tl.store(first.starts + start, state, mask=own.mask)
                if BOTH:
                    tl.store(second.starts + start, state_2, mask=own.mask)
        here = walk(own, step, first.reverse)
        state, y = _step(first, weights, own, here, state)
        if BOTH:
            state_2, y_2 = _step(second, weights_2, own, walk(own, step, second.reverse), state_2)
            if out is not None:
                _meet(y, y_2, gate, out, meeting, own, step)
        elif out is not None:
            _finish(y, gate, out, own, here)
