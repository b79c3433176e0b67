"""Cuts a sequence into chunks in scan order, and runs the recurrence over one of them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from map_core.ops.scan.inputs import ScanInputs

CHUNK = 8  # steps whose states exist at once; small enough that they stay in the processor's cache
FLAT_CHUNKS = 32  # up to this number of chunks, each is its own segment


@dataclass(frozen=True)
class Window:
    """One chunk after the recurrence, time first and in scan order."""

    u: Float[Tensor, "k b d"]
    raw_delta: Float[Tensor, "k b d"]
    delta: Float[Tensor, "k b d"]
    B: Float[Tensor, "k b n"]
    C: Float[Tensor, "k b n"]
    decay: Float[Tensor, "k b d n"]
    states: Float[Tensor, "k b d n"]


def chunks_per_segment(chunks: int | torch.SymInt) -> int:
    return 1 if chunks <= FLAT_CHUNKS else math.ceil(math.sqrt(chunks))


class Chunks:
    """Cuts the sequence into chunks in scan order and runs the recurrence over one of them."""

    def __init__(self, inputs: ScanInputs, reverse: bool) -> None:
        self.inputs = inputs
        self.reverse = reverse
        self.dtype = torch.promote_types(inputs.u.dtype, torch.float32)
        self.A = inputs.A.to(self.dtype)
        self.batch, self.length, self.channels = inputs.u.shape
        self.count = math.ceil(self.length / CHUNK)
        self.per_segment = chunks_per_segment(self.count)
        self._decay = self.empty_states(CHUNK)
        self._states = self.empty_states(CHUNK)

    def empty_states(self, *leading: int) -> Tensor:
        """Return uninitialised memory for states, (*leading, b, d, n)."""
        shape = (*leading, self.batch, self.channels, self.A.shape[1])
        return torch.empty(shape, dtype=self.dtype, device=self.A.device)

    def segments(self) -> range:
        """First chunk of every segment."""
        return range(0, self.count, self.per_segment)

    def chunks(self, segment: int) -> range:
        return range(segment, min(segment + self.per_segment, self.count))

    def _span(self, chunk: int) -> slice:
        start, stop = chunk * CHUNK, min((chunk + 1) * CHUNK, self.length)
        return slice(self.length - stop, self.length - start) if self.reverse else slice(start, stop)

    def load(self, x: Float[Tensor, "b l c"], chunk: int) -> Float[Tensor, "k b c"]:
        piece = x[:, self._span(chunk)].transpose(0, 1)
        return (piece.flip(0) if self.reverse else piece).to(self.dtype).contiguous()

    def store(self, x: Float[Tensor, "b l c"], chunk: int, piece: Float[Tensor, "k b c"]) -> None:
        x[:, self._span(chunk)] = (piece.flip(0) if self.reverse else piece).transpose(0, 1)

    def run(self, chunk: int, state: Float[Tensor, "b d n"]) -> Window:
        """Compute the states of a chunk from the one before it; the next call overwrites them."""
        inputs = self.inputs
        u, raw_delta, B, C = (self.load(x, chunk) for x in (inputs.u, inputs.delta, inputs.B, inputs.C))
        if inputs.delta_bias is not None:
            raw_delta = raw_delta + inputs.delta_bias.to(self.dtype)
        delta = F.softplus(raw_delta) if inputs.delta_softplus else raw_delta
        steps = u.shape[0]
        decay = torch.mul(delta.unsqueeze(-1), self.A, out=self._decay[:steps]).exp_()
        states = torch.mul((delta * u).unsqueeze(-1), B.unsqueeze(-2), out=self._states[:steps])
        for drive, factor in zip(states.unbind(0), decay.unbind(0), strict=True):
            state = drive.addcmul_(factor, state)
        return Window(u, raw_delta, delta, B, C, decay, states)


def read_out(states: Float[Tensor, "k b d n"], weight: Float[Tensor, "k b n"]) -> Float[Tensor, "k b d"]:
    return torch.matmul(states, weight.unsqueeze(-1)).squeeze(-1)


def over_channels(x: Float[Tensor, "k b d"], states: Float[Tensor, "k b d n"]) -> Float[Tensor, "k b n"]:
    return torch.matmul(x.unsqueeze(-2), states).squeeze(-2)
