# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""Two Triton kernels of the depthwise causal convolution: a program walks a stretch of time for a block of channels.

A thread keeps to its channels and holds the last values of each in registers, so that everything is read once and sums
over time cross no thread. The way back does all in one pass: it rebuilds what was before the activation, and the
gradient of x at a step is known as many steps later as the kernel has taps. Sums over programs go through a buffer, so
gradients are deterministic.

Steps are counted in the direction of the convolution, whose first step is the last position where it looks ahead. This
module imports triton: it is loaded by the first call that needs it.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = ["convolve_kernel", "gradient_kernel"]

walking_jit = triton.jit(do_not_specialize=["length", "span"])  # another length is no reason to compile again


class Program(NamedTuple):
    """One batch element, a stretch of time and a block of channels."""

    batch: Any  # int64
    begin: Any  # the first step
    end: Any  # behind the last
    columns: Any  # the block's channels
    seen: Any  # of columns: False in padding
    length: Any
    channels: Any


@triton.jit
def _this_program(length, channels, span, BLOCK: tl.constexpr):
    """Say what the program that runs this owns; the grid is (batch elements and stretches, blocks)."""
    stretches = tl.cdiv(length, span)
    begin = tl.program_id(0) % stretches * span
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return Program(
        batch=(tl.program_id(0) // stretches).to(tl.int64),
        begin=begin,
        end=tl.minimum(begin + span, length),
        columns=columns,
        seen=columns < channels,
        length=length,
        channels=channels,
    )


@triton.jit
def _position(own, step, REVERSE: tl.constexpr):
    """Where a step lies; int64 as the batch, so that no product of it and a stride is formed in 32 bits."""
    return own.batch * 0 + (own.length - 1 - step if REVERSE else step)


@triton.jit
def _load(data, own, step, batch_stride, step_stride, REVERSE: tl.constexpr):
    """What stands at a step, in float32; zero beyond both ends of the sequence."""
    inside = (step >= 0) & (step < own.length)
    row = own.batch * batch_stride + _position(own, step, REVERSE) * step_stride
    return tl.load(data + row + own.columns, mask=own.seen & inside, other=0.0).to(tl.float32)


@triton.jit
def _store(data, own, step, value, mask, REVERSE: tl.constexpr):
    """Write a step of a contiguous (batch, length, channels) tensor."""
    row = (own.batch * own.length + _position(own, step, REVERSE)) * own.channels
    tl.store(data + row + own.columns, value.to(data.dtype.element_ty), mask=own.seen & mask)


@triton.jit
def _weights(weight, own, TAPS: tl.constexpr):
    """The weight of each channel for what lies 0, 1, ... steps back."""
    taps = ()
    for back in tl.static_range(TAPS):
        at = weight + own.columns * TAPS + (TAPS - 1 - back)
        taps = taps + (tl.load(at, mask=own.seen, other=0.0).to(tl.float32),)  # noqa: RUF005 (Triton's tuples know only +)
    return taps


@triton.jit
def _biases(bias, own):
    if bias is None:
        value = tl.zeros(own.columns.shape, tl.float32)
    else:
        value = tl.load(bias + own.columns, mask=own.seen, other=0.0).to(tl.float32)
    return value


@triton.jit
def _zeros(own, COUNT: tl.constexpr):
    values = ()
    for _ in tl.static_range(COUNT):
        values = values + (tl.zeros(own.columns.shape, tl.float32),)  # noqa: RUF005
    return values


@triton.jit
def _last_before(data, own, batch_stride, step_stride, TAPS: tl.constexpr, REVERSE: tl.constexpr):
    """What stands at the steps before the program's first, the nearest first."""
    values = ()
    for back in tl.static_range(1, TAPS + 1):
        value = _load(data, own, own.begin - back, batch_stride, step_stride, REVERSE)
        values = values + (value,)  # noqa: RUF005
    return values


@triton.jit
def _followed_by(last, value, TAPS: tl.constexpr):
    """The last values once another has come."""
    values = (value,)
    for back in tl.static_range(TAPS - 1):
        values = values + (last[back],)  # noqa: RUF005
    return values


@triton.jit
def _load_ahead(data, own, step, batch_stride, step_stride, REVERSE: tl.constexpr, AHEAD: tl.constexpr):
    """So many steps at once, so that memory is waited for once."""
    values = ()
    for k in tl.static_range(AHEAD):
        value = _load(data, own, step + k, batch_stride, step_stride, REVERSE)
        values = values + (value,)  # noqa: RUF005
    return values


@triton.jit
def _weighted(last, taps, start, TAPS: tl.constexpr):
    for back in tl.static_range(TAPS):
        start += last[back] * taps[back]
    return start


@walking_jit
def convolve_kernel(
    x, weight, bias, out, batch_stride, step_stride, length, channels, span,
    TAPS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the program's stretch of the output."""
    own = _this_program(length, channels, span, BLOCK)
    taps, start = _weights(weight, own, TAPS), _biases(bias, own)
    last = _last_before(x, own, batch_stride, step_stride, TAPS, REVERSE)
    for offset in range(0, span, AHEAD):
        values = _load_ahead(x, own, own.begin + offset, batch_stride, step_stride, REVERSE, AHEAD)
        for k in tl.static_range(AHEAD):
            step = own.begin + offset + k
            last = _followed_by(last, values[k], TAPS)
            y = _weighted(last, taps, start, TAPS)
            if SILU:
                y = y * tl.sigmoid(y)
            _store(out, own, step, y, step < own.end, REVERSE)


@walking_jit
def gradient_kernel(
    grad_out, x, weight, bias, grad_x, sums,
    grad_batch_stride, grad_step_stride, batch_stride, step_stride, length, channels, span,
    TAPS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the program's stretch of ``grad_x``, and its ``sums`` over time: each tap's, then the bias's.

    It walks ``TAPS - 1`` steps further than its stretch, whose inputs those steps still read.
    """
    own = _this_program(length, channels, span, BLOCK)
    taps, start = _weights(weight, own, TAPS), _biases(bias, own)
    last = _last_before(x, own, batch_stride, step_stride, TAPS, REVERSE)
    coming = _zeros(own, TAPS)  # gradients of what is before the activation, the last first
    totals, total = _zeros(own, TAPS), tl.zeros(own.columns.shape, tl.float32)
    for offset in range(0, span + TAPS - 1, AHEAD):
        first = own.begin + offset
        values = _load_ahead(x, own, first, batch_stride, step_stride, REVERSE, AHEAD)
        grads = _load_ahead(grad_out, own, first, grad_batch_stride, grad_step_stride, REVERSE, AHEAD)
        for k in tl.static_range(AHEAD):
            step = first + k
            last = _followed_by(last, values[k], TAPS)
            grad = grads[k]
            if SILU:
                y = _weighted(last, taps, start, TAPS)
                sigmoid = tl.sigmoid(y)
                grad = grad * sigmoid * (1.0 + y * (1.0 - sigmoid))
            coming = _followed_by(coming, grad, TAPS)

            share = tl.where(step < own.end, grad, 0.0)  # the steps beyond are another program's
            total += share
            summed = ()
            for back in tl.static_range(TAPS):
                summed = summed + (totals[back] + share * last[back],)  # noqa: RUF005
            totals = summed

            reached = tl.zeros(own.columns.shape, tl.float32)
            for back in tl.static_range(TAPS):
                reached += coming[TAPS - 1 - back] * taps[back]
            read = step - (TAPS - 1)
            _store(grad_x, own, read, reached, (read >= own.begin) & (read < own.end), REVERSE)
    row = tl.program_id(0).to(tl.int64) * (TAPS + 1)
    for back in tl.static_range(TAPS):
        at = sums + (row + TAPS - 1 - back) * channels + own.columns
        tl.store(at, totals[back], mask=own.seen)
    tl.store(sums + (row + TAPS) * channels + own.columns, total, mask=own.seen)
