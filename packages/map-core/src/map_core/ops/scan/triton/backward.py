# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""The Triton kernel of all gradients but that of z.

A step of the scan is ``h <- exp(delta A) h + delta u B``, ``y = sum(C h) + D u``. The kernel walks against it, chunk
by chunk, with the gradient of h (``carry``); the states inside a chunk are rebuilt from the one stored before it.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from map_core.ops.scan.triton.program import (
    MaskedPosition,
    Sizes,
    advance,
    decay,
    grad_of_y,
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


class Shares(NamedTuple):
    """What a program adds to the gradients of weights, summed over its steps."""

    A: Any
    D: Any
    bias: Any


@triton.jit
def _place(scan, program, step):
    """The place of a step of the scan; nothing is read or written past the end, where steps only fill up a chunk."""
    here = walk(program, step, scan.reverse)
    inside = step < program.steps
    return MaskedPosition(here.position, program.column_mask & inside, program.state_mask & inside)


@triton.jit
def _rebuild_states(scan, weights, program, tile, chunk, CHUNK: tl.constexpr):
    """Return the states before each step of a chunk of the segment and after the last; they live in registers."""
    start = tile_offsets(program, tile, program.begin // CHUNK + chunk, program.sizes.chunks)
    state = tl.load(scan.starts + start, mask=program.mask, other=0.0)
    history = (state,)
    for k in tl.static_range(CHUNK):
        here = _place(scan, program, chunk * CHUNK + k)
        u = load_channels(scan.u, program, here)
        delta = step_size(load_channels(scan.delta, program, here) + weights.bias, scan.softplus)
        delta = tl.where(here.column_mask, delta, 0.0)  # a step past the end keeps the state
        B = load_states(scan.B, program, here)
        state = advance(state, delta, u, weights.A, B)
        history = history + (state,)  # noqa: RUF005 (Triton's tuples know only +)
    return history


@triton.jit
def _step_back(scan, grads, gate, weights, program, tile, here, before, after, carry, shares):
    """Go back over the step between two states. Returns the gradient of the earlier one, and the updated shares."""
    u = load_channels(scan.u, program, here)
    raw = load_channels(scan.delta, program, here) + weights.bias
    delta = tl.where(here.column_mask, step_size(raw, scan.softplus), 0.0)
    B = load_states(scan.B, program, here)
    C = load_states(scan.C, program, here)
    grad_y = grad_of_y(gate, program, here)

    by_states = (
        (program.block * program.sizes.batches + program.batch) * program.sizes.length + here.position
    ) * tile.STATE + program.states
    tl.store(grads.C + by_states, tl.sum(grad_y[None, :] * after, axis=1), mask=here.state_mask)
    carry += grad_y[None, :] * C[:, None]
    tl.store(grads.B + by_states, tl.sum(carry * (delta * u)[None, :], axis=1), mask=here.state_mask)
    grad_drive = tl.sum(carry * B[:, None], axis=0)  # of delta u
    carry *= decay(delta, weights.A)
    grad_exponent = carry * before  # of delta A
    grad_A = shares.A + grad_exponent * delta[None, :]
    grad_delta = grad_drive * u + tl.sum(grad_exponent * weights.A, axis=0)
    if scan.softplus:
        grad_delta *= tl.sigmoid(raw)
    grad_delta = tl.where(here.column_mask, grad_delta, 0.0)
    shares = Shares(A=grad_A, D=shares.D + grad_y * u, bias=shares.bias + grad_delta)
    store_channels(grads.u, program, here, grad_drive * delta + weights.skip * grad_y)
    store_channels(grads.delta, program, here, grad_delta)
    return carry, shares


@triton.jit
def _store_shares(grads, program, tile, shares):
    row = program.segment * program.sizes.batches + program.batch
    matrix = (
        grads.A
        + (row * tile.STATE + program.states[:, None]) * program.sizes.channels
        + program.columns[None, :]
    )
    tl.store(matrix, shares.A, mask=program.mask)
    if grads.D is not None:
        tl.store(grads.D + row * program.sizes.channels + program.columns, shares.D, mask=program.column_mask)
    if grads.bias is not None:
        tl.store(
            grads.bias + row * program.sizes.channels + program.columns, shares.bias, mask=program.column_mask
        )


@triton.jit
def _backward(scan, grads, gate, program, tile, CHUNK: tl.constexpr):
    weights = load_weights(scan, program)
    carry = entering_state(grads.ends, scan.totals, weights, program, tile, not scan.reverse)
    nothing = tl.zeros(weights.bias.shape, tl.float32)
    shares = Shares(A=tl.zeros(weights.A.shape, tl.float32), D=nothing, bias=nothing)
    chunks = (program.steps + CHUNK - 1) // CHUNK
    for back in range(chunks):
        chunk = chunks - 1 - back
        states = _rebuild_states(scan, weights, program, tile, chunk, CHUNK)
        for k in tl.static_range(CHUNK - 1, -1, -1):
            here = _place(scan, program, chunk * CHUNK + k)
            carry, shares = _step_back(
                scan, grads, gate, weights, program, tile, here, states[k], states[k + 1], carry, shares
            )
    _store_shares(grads, program, tile, shares)


@unspecialized_jit
def backward_kernel(
    first,
    second,
    first_grads,
    second_grads,
    gate,
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
    """Write all gradients but that of z: one program per direction, batch element, channel block and segment."""
    program = this_program(Sizes(batches, length, channels, blocks, chunks, span), tile)
    if BOTH and tl.program_id(1) == 1:
        _backward(second, second_grads, gate, program, tile, CHUNK)
    else:
        _backward(first, first_grads, gate, program, tile, CHUNK)
