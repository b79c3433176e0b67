# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""Where time is cut into segments: the kernel that summarises each, and how the other kernels use the summaries.

The state after a segment is linear in the state that enters it, so the state that it would end in from zero and the
sum of its step sizes say all. The same holds for the gradient of the state, which walks against the scan.
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
def entering_state(ends, totals, weights, program, tile, FROM_RIGHT):
    """The state, or gradient of it, that enters a segment from its left or right; zero if time is not cut."""
    state = tl.zeros(weights.A.shape, tl.float32)
    if ends is not None:
        others = program.segments - 1 - program.segment if FROM_RIGHT else program.segment
        for step in range(others):
            other = program.segments - 1 - step if FROM_RIGHT else step
            total = (
                totals + (program.batch * program.segments + other) * program.sizes.channels + program.columns
            )
            total = tl.load(total, mask=program.column_mask, other=0.0)
            end = tl.load(
                ends + tile_offsets(program, tile, other, program.segments), mask=program.mask, other=0.0
            )
            state = decay(total, weights.A) * state + end
    return state


@triton.jit
def _summarize_scan(scan, program, tile):
    weights = load_weights(scan, program)
    state = tl.zeros(weights.A.shape, tl.float32)
    total = tl.zeros(weights.bias.shape, tl.float32)
    for step in range(program.steps):
        here = walk(program, step, scan.reverse)
        delta = step_size(load_channels(scan.delta, program, here) + weights.bias, scan.softplus)
        u, B = load_channels(scan.u, program, here), load_states(scan.B, program, here)
        state = advance(state, delta, u, weights.A, B)
        total += delta
    tl.store(
        scan.ends + tile_offsets(program, tile, program.segment, program.segments), state, mask=program.mask
    )
    totals = (
        scan.totals
        + (program.batch * program.segments + program.segment) * program.sizes.channels
        + program.columns
    )
    tl.store(totals, total, mask=program.column_mask)


@triton.jit
def _summarize_gradient(scan, grads, gate, program, tile):
    weights = load_weights(scan, program)
    carry = tl.zeros(weights.A.shape, tl.float32)
    for step in range(program.steps):
        here = walk(program, step, not scan.reverse)
        delta = step_size(load_channels(scan.delta, program, here) + weights.bias, scan.softplus)
        C = load_states(scan.C, program, here)
        grad_y = grad_of_y(gate, program, here)
        carry = decay(delta, weights.A) * (carry + grad_y[None, :] * C[:, None])
    tl.store(
        grads.ends + tile_offsets(program, tile, program.segment, program.segments), carry, mask=program.mask
    )


@triton.jit
def _summarize(scan, grads, gate, program, tile, GRADIENTS: tl.constexpr):
    if GRADIENTS:
        _summarize_gradient(scan, grads, gate, program, tile)
    else:
        _summarize_scan(scan, program, tile)


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
    """Compute ends and totals of the scans, or the ends of their gradients: one program per direction and segment."""
    program = this_program(Sizes(batches, length, channels, blocks, chunks, span), tile)
    if BOTH and tl.program_id(1) == 1:
        _summarize(second, second_grads, gate, program, tile, GRADIENTS)
    else:
        _summarize(first, first_grads, gate, program, tile, GRADIENTS)
