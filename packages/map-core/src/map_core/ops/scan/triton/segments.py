# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""Where time is cut into segments: the kernel that summarises each, and what the others make of that.

What a scan makes of a segment is linear in the state that enters it, so the state that it would end in from nothing
and the sum of its step sizes say all. The same holds of the gradient of the state, which walks against the scan.
"""

import triton
import triton.language as tl

from map_core.ops.scan.triton.program import (
    Sizes,
    advance,
    decay,
    grad_of_y,
    load_channels,
    load_states,
    load_weights,
    step_size,
    this_program,
    tile_offsets,
    unspecialized_jit,
    walk,
)


@triton.jit
def entering(ends, totals, weights, own, tile, FROM_RIGHT):
    """What enters a segment from the others to its left or right; zero if time is not cut."""
    state = tl.zeros(weights.A.shape, tl.float32)
    if ends is not None:
        others = own.segments - 1 - own.segment if FROM_RIGHT else own.segment
        for step in range(others):
            other = own.segments - 1 - step if FROM_RIGHT else step
            total = totals + (own.batch * own.segments + other) * own.sizes.channels + own.columns
            total = tl.load(total, mask=own.seen, other=0.0)
            end = tl.load(ends + tile_offsets(own, tile, other, own.segments), mask=own.mask, other=0.0)
            state = decay(total, weights.A) * state + end
    return state


@triton.jit
def _summarize_scan(scan, own, tile):
    weights = load_weights(scan, own)
    state = tl.zeros(weights.A.shape, tl.float32)
    total = tl.zeros(weights.bias.shape, tl.float32)
    for step in range(own.steps):
        here = walk(own, step, scan.reverse)
        delta = step_size(load_channels(scan.delta, own, here) + weights.bias, scan.softplus)
        u, B = load_channels(scan.u, own, here), load_states(scan.B, own, here)
        state = advance(state, delta, u, weights.A, B)
        total += delta
    tl.store(scan.ends + tile_offsets(own, tile, own.segment, own.segments), state, mask=own.mask)
    totals = scan.totals + (own.batch * own.segments + own.segment) * own.sizes.channels + own.columns
    tl.store(totals, total, mask=own.seen)


@triton.jit
def _summarize_gradient(scan, grads, gate, own, tile):
    weights = load_weights(scan, own)
    carry = tl.zeros(weights.A.shape, tl.float32)
    for step in range(own.steps):
        here = walk(own, step, not scan.reverse)
        delta = step_size(load_channels(scan.delta, own, here) + weights.bias, scan.softplus)
        C = load_states(scan.C, own, here)
        grad_y = grad_of_y(gate, own, here)
        carry = decay(delta, weights.A) * (carry + grad_y[None, :] * C[:, None])
    tl.store(grads.ends + tile_offsets(own, tile, own.segment, own.segments), carry, mask=own.mask)


@triton.jit
def _summarize(scan, grads, gate, own, tile, GRADIENTS: tl.constexpr):
    if GRADIENTS:
        _summarize_gradient(scan, grads, gate, own, tile)
    else:
        _summarize_scan(scan, own, tile)


@unspecialized_jit
def summary_kernel(
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
    GRADIENTS: tl.constexpr,
):
    """Find ends and totals of the scans, or with gradients given their ends: one program a direction and segment."""
    own = this_program(Sizes(batches, length, channels, blocks, chunks, span), tile)
    if BOTH and tl.program_id(1) == 1:
        _summarize(second, second_grads, gate, own, tile, GRADIENTS)
    else:
        _summarize(first, first_grads, gate, own, tile, GRADIENTS)
