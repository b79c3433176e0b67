"""The arguments of the Triton kernels: named tuples, which Triton unpacks when it compiles."""

from typing import Any, NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """A (batch, length, x) tensor whose last axis is contiguous."""

    data: Tensor
    batch_stride: int
    step_stride: int


class Direction(NamedTuple):
    """What one direction reads, and where its states are stored, if they are."""

    u: Rows
    delta: Rows
    B: Rows
    C: Rows
    A: Tensor  # (n, d), so that a warp reads neighbouring channels
    D: Tensor | None
    bias: Tensor | None
    starts: Tensor | None  # (b, chunks, n, d) float32: the state before every chunk
    # If time is cut: the state at the end of a segment that starts from zero, and the sum of its step sizes.
    ends: Tensor | None  # (b, segments, n, d) float32
    totals: Tensor | None  # (b, segments, d) float32
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
    # If time is cut: the gradient of the state that enters a segment, from the y of that segment alone.
    ends: Tensor | None  # (b, segments, n, d) float32


class Gate(NamedTuple):
    """How y becomes the output: ``scale * y * silu(z)``, or ``scale * y`` without z."""

    z: Rows | None
    grad_out: Rows | None  # the gradient of the output
    scale: Any  # constexpr: 1 over the number of directions


class Tile(NamedTuple):
    """What a program holds at once, known when Triton compiles."""

    STATE: int
    PADDED_STATE: int  # the next power of two
    BLOCK: int  # channels
