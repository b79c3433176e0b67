# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""Two Triton kernels of the depthwise causal convolution: a program walks a stretch of time for a block of channels.

A thread keeps to its channels and holds the last values of each in registers, so that everything is read once and sums
over time stay within a thread. Backward is one pass: it recomputes the values before the activation, and the gradient
of x at a step is complete as many steps later as the kernel has taps. Sums over programs go through a buffer, so
gradients are deterministic.

Steps are counted in the direction of the convolution, whose first step is the last position where it looks ahead. This
module imports triton: it is loaded by the first call that needs it.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

__all__ = ["convolve_kernel", "gradient_kernel"]

walking_jit = triton.jit(do_not_specialize=["length", "span"])  # another length is no reason to recompile


class Program(NamedTuple):
    """One batch element, a stretch of time and a block of channels."""

    batch: Any  # int64
    begin: Any  # the first step
    end: Any  # one past the last
    columns: Any  # the block's channels
    mask: Any  # of columns: False in padding
    length: Any
    channels: Any


@triton.jit
def _this_program(length, channels, span, BLOCK: tl.constexpr):
    """Return the part that this program computes; the grid is (batch elements and stretches, blocks)."""
    stretches = tl.cdiv(length, span)
    begin = tl.program_id(0) % stretches * span
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return Program(
        batch=(tl.program_id(0) // stretches).to(tl.int64),
        begin=begin,
        end=tl.minimum(begin + span, length),
        columns=columns,
        mask=columns < channels,
        length=length,
        channels=channels,
    )


@triton.jit
def _position(program, step, REVERSE: tl.constexpr):
    """The position of a step; int64 like the batch, so that no product with a stride is formed in 32 bits."""
    return program.batch * 0 + (program.length - 1 - step if REVERSE else step)


@triton.jit
def _load(data, program, step, batch_stride, step_stride, REVERSE: tl.constexpr):
    """The values at a step, in float32; zero beyond both ends of the sequence."""
    inside = (step >= 0) & (step < program.length)
    row = program.batch * batch_stride + _position(program, step, REVERSE) * step_stride
    return tl.load(data + row + program.columns, mask=program.mask & inside, other=0.0).to(tl.float32)


@triton.jit
def _store(data, program, step, value, mask, REVERSE: tl.constexpr):
    """Write a step of a contiguous (batch, length, channels) tensor."""
    row = (program.batch * program.length + _position(program, step, REVERSE)) * program.channels
    tl.store(data + row + program.columns, value.to(data.dtype.element_ty), mask=program.mask & mask)


@triton.jit
def _weights(weight, program, TAPS: tl.constexpr):
    """The weights of each channel for the values 0, 1, ... steps back."""
    taps = ()
    for back in tl.static_range(TAPS):
        pointers = weight + program.columns * TAPS + (TAPS - 1 - back)
        taps = taps + (tl.load(pointers, mask=program.mask, other=0.0).to(tl.float32),)  # noqa: RUF005 (Triton's tuples know only +)
    return taps


@triton.jit
def _biases(bias, program):
    if bias is None:
        value = tl.zeros(program.columns.shape, tl.float32)
    else:
        value = tl.load(bias + program.columns, mask=program.mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _zeros(program, COUNT: tl.constexpr):
    values = ()
    for _ in tl.static_range(COUNT):
        values = values + (tl.zeros(program.columns.shape, tl.float32),)  # noqa: RUF005
    return values


@triton.jit
def _window_before(data, program, batch_stride, step_stride, TAPS: tl.constexpr, REVERSE: tl.constexpr):
    """The values at the steps before the program's first, the nearest first."""
    values = ()
    for back in tl.static_range(1, TAPS + 1):
        value = _load(data, program, program.begin - back, batch_stride, step_stride, REVERSE)
        values = values + (value,)  # noqa: RUF005
    return values


@triton.jit
def _push(window, value, TAPS: tl.constexpr):
    """The window with another value in front; its last one drops out."""
    values = (value,)
    for back in tl.static_range(TAPS - 1):
        values = values + (window[back],)  # noqa: RUF005
    return values


@triton.jit
def _load_ahead(data, program, step, batch_stride, step_stride, REVERSE: tl.constexpr, AHEAD: tl.constexpr):
    """The values of ``AHEAD`` steps, loaded at once so that the program waits for memory once."""
    values = ()
    for k in tl.static_range(AHEAD):
        value = _load(data, program, step + k, batch_stride, step_stride, REVERSE)
        values = values + (value,)  # noqa: RUF005
    return values


@triton.jit
def _weighted_sum(window, taps, start, TAPS: tl.constexpr):
    for back in tl.static_range(TAPS):
        start += window[back] * taps[back]
    return start


@walking_jit
def convolve_kernel(
    x, weight, bias, out, batch_stride, step_stride, length, channels, span,
    TAPS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the program's stretch of the output."""
    program = _this_program(length, channels, span, BLOCK)
    taps, start = _weights(weight, program, TAPS), _biases(bias, program)
    window = _window_before(x, program, batch_stride, step_stride, TAPS, REVERSE)
    for offset in range(0, span, AHEAD):
        values = _load_ahead(x, program, program.begin + offset, batch_stride, step_stride, REVERSE, AHEAD)
        for k in tl.static_range(AHEAD):
            step = program.begin + offset + k
            window = _push(window, values[k], TAPS)
            y = _weighted_sum(window, taps, start, TAPS)
            if SILU:
                y = y * tl.sigmoid(y)
            _store(out, program, step, y, step < program.end, REVERSE)


@walking_jit
def gradient_kernel(
    grad_out, x, weight, bias, grad_x, sums,
    grad_batch_stride, grad_step_stride, batch_stride, step_stride, length, channels, span,
    TAPS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the program's stretch of ``grad_x``, and its ``sums`` over time: each tap's, then the bias's.

    It walks ``TAPS - 1`` steps further than its stretch, whose inputs those steps still read.
    """
    program = _this_program(length, channels, span, BLOCK)
    taps, start = _weights(weight, program, TAPS), _biases(bias, program)
    window = _window_before(x, program, batch_stride, step_stride, TAPS, REVERSE)
    grad_window = _zeros(program, TAPS)  # gradients of the values before the activation, the latest first
    totals, total = _zeros(program, TAPS), tl.zeros(program.columns.shape, tl.float32)
    for offset in range(0, span + TAPS - 1, AHEAD):
        first = program.begin + offset
        values = _load_ahead(x, program, first, batch_stride, step_stride, REVERSE, AHEAD)
        grads = _load_ahead(grad_out, program, first, grad_batch_stride, grad_step_stride, REVERSE, AHEAD)
        for k in tl.static_range(AHEAD):
            step = first + k
            window = _push(window, values[k], TAPS)
            grad = grads[k]
            if SILU:
                y = _weighted_sum(window, taps, start, TAPS)
                sigmoid = tl.sigmoid(y)
                grad = grad * sigmoid * (1.0 + y * (1.0 - sigmoid))
            grad_window = _push(grad_window, grad, TAPS)

            share = tl.where(step < program.end, grad, 0.0)  # steps past the end belong to another program
            total += share
            new_totals = ()
            for back in tl.static_range(TAPS):
                new_totals = new_totals + (totals[back] + share * window[back],)  # noqa: RUF005
            totals = new_totals

            input_grad = tl.zeros(program.columns.shape, tl.float32)
            for back in tl.static_range(TAPS):
                input_grad += grad_window[TAPS - 1 - back] * taps[back]
            input_step = step - (TAPS - 1)
            _store(
                grad_x,
                program,
                input_step,
                input_grad,
                (input_step >= program.begin) & (input_step < program.end),
                REVERSE,
            )
    row = tl.program_id(0).to(tl.int64) * (TAPS + 1)
    for back in tl.static_range(TAPS):
        pointers = sums + (row + TAPS - 1 - back) * channels + program.columns
        tl.store(pointers, totals[back], mask=program.mask)
    tl.store(sums + (row + TAPS) * channels + program.columns, total, mask=program.mask)
