# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""Two Triton kernels of the depthwise causal convolution, neighbouring threads taking neighbouring channels.

The first convolves. The second, of the way back, finds the gradient before the activation and the sums over time that
the gradients of weight and bias are made of; the gradient of x is the first kernel's convolution of it, looking the
other way. Sums over programs go through a buffer, so gradients are deterministic.

This module imports triton: it is loaded by the first call that needs it.
"""

import triton
import triton.language as tl

__all__ = ["convolve_kernel", "gradient_kernel"]


@triton.jit
def _load(data, batch, steps, columns, batch_stride, step_stride, length, channels):
    """A tile (steps, columns) in float32, zero beyond both ends of the sequence."""
    # batch is int64, so no product of a position and a stride is formed in 32 bits
    offset = batch * batch_stride + (batch * 0 + steps[:, None]) * step_stride + columns[None, :]
    inside = ((steps >= 0) & (steps < length))[:, None] & (columns < channels)[None, :]
    return tl.load(data + offset, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(data, value, batch, steps, columns, length, channels):
    offset = (batch * length + steps[:, None]) * channels + columns[None, :]
    inside = (steps < length)[:, None] & (columns < channels)[None, :]
    tl.store(data + offset, value.to(data.dtype.element_ty), mask=inside)


@triton.jit
def _tap(weight, columns, channels, back, TAPS: tl.constexpr):
    """The weight of what lies so many steps back, for each channel."""
    return tl.load(weight + columns * TAPS + (TAPS - 1 - back), mask=columns < channels, other=0.0).to(
        tl.float32
    )


@triton.jit
def _before_activation(
    x, weight, bias, batch, steps, columns, batch_stride, step_stride, length, channels,
    TAPS: tl.constexpr, REVERSE: tl.constexpr, TIME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    y = tl.zeros((TIME, BLOCK), tl.float32)
    if bias is not None:
        y += tl.load(bias + columns, mask=columns < channels, other=0.0).to(tl.float32)[None, :]
    for back in tl.static_range(TAPS):
        seen = steps + back if REVERSE else steps - back
        values = _load(x, batch, seen, columns, batch_stride, step_stride, length, channels)
        y += values * _tap(weight, columns, channels, back, TAPS)[None, :]
    return y


@triton.jit
def convolve_kernel(
    x, weight, bias, out, batch_stride, step_stride, length, channels,
    TAPS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, TIME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a tile of the output: the grid is (batch elements and stretches of time, blocks of channels)."""
    tiles = tl.cdiv(length, TIME)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    steps = tl.program_id(0) % tiles * TIME + tl.arange(0, TIME)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y = _before_activation(
        x, weight, bias, batch, steps, columns, batch_stride, step_stride, length, channels, TAPS, REVERSE, TIME, BLOCK
    )  # fmt: skip
    if SILU:
        y = y * tl.sigmoid(y)
    _store(out, y, batch, steps, columns, length, channels)


@triton.jit
def gradient_kernel(
    grad_out, x, weight, bias, before, sums,
    grad_batch_stride, grad_step_stride, batch_stride, step_stride, length, channels, span,
    TAPS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, TIME: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Write the gradient ``before`` the activation, if there is one, and this program's ``sums`` over ``span`` steps.

    A program's sums are a row of each tap's gradient, then one of the bias's.
    """
    segments = tl.cdiv(length, span)
    batch = (tl.program_id(0) // segments).to(tl.int64)
    begin = tl.program_id(0) % segments * span
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for offset in range(0, span, TIME):
        steps = begin + offset + tl.arange(0, TIME)
        grad = _load(grad_out, batch, steps, columns, grad_batch_stride, grad_step_stride, length, channels)
        if SILU:
            y = _before_activation(
                x, weight, bias, batch, steps, columns, batch_stride, step_stride, length, channels,
                TAPS, REVERSE, TIME, BLOCK,
            )  # fmt: skip
            sigmoid = tl.sigmoid(y)
            grad = grad * sigmoid * (1.0 + y * (1.0 - sigmoid))
            _store(before, grad, batch, steps, columns, length, channels)
        for back in tl.static_range(TAPS):
            seen = steps + back if REVERSE else steps - back
            values = _load(x, batch, seen, columns, batch_stride, step_stride, length, channels)
            of_tap = tl.sum(grad * values, axis=0)
            total += tl.where((rows == TAPS - 1 - back)[:, None], of_tap[None, :], 0.0)
        total += tl.where((rows == TAPS)[:, None], tl.sum(grad, axis=0)[None, :], 0.0)
    place = (tl.program_id(0).to(tl.int64) * (TAPS + 1) + rows[:, None]) * channels + columns[None, :]
    tl.store(sums + place, total, mask=(rows <= TAPS)[:, None] & (columns < channels)[None, :])
