# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""The part of a scan that a program of a Triton kernel computes, its loads and stores, and the scan's formulas.

Triton inlines every function called from a kernel: functions structure the code and cost nothing when it runs.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
SOFTPLUS_IS_LINEAR = tl.constexpr(20.0)  # as in PyTorch

# A thread owns whole channels only while Triton does not know that rows of a tile are aligned: it would give each
# thread four neighbouring channels and spread the states over lanes, which turns sums over states into shuffles.
# Specialising on the other sizes would only cause compilations. This cannot be switched off for integers inside a
# tuple, so they are separate arguments, which each kernel gathers.
unspecialized_jit = triton.jit(
    do_not_specialize=["batches", "length", "channels", "blocks", "chunks", "span"]
)


class Sizes(NamedTuple):
    """How a scan is cut into programs, in integers that are known at launch."""

    batches: Any
    length: Any
    channels: Any
    blocks: Any  # of channels
    chunks: Any  # of time
    span: Any  # steps of a segment


class Program(NamedTuple):
    """One batch element, a block of channels and a segment of time; masks are False in padding."""

    sizes: Sizes
    batch: Any  # int64
    block: Any
    segment: Any
    segments: Any
    begin: Any  # the segment's first position
    steps: Any  # its length
    columns: Any  # the block's channels
    states: Any
    column_mask: Any
    state_mask: Any
    mask: Any  # of (states, columns)


class MaskedPosition(NamedTuple):
    """A position of the sequence, and the masks of loads and stores there."""

    position: Any
    column_mask: Any  # for arrays with an axis of channels
    state_mask: Any  # for arrays with an axis of states


class Weights(NamedTuple):
    """The weights of one direction, for each channel or each state of a channel."""

    A: Any
    skip: Any  # D, or zero
    bias: Any  # of delta, or zero


@triton.jit
def this_program(sizes, tile):
    """Return the part that this program computes; the grid is (batch elements and blocks, directions, segments)."""
    index, segment = tl.program_id(0), tl.program_id(2)
    batch = (index // sizes.blocks).to(tl.int64)
    block = index % sizes.blocks
    begin = segment * sizes.span
    columns = block * tile.BLOCK + tl.arange(0, tile.BLOCK)
    states = tl.arange(0, tile.PADDED_STATE)
    column_mask = columns < sizes.channels
    state_mask = states < tile.STATE
    return Program(
        sizes=sizes,
        batch=batch,
        block=block,
        segment=segment,
        segments=tl.num_programs(2),
        begin=begin,
        steps=tl.minimum(sizes.span, sizes.length - begin),
        columns=columns,
        states=states,
        column_mask=column_mask,
        state_mask=state_mask,
        mask=state_mask[:, None] & column_mask[None, :],
    )


@triton.jit
def walk(program, step, backwards):
    """Return the place after ``step`` steps through the segment, from its left or backwards from its right."""
    position = program.begin + program.steps - 1 - step if backwards else program.begin + step
    return MaskedPosition(position, program.column_mask, program.state_mask)


@triton.jit
def _row(rows, program, place):
    # batch is int64, so no product of a position and a stride is formed in 32 bits.
    return rows.data + (
        program.batch * rows.batch_stride + (program.batch * 0 + place.position) * rows.step_stride
    )


@triton.jit
def load_channels(rows, program, place):
    return tl.load(_row(rows, program, place) + program.columns, mask=place.column_mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def load_states(rows, program, place):
    return tl.load(_row(rows, program, place) + program.states, mask=place.state_mask, other=0.0).to(
        tl.float32
    )


@triton.jit
def store_channels(rows, program, place, value):
    tl.store(
        _row(rows, program, place) + program.columns,
        value.to(rows.data.dtype.element_ty),
        mask=place.column_mask,
    )


@triton.jit
def tile_offsets(program, tile, part, parts):
    """Offsets of the program's tile in a (b, parts, n, d) buffer, the parts being chunks or segments."""
    row = (program.batch * parts + part) * tile.STATE + program.states[:, None]
    return row * program.sizes.channels + program.columns[None, :]


@triton.jit
def _load_vector(data, program):
    """Load a weight for each channel, zero if there is none."""
    if data is None:
        value = tl.zeros(program.columns.shape, tl.float32)
    else:
        value = tl.load(data + program.columns, mask=program.column_mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def load_weights(scan, program):
    matrix = scan.A + program.states[:, None] * program.sizes.channels + program.columns[None, :]
    A = tl.load(matrix, mask=program.mask, other=0.0).to(tl.float32)
    return Weights(A=A, skip=_load_vector(scan.D, program), bias=_load_vector(scan.bias, program))


@triton.jit
def step_size(raw, SOFTPLUS: tl.constexpr):
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
def decay(delta, A):
    """exp(delta A) of every state of a channel."""
    return tl.exp2(delta[None, :] * (A * LOG2_E))


@triton.jit
def advance(state, delta, u, A, B):
    """h <- exp(delta A) h + delta u B."""
    return decay(delta, A) * state + (delta * u)[None, :] * B[:, None]


@triton.jit
def grad_of_y(gate, program, place):
    """The gradient of one direction's y: that of the output through the gate."""
    grad_y = load_channels(gate.grad_out, program, place) * gate.scale
    if gate.z is not None:
        z = load_channels(gate.z, program, place)
        grad_y = grad_y * z * tl.sigmoid(z)
    return grad_y
