# mypy: ignore-errors
# Functions below are read by Triton's compiler, whose language is Python in form only.
"""What a program of a Triton kernel owns, how it reads and writes there, and the scan's own formulas.

Triton inlines every function called from a kernel: they structure the text and cost nothing when it runs.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
SOFTPLUS_IS_LINEAR = tl.constexpr(20.0)  # as in PyTorch

# A thread owns whole channels only while Triton does not know that rows of a tile are aligned: it would give each
# thread four neighbouring channels and spread the states over lanes, which turns sums over states into shuffles.
# The other sizes would only cause compilations. Triton cannot be told so of integers inside a tuple: they are arguments
# of their own, which each kernel gathers.
unspecialized_jit = triton.jit(
    do_not_specialize=["batches", "length", "channels", "blocks", "chunks", "span"]
)


class Sizes(NamedTuple):
    """How a scan is cut into programs, in integers that Triton learns at launch."""

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
    seen: Any  # of columns
    held: Any  # of states
    mask: Any  # of (states, columns)


class Place(NamedTuple):
    """A position of the sequence, and the masks of what is read and written there."""

    position: Any
    seen: Any  # of channels
    held: Any  # of states


class Weights(NamedTuple):
    """What one direction has for each channel, or for each state of one."""

    A: Any
    skip: Any  # D, or zero
    bias: Any  # of delta, or zero


@triton.jit
def this_program(sizes, tile):
    """Say what the program that runs this owns; the grid is (batch elements and blocks, directions, segments)."""
    program, segment = tl.program_id(0), tl.program_id(2)
    batch = (program // sizes.blocks).to(tl.int64)
    block = program % sizes.blocks
    begin = segment * sizes.span
    columns = block * tile.BLOCK + tl.arange(0, tile.BLOCK)
    states = tl.arange(0, tile.PADDED_STATE)
    seen = columns < sizes.channels
    held = states < tile.STATE
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
        seen=seen,
        held=held,
        mask=held[:, None] & seen[None, :],
    )


@triton.jit
def walk(own, step, backwards):
    """Return the place after so many steps through the segment, from its left or backwards from its right."""
    position = own.begin + own.steps - 1 - step if backwards else own.begin + step
    return Place(position, own.seen, own.held)


@triton.jit
def _row(rows, own, place):
    # batch is int64, so no product of a position and a stride is formed in 32 bits.
    return rows.data + (own.batch * rows.batch_stride + (own.batch * 0 + place.position) * rows.step_stride)


@triton.jit
def load_channels(rows, own, place):
    return tl.load(_row(rows, own, place) + own.columns, mask=place.seen, other=0.0).to(tl.float32)


@triton.jit
def load_states(rows, own, place):
    return tl.load(_row(rows, own, place) + own.states, mask=place.held, other=0.0).to(tl.float32)


@triton.jit
def store_channels(rows, own, place, value):
    tl.store(_row(rows, own, place) + own.columns, value.to(rows.data.dtype.element_ty), mask=place.seen)


@triton.jit
def tile_offsets(own, tile, part, parts):
    """Offsets of the program's tile in a (b, parts, n, d) buffer, the parts being chunks or segments."""
    row = (own.batch * parts + part) * tile.STATE + own.states[:, None]
    return row * own.sizes.channels + own.columns[None, :]


@triton.jit
def _load_vector(data, own):
    """Load a weight of each channel, zero if there is none."""
    if data is None:
        value = tl.zeros(own.columns.shape, tl.float32)
    else:
        value = tl.load(data + own.columns, mask=own.seen, other=0.0).to(tl.float32)
    return value


@triton.jit
def load_weights(scan, own):
    matrix = scan.A + own.states[:, None] * own.sizes.channels + own.columns[None, :]
    A = tl.load(matrix, mask=own.mask, other=0.0).to(tl.float32)
    return Weights(A=A, skip=_load_vector(scan.D, own), bias=_load_vector(scan.bias, own))


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
def grad_of_y(gate, own, place):
    """The gradient of one direction's y: that of the output through the gate."""
    grad_y = load_channels(gate.grad_out, own, place) * gate.scale
    if gate.z is not None:
        z = load_channels(gate.z, own, place)
        grad_y = grad_y * z * tl.sigmoid(z)
    return grad_y
