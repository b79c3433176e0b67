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
from map_core.ops.scan.triton.segments import entering_state


@triton.jit
def _step(scan, weights, program, here, state):
    """Advance one direction by one step. Returns the new state and y."""
    u = load_channels(scan.u, program, here)
    delta = step_size(load_channels(scan.delta, program, here) + weights.bias, scan.softplus)
    B = load_states(scan.B, program, here)
    C = load_states(scan.C, program, here)
    state = advance(state, delta, u, weights.A, B)
    return state, tl.sum(state * C[:, None], axis=0) + weights.skip * u


@triton.jit
def _finish(y, gate, out, program, here):
    """Write the gated output, or the gradient of the gate if there is a cotangent."""
    y = y * gate.scale
    if gate.grad_out is not None:
        grad = load_channels(gate.grad_out, program, here)
        z = load_channels(gate.z, program, here)
        sigmoid = tl.sigmoid(z)
        y = grad * y * sigmoid * (1.0 + z * (1.0 - sigmoid))
    elif gate.z is not None:
        z = load_channels(gate.z, program, here)
        y = y * z * tl.sigmoid(z)
    store_channels(out, program, here, y)


@triton.jit
def _meet(y, y_2, gate, out, meeting, program, step):
    """Join the outputs after ``step`` steps of the direction from the left and of that from the right (``_2``)."""
    left, right = walk(program, step, False), walk(program, step, True)
    if left.position < right.position:
        store_channels(meeting, program, left, y)
        store_channels(meeting, program, right, y_2)
    elif left.position == right.position:
        _finish(y + y_2, gate, out, program, left)
    else:
        if step == (program.steps + 1) // 2:
            tl.debug_barrier()  # everything read from here on was written before it
        y += load_channels(meeting, program, left)
        y_2 += load_channels(meeting, program, right)
        _finish(y, gate, out, program, left)
        _finish(y_2, gate, out, program, right)


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
    """Write the gated scan, or average of two, to out: one program per batch element, channel block and segment.

    With ``gate.grad_out`` out takes the gradient of z instead; without ``out`` only chunk starts are stored.
    Of two directions ``first`` scans from the left and ``second`` from the right.
    """
    program = this_program(Sizes(batches, length, channels, blocks, chunks, span), tile)
    weights = load_weights(first, program)
    state = entering_state(first.ends, first.totals, weights, program, tile, first.reverse)
    if BOTH:
        weights_2 = load_weights(second, program)
        state_2 = entering_state(second.ends, second.totals, weights_2, program, tile, second.reverse)

    for step in range(program.steps):
        if first.starts is not None:  # noqa: SIM102 (decided at compile time, unlike the next)
            if step % CHUNK == 0:
                chunk = (program.begin + step) // CHUNK
                start = tile_offsets(program, tile, chunk, chunks)
                tl.store(first.starts + start, state, mask=program.mask)
                if BOTH:
                    tl.store(second.starts + start, state_2, mask=program.mask)
        here = walk(program, step, first.reverse)
        state, y = _step(first, weights, program, here, state)
        if BOTH:
            state_2, y_2 = _step(second, weights_2, program, walk(program, step, second.reverse), state_2)
            if out is not None:
                _meet(y, y_2, gate, out, meeting, program, step)
        elif out is not None:
            _finish(y, gate, out, program, here)
