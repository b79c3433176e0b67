# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""The scan's two Triton kernels, for one direction or both at once, in the (b, l, d) layout.

A program owns one batch element and a block of channels; its states are a (state, channel) tile in registers,
and time is a loop. Both directions run in the same loop: after t steps one stands at position t, the other at
length - 1 - t. Until they meet each leaves its y behind; from then on each finds the other's y, adds and gates.

Where there would be too few programs, time is cut into segments of positions, one program each. What a scan makes
of a segment is linear in the state that enters it, so segments.py first finds for each the state that it would end
in from nothing and the sum of its step sizes; from these a program works out what enters its own segment.

Backward runs the same kernel again for the gradient of z and the state before every chunk; then one program for
each direction, batch element and channel block walks the chunks back, rebuilding the states inside one in
registers. Sums over programs go through partial buffers, so gradients are deterministic.

This module imports triton: it is loaded by the first call that needs it.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)
SOFTPLUS_IS_LINEAR = tl.constexpr(20.0)  # as in PyTorch


class Rows(NamedTuple):
    """A (batch, length, x) tensor whose last axis is contiguous."""

    data: Tensor
    batch_stride: int
    step_stride: int


class Direction(NamedTuple):
    """What one direction reads, and where the state before every chunk is kept, if it is."""

    u: Rows
    delta: Rows
    B: Rows
    C: Rows
    A: Tensor  # (n, d), so that a warp reads neighbouring channels
    D: Tensor | None
    bias: Tensor | None
    starts: Tensor | None  # (b, chunks, n, d) float32
    ends: (
        Tensor | None
    )  # (b, segments, n, d) float32: the state a segment leaves when none enters, if time is cut
    totals: Tensor | None  # (b, segments, d) float32: the sum of its step sizes
    softplus: Any  # constexpr
    reverse: Any  # constexpr


class Gradients(NamedTuple):
    """Where one direction writes: gradients of sequences, and partial sums of the rest, all contiguous."""

    u: Rows
    delta: Rows
    B: Tensor  # (blocks, b, l, n) float32, as C
    C: Tensor
    A: Tensor  # (segments, b, n, d) float32
    D: Tensor | None  # (segments, b, d) float32, as bias
    bias: Tensor | None
    ends: (
        Tensor | None
    )  # (b, segments, n, d) float32: the gradient of the state that enters a segment from its own y


@triton.jit
def _address(rows, batch, position, columns):
    # batch is int64, so no product of a position and a stride is formed in 32 bits.
    return rows.data + (batch * rows.batch_stride + (batch * 0 + position) * rows.step_stride) + columns


@triton.jit
def _load(rows, batch, position, columns, mask):
    return tl.load(_address(rows, batch, position, columns), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(rows, batch, position, columns, mask, value):
    tl.store(_address(rows, batch, position, columns), value.to(rows.data.dtype.element_ty), mask=mask)


@triton.jit
def _vector(data, columns, mask):
    """Load a weight of each channel, zero if there is none."""
    if data is None:
        value = tl.zeros(columns.shape, tl.float32)
    else:
        value = tl.load(data + columns, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _matrix(data, columns, states, mask, channels):
    return tl.load(data + states[:, None] * channels + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _place(batch, part, parts, states, columns, channels, STATE: tl.constexpr):
    """Offsets in a (b, parts, n, d) buffer, the parts being chunks or segments."""
    return ((batch * parts + part) * STATE + states[:, None]) * channels + columns[None, :]


@triton.jit
def _entering(
    ends,
    totals,
    rate,
    batch,
    segment,
    segments,
    states,
    columns,
    channels,
    tile,
    seen,
    FROM_RIGHT,
    STATE: tl.constexpr,
):
    """What enters a segment from the others to its left or right; zero if time is not cut."""
    state = tl.zeros(rate.shape, tl.float32)
    if ends is not None:
        others = segments - 1 - segment if FROM_RIGHT else segment
        for step in range(others):
            other = segments - 1 - step if FROM_RIGHT else step
            total = tl.load(totals + (batch * segments + other) * channels + columns, mask=seen, other=0.0)
            own = tl.load(
                ends + _place(batch, other, segments, states, columns, channels, STATE), mask=tile, other=0.0
            )
            state = tl.exp2(total[None, :] * rate) * state + own
    return state


@triton.jit
def _step_size(raw, SOFTPLUS: tl.constexpr):
    if SOFTPLUS:
        power = tl.exp(raw)
        total = 1.0 + power
        # The second term is what rounding took from the sum: log1p without a library call.
        log1p = tl.log(total) - ((total - 1.0) - power) / total
        size = tl.where(raw > SOFTPLUS_IS_LINEAR, raw, log1p)
    else:
        size = raw
    return size


@triton.jit
def _step(scan, batch, position, columns, states, seen, held, rate, skip, bias, state):
    """Advance one direction by one step; rate is A log2(e). Returns the new state and y."""
    u = _load(scan.u, batch, position, columns, seen)
    delta = _step_size(_load(scan.delta, batch, position, columns, seen) + bias, scan.softplus)
    B = _load(scan.B, batch, position, states, held)
    C = _load(scan.C, batch, position, states, held)
    state = tl.exp2(delta[None, :] * rate) * state + (delta * u)[None, :] * B[:, None]
    return state, tl.sum(state * C[:, None], axis=0) + skip * u


@triton.jit
def _finish(y, scale, z, grad_out, out, batch, position, columns, seen):
    """Write the gated output, or the gradient of the gate if there is a cotangent."""
    y = y * scale
    if grad_out is not None:
        grad = _load(grad_out, batch, position, columns, seen)
        gate_input = _load(z, batch, position, columns, seen)
        gate = tl.sigmoid(gate_input)
        y = grad * y * gate * (1.0 + gate_input * (1.0 - gate))
    elif z is not None:
        gate_input = _load(z, batch, position, columns, seen)
        y = y * gate_input * tl.sigmoid(gate_input)
    _store(out, batch, position, columns, seen, y)


# A thread owns whole channels only while Triton does not know that rows of a tile are aligned: it would give each
# thread four neighbouring channels and spread the states over lanes, which turns sums over states into shuffles.
# The other sizes would only cause compilations.
unspecialized_jit = triton.jit(
    do_not_specialize=["length", "channels", "blocks", "chunks", "batches", "span"]
)


@unspecialized_jit
def forward_kernel(
    first,
    second,
    z,
    grad_out,
    out,
    meeting,
    length,
    channels,
    blocks,
    chunks,
    span,
    STATE: tl.constexpr,
    PADDED_STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the (average of the) scans, gated, to out: one program a batch element, channel block and segment.

    With ``grad_out`` out takes the gradient of z instead; without ``out`` only chunk starts are kept.
    """
    program, segment, segments = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    batch = (program // blocks).to(tl.int64)
    columns = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    states = tl.arange(0, PADDED_STATE)
    seen = columns < channels
    held = states < STATE
    tile = held[:, None] & seen[None, :]
    begin = segment * span
    steps = tl.minimum(span, length - begin)

    rate = _matrix(first.A, columns, states, tile, channels) * LOG2_E
    skip = _vector(first.D, columns, seen)
    bias = _vector(first.bias, columns, seen)
    state = _entering(
        first.ends, first.totals, rate, batch, segment, segments, states, columns, channels, tile, seen,
        first.reverse, STATE,
    )  # fmt: skip
    if second is not None:
        rate_2 = _matrix(second.A, columns, states, tile, channels) * LOG2_E
        skip_2 = _vector(second.D, columns, seen)
        bias_2 = _vector(second.bias, columns, seen)
        state_2 = _entering(
            second.ends, second.totals, rate_2, batch, segment, segments, states, columns, channels, tile, seen,
            second.reverse, STATE,
        )  # fmt: skip

    for step in range(steps):
        if first.starts is not None:  # noqa: SIM102 (decided at compile time, unlike the next)
            if step % CHUNK == 0:
                chunk = (begin + step) // CHUNK
                start = _place(batch, chunk, chunks, states, columns, channels, STATE)
                tl.store(first.starts + start, state, mask=tile)
                if second is not None:
                    tl.store(second.starts + start, state_2, mask=tile)
        left, right = begin + step, begin + steps - 1 - step
        if second is None:
            position = right if first.reverse else left
            state, y = _step(first, batch, position, columns, states, seen, held, rate, skip, bias, state)
            if out is not None:
                _finish(y, 1.0, z, grad_out, out, batch, position, columns, seen)
        else:
            state, y = _step(first, batch, left, columns, states, seen, held, rate, skip, bias, state)
            state_2, y_2 = _step(
                second, batch, right, columns, states, seen, held, rate_2, skip_2, bias_2, state_2
            )
            if out is not None:
                if left < right:
                    _store(meeting, batch, left, columns, seen, y)
                    _store(meeting, batch, right, columns, seen, y_2)
                elif left == right:
                    _finish(y + y_2, 0.5, z, grad_out, out, batch, left, columns, seen)
                else:
                    if step == (steps + 1) // 2:
                        tl.debug_barrier()  # what is read from here on was written before it
                    y += _load(meeting, batch, left, columns, seen)
                    y_2 += _load(meeting, batch, right, columns, seen)
                    _finish(y, 0.5, z, grad_out, out, batch, left, columns, seen)
                    _finish(y_2, 0.5, z, grad_out, out, batch, right, columns, seen)


@triton.jit
def _backward(
    scan,
    grads,
    z,
    grad_out,
    scale,
    length,
    channels,
    blocks,
    chunks,
    batches,
    span,
    STATE: tl.constexpr,
    PADDED_STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    program, segment, segments = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
    batch = (program // blocks).to(tl.int64)
    block = program % blocks
    columns = block * BLOCK + tl.arange(0, BLOCK)
    states = tl.arange(0, PADDED_STATE)
    seen = columns < channels
    held = states < STATE
    tile = held[:, None] & seen[None, :]
    begin = segment * span
    steps = tl.minimum(span, length - begin)

    A = _matrix(scan.A, columns, states, tile, channels)
    skip = _vector(scan.D, columns, seen)
    bias = _vector(scan.bias, columns, seen)
    grad_A = tl.zeros((PADDED_STATE, BLOCK), tl.float32)
    grad_skip = tl.zeros((BLOCK,), tl.float32)
    grad_bias = tl.zeros((BLOCK,), tl.float32)
    # The gradient of the state after a step; it walks against the scan.
    carry = _entering(
        grads.ends, scan.totals, A * LOG2_E, batch, segment, segments, states, columns, channels, tile, seen,
        not scan.reverse, STATE,
    )  # fmt: skip

    own_chunks = (steps + CHUNK - 1) // CHUNK
    for back in range(own_chunks):
        chunk = own_chunks - 1 - back
        state = tl.load(
            scan.starts + _place(batch, begin // CHUNK + chunk, chunks, states, columns, channels, STATE),
            mask=tile,
            other=0.0,
        )
        history = (state,)  # before each step of the chunk and after the last; lives in registers
        for k in tl.static_range(CHUNK):
            step = chunk * CHUNK + k
            position = begin + (steps - 1 - step if scan.reverse else step)
            here = seen & (step < steps)
            u = _load(scan.u, batch, position, columns, here)
            delta = _step_size(_load(scan.delta, batch, position, columns, here) + bias, scan.softplus)
            delta = tl.where(here, delta, 0.0)  # a step past the end keeps the state
            B = _load(scan.B, batch, position, states, held & (step < steps))
            state = tl.exp2(delta[None, :] * (A * LOG2_E)) * state + (delta * u)[None, :] * B[:, None]
            history = history + (state,)  # noqa: RUF005 (Triton's tuples know only +)
        for past in tl.static_range(CHUNK):
            step = chunk * CHUNK + (CHUNK - 1 - past)
            before, after = history[CHUNK - 1 - past], history[CHUNK - past]
            position = begin + (steps - 1 - step if scan.reverse else step)
            here = seen & (step < steps)
            there = held & (step < steps)
            u = _load(scan.u, batch, position, columns, here)
            raw = _load(scan.delta, batch, position, columns, here) + bias
            delta = tl.where(here, _step_size(raw, scan.softplus), 0.0)
            B = _load(scan.B, batch, position, states, there)
            C = _load(scan.C, batch, position, states, there)
            grad_y = _load(grad_out, batch, position, columns, here) * scale
            if z is not None:
                gate_input = _load(z, batch, position, columns, here)
                grad_y = grad_y * gate_input * tl.sigmoid(gate_input)

            partial = ((block * batches + batch) * length + position) * STATE + states
            tl.store(grads.C + partial, tl.sum(grad_y[None, :] * after, axis=1), mask=there)
            carry += grad_y[None, :] * C[:, None]
            tl.store(grads.B + partial, tl.sum(carry * (delta * u)[None, :], axis=1), mask=there)
            grad_drive = tl.sum(carry * B[:, None], axis=0)  # of delta u
            carry *= tl.exp2(delta[None, :] * (A * LOG2_E))
            grad_exponent = carry * before  # of delta A
            grad_A += grad_exponent * delta[None, :]
            grad_delta = grad_drive * u + tl.sum(grad_exponent * A, axis=0)
            if scan.softplus:
                grad_delta *= tl.sigmoid(raw)
            grad_delta = tl.where(here, grad_delta, 0.0)
            grad_skip += grad_y * u
            grad_bias += grad_delta
            _store(grads.u, batch, position, columns, here, grad_drive * delta + skip * grad_y)
            _store(grads.delta, batch, position, columns, here, grad_delta)

    row = segment * batches + batch
    tl.store(grads.A + (row * STATE + states[:, None]) * channels + columns[None, :], grad_A, mask=tile)
    if grads.D is not None:
        tl.store(grads.D + row * channels + columns, grad_skip, mask=seen)
    if grads.bias is not None:
        tl.store(grads.bias + row * channels + columns, grad_bias, mask=seen)


@unspecialized_jit
def backward_kernel(
    first,
    second,
    first_grads,
    second_grads,
    z,
    grad_out,
    length,
    channels,
    blocks,
    chunks,
    batches,
    span,
    STATE: tl.constexpr,
    PADDED_STATE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write all gradients but that of z: one program a direction, batch element, channel block and segment."""
    if second is None:
        _backward(
            first, first_grads, z, grad_out, 1.0, length, channels, blocks, chunks, batches, span,
            STATE, PADDED_STATE, BLOCK, CHUNK,
        )  # fmt: skip
    elif tl.program_id(1) == 0:
        _backward(
            first, first_grads, z, grad_out, 0.5, length, channels, blocks, chunks, batches, span,
            STATE, PADDED_STATE, BLOCK, CHUNK,
        )  # fmt: skip
    else:
        _backward(
            second, second_grads, z, grad_out, 0.5, length, channels, blocks, chunks, batches, span,
            STATE, PADDED_STATE, BLOCK, CHUNK,
        )  # fmt: skip
