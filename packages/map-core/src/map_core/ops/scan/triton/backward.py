# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""The Triton kernel of all gradients but that of z.

A step of the scan is ``h <- exp(delta A) h + delta u B``, ``y = sum(C h) + D u``. The kernel walks against it, chunk
by chunk, with the gradient of h (``carry``); the states inside a chunk are rebuilt from the one kept before it.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from map_core.ops.scan.triton.program import (
    Place,
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
from map_core.ops.scan.triton.segments import entering


class Shares(NamedTuple):
    """What a program adds to the gradients of weights, summed over its steps."""

    A: Any
    D: Any
    bias: Any


@triton.jit
def _place(scan, own, step):
    """Where a step of the scan is; nothing is read or written at one past the end, which fills up a chunk."""
    here = walk(own, step, scan.reverse)
    inside = step < own.steps
    return Place(here.position, own.seen & inside, own.held & inside)


@triton.jit
def _rebuild_states(scan, weights, own, tile, chunk, CHUNK: tl.constexpr):
    """Return the states before each step of a chunk of the segment and after the last; they live in registers."""
    start = tile_offsets(own, tile, own.begin // CHUNK + chunk, own.sizes.chunks)
    state = tl.load(scan.starts + start, mask=own.mask, other=0.0)
    history = (state,)
    for k in tl.static_range(CHUNK):
        here = _place(scan, own, chunk * CHUNK + k)
        u = load_channels(scan.u, own, here)
        delta = step_size(load_channels(scan.delta, own, here) + weights.bias, scan.softplus)
        delta = tl.where(here.seen, delta, 0.0)  # a step past the end keeps the state
        B = load_states(scan.B, own, here)
        state = advance(state, delta, u, weights.A, B)
        history = history + (state,)  # noqa: RUF005 (Triton's tuples know only +)
    return history


@triton.jit
def _step_back(scan, grads, gate, weights, own, tile, here, before, after, carry, shares):
    """Take back the step between two states. Returns the gradient of the one before it, and the shares with its own."""
    u = load_channels(scan.u, own, here)
    raw = load_channels(scan.delta, own, here) + weights.bias
    delta = tl.where(here.seen, step_size(raw, scan.softplus), 0.0)
    B = load_states(scan.B, own, here)
    C = load_states(scan.C, own, here)
    grad_y = grad_of_y(gate, own, here)

    by_states = (
        (own.block * own.sizes.batches + own.batch) * own.sizes.length + here.position
    ) * tile.STATE + own.states
    tl.store(grads.C + by_states, tl.sum(grad_y[None, :] * after, axis=1), mask=here.held)
    carry += grad_y[None, :] * C[:, None]
    tl.store(grads.B + by_states, tl.sum(carry * (delta * u)[None, :], axis=1), mask=here.held)
    grad_drive = tl.sum(carry * B[:, None], axis=0)  # of delta u
    carry *= decay(delta, weights.A)
    grad_exponent = carry * before  # of delta A
    grad_A = shares.A + grad_exponent * delta[None, :]
    grad_delta = grad_drive * u + tl.sum(grad_exponent * weights.A, axis=0)
    if scan.softplus:
        grad_delta *= tl.sigmoid(raw)
    grad_delta = tl.where(here.seen, grad_delta, 0.0)
    shares = Shares(A=grad_A, D=shares.D + grad_y * u, bias=shares.bias + grad_delta)
    store_channels(grads.u, own, here, grad_drive * delta + weights.skip * grad_y)
    store_channels(grads.delta, own, here, grad_delta)
    return carry, shares


@triton.jit
def _store_shares(grads, own, tile, shares):
    row = own.segment * own.sizes.batches + own.batch
    matrix = grads.A + (row * tile.STATE + own.states[:, None]) * own.sizes.channels + own.columns[None, :]
    tl.store(matrix, shares.A, mask=own.mask)
    if grads.D is not None:
        tl.store(grads.D + row * own.sizes.channels + own.columns, shares.D, mask=own.seen)
    if grads.bias is not None:
        tl.store(grads.bias + row * own.sizes.channels + own.columns, shares.bias, mask=own.seen)


@triton.jit
def _backward(scan, grads, gate, own, tile, CHUNK: tl.constexpr):
    weights = load_weights(scan, own)
    carry = entering(grads.ends, scan.totals, weights, own, tile, not scan.reverse)
    nothing = tl.zeros(weights.bias.shape, tl.float32)
    shares = Shares(A=tl.zeros(weights.A.shape, tl.float32), D=nothing, bias=nothing)
    chunks = (own.steps + CHUNK - 1) // CHUNK
    for back in range(chunks):
        chunk = chunks - 1 - back
        states = _rebuild_states(scan, weights, own, tile, chunk, CHUNK)
        for k in tl.static_range(CHUNK - 1, -1, -1):
            here = _place(scan, own, chunk * CHUNK + k)
            carry, shares = _step_back(
                scan, grads, gate, weights, own, tile, here, states[k], states[k + 1], carry, shares
            )
    _store_shares(grads, own, tile, shares)


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
    """Write all gradients but that of z: one program a direction, batch element, channel block and segment."""
    own = this_program(Sizes(batches, length, channels, blocks, chunks, span), tile)
    if BOTH and tl.program_id(1) == 1:
        _backward(second, second_grads, gate, own, tile, CHUNK)
    else:
        _backward(first, first_grads, gate, own, tile, CHUNK)
