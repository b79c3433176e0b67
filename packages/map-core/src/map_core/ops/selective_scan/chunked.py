"""The scan in plain PyTorch: one fused call per time step, states of a few steps at a time.

Registered as an operator, so that torch.compile and torch.export see one call and not the loop over steps.

Forward keeps the state at the start of every segment; backward rebuilds the states of one segment, then of
one chunk in it. Nothing of the full length has a state axis, so memory beside inputs and gradients grows with
the square root of the length.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from map_core.ops.selective_scan.inputs import ScanInputs

CHUNK = 8  # steps whose states exist at once; small enough that they stay in the processor's cache
FLAT_CHUNKS = 32  # up to so many chunks each one's first state is kept


@dataclass(frozen=True)
class _Window:
    """One chunk, time first and in scan order: what the recurrence made of it."""

    u: Float[Tensor, "k b d"]
    raw_delta: Float[Tensor, "k b d"]
    delta: Float[Tensor, "k b d"]
    B: Float[Tensor, "k b n"]
    C: Float[Tensor, "k b n"]
    decay: Float[Tensor, "k b d n"]
    states: Float[Tensor, "k b d n"]


def _chunks_a_segment(chunks: int | torch.SymInt) -> int:
    return 1 if chunks <= FLAT_CHUNKS else math.ceil(math.sqrt(chunks))


class _Chunks:
    """Cuts the sequence into chunks in scan order and runs the recurrence over one of them."""

    def __init__(self, inputs: ScanInputs, reverse: bool) -> None:
        self.inputs = inputs
        self.reverse = reverse
        self.dtype = torch.promote_types(inputs.u.dtype, torch.float32)
        self.A = inputs.A.to(self.dtype)
        self.batch, self.length, self.channels = inputs.u.shape
        self.count = math.ceil(self.length / CHUNK)
        self.per_segment = _chunks_a_segment(self.count)
        self._decay = self.work(CHUNK)
        self._states = self.work(CHUNK)

    def work(self, *leading: int) -> Tensor:
        """Return uninitialised room for ``leading`` states."""
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

    def run(self, chunk: int, state: Float[Tensor, "b d n"]) -> _Window:
        """Compute the states of a chunk from the one before it; the next call overwrites them."""
        inputs = self.inputs
        u, raw_delta, B, C = (self.load(x, chunk) for x in (inputs.u, inputs.delta, inputs.B, inputs.C))
        if inputs.delta_bias is not None:
            raw_delta = raw_delta + inputs.delta_bias.to(self.dtype)
        delta = F.softplus(raw_delta) if inputs.delta_softplus else raw_delta
        steps = u.shape[0]
        decay = torch.mul(delta.unsqueeze(-1), self.A, out=self._decay[:steps]).exp_()
        states = torch.mul((delta * u).unsqueeze(-1), B.unsqueeze(-2), out=self._states[:steps])
        for drive, kept in zip(states.unbind(0), decay.unbind(0), strict=True):
            state = drive.addcmul_(kept, state)
        return _Window(u, raw_delta, delta, B, C, decay, states)


def _read_out(states: Float[Tensor, "k b d n"], weight: Float[Tensor, "k b n"]) -> Float[Tensor, "k b d"]:
    return torch.matmul(states, weight.unsqueeze(-1)).squeeze(-1)


def _over_channels(x: Float[Tensor, "k b d"], states: Float[Tensor, "k b d n"]) -> Float[Tensor, "k b n"]:
    return torch.matmul(x.unsqueeze(-2), states).squeeze(-2)


def _forward(
    inputs: ScanInputs, z: Float[Tensor, "b l d"] | None, reverse: bool, keep: bool
) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "segments b d n"]]:
    """Return the gated scan, and (no segments unless ``keep``) the state at the start of every segment."""
    scan = _Chunks(inputs, reverse)
    starts = scan.work(len(scan.segments()) if keep else 0)
    out = torch.empty(inputs.u.shape, dtype=inputs.u.dtype, device=inputs.u.device)
    state = scan.work().zero_()
    for number, segment in enumerate(scan.segments()):
        if keep:
            starts[number] = state
        for chunk in scan.chunks(segment):
            window = scan.run(chunk, state)
            y = _read_out(window.states, window.C)
            if inputs.D is not None:
                y.addcmul_(window.u, inputs.D.to(scan.dtype))
            if z is not None:
                y *= F.silu(scan.load(z, chunk))
            scan.store(out, chunk, y)
            state = state.copy_(window.states[-1])
    return out, starts


def _backward(
    grad_out: Float[Tensor, "b l d"],
    starts: Float[Tensor, "segments b d n"],
    inputs: ScanInputs,
    z: Float[Tensor, "b l d"] | None,
    reverse: bool,
) -> dict[str, Tensor]:
    """Return the gradients of z and of every tensor in the inputs, by name."""
    scan = _Chunks(inputs, reverse)
    named = {"u": inputs.u, "delta": inputs.delta, "A": inputs.A, "B": inputs.B, "C": inputs.C}
    optional = {"D": inputs.D, "z": z, "delta_bias": inputs.delta_bias}
    named |= {name: x for name, x in optional.items() if x is not None}
    weights = {
        name: torch.zeros_like(x, dtype=scan.dtype)
        for name, x in named.items()
        if name in ("A", "D", "delta_bias")
    }
    grads = {
        name: torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for name, x in named.items()
        if name not in weights
    }
    carry, adjoint = scan.work().zero_(), scan.work(CHUNK)
    before = scan.work(scan.per_segment)
    for number, segment in reversed(list(enumerate(scan.segments()))):
        chunks = scan.chunks(segment)
        before[0] = starts[number]
        for place, chunk in enumerate(chunks[:-1]):
            before[place + 1] = scan.run(chunk, before[place]).states[-1]
        for place, chunk in reversed(list(enumerate(chunks))):
            window = scan.run(chunk, before[place])
            _backward_chunk(
                scan, chunk, window, before[place], carry, adjoint, grad_out, inputs.D, z, grads, weights
            )
    return grads | {name: grad.to(named[name].dtype) for name, grad in weights.items()}


def _backward_chunk(
    scan: _Chunks,
    chunk: int,
    window: _Window,
    before: Float[Tensor, "b d n"],
    carry: Float[Tensor, "b d n"],
    adjoint: Float[Tensor, "chunk b d n"],
    grad_out: Float[Tensor, "b l d"],
    D: Float[Tensor, " d"] | None,
    z: Float[Tensor, "b l d"] | None,
    grads: dict[str, Tensor],
    weights: dict[str, Tensor],
) -> None:
    """Add one chunk's share to ``grads`` and ``weights``; ``carry`` is the gradient of the state after it.

    Overwrites ``carry`` with the gradient of ``before``, and the window's decay and states.
    """
    decay, states = window.decay, window.states
    grad_y = scan.load(grad_out, chunk)
    if z is not None:
        gate_input = scan.load(z, chunk)
        y = _read_out(states, window.C)
        if D is not None:
            y.addcmul_(window.u, D.to(scan.dtype))
        gate = torch.sigmoid(gate_input)
        slope = gate * (1 + gate_input * (1 - gate))
        scan.store(grads["z"], chunk, grad_y * y * slope)
        grad_y = grad_y * gate_input * gate
    scan.store(grads["C"], chunk, _over_channels(grad_y, states))

    adjoint = torch.mul(grad_y.unsqueeze(-1), window.C.unsqueeze(-2), out=adjoint[: grad_y.shape[0]])
    adjoint[-1] += carry
    for t in reversed(range(adjoint.shape[0] - 1)):
        adjoint[t].addcmul_(decay[t + 1], adjoint[t + 1])
    torch.mul(decay[0], adjoint[0], out=carry)

    scan.store(grads["B"], chunk, _over_channels(window.delta * window.u, adjoint))
    grad_drive = _read_out(adjoint, window.B)
    grad_u = grad_drive * window.delta
    grad_delta = grad_drive.mul_(window.u)
    if D is not None:
        weights["D"] += (grad_y * window.u).sum((0, 1))
        grad_u.addcmul_(grad_y, D.to(scan.dtype))
    scan.store(grads["u"], chunk, grad_u)

    exponent = decay.mul_(adjoint)
    exponent[0] *= before
    exponent[1:] *= states[:-1]
    grad_delta += torch.mul(exponent, scan.A, out=states).sum(-1)
    weights["A"] += exponent.mul_(window.delta.unsqueeze(-1)).sum((0, 1))
    if scan.inputs.delta_softplus:
        grad_delta *= torch.sigmoid(window.raw_delta)
    if "delta_bias" in weights:
        weights["delta_bias"] += grad_delta.sum((0, 1))
    scan.store(grads["delta"], chunk, grad_delta)


@torch.library.custom_op("map_core::chunked_selective_scan", mutates_args=())
def _forward_operator(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    z: Tensor | None,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    with torch.autocast(u.device.type, enabled=False):
        return _forward(ScanInputs(u, delta, A, B, C, D, delta_bias, delta_softplus), z, reverse, keep)


@torch.library.custom_op("map_core::chunked_selective_scan_backward", mutates_args=())
def _backward_operator(
    grad_out: Tensor,
    starts: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    z: Tensor | None,
    reverse: bool,
) -> list[Tensor]:
    """Return the gradients of u, delta, A, B, C, then those of D, delta_bias and z that are there."""
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, delta_softplus)
    with torch.autocast(u.device.type, enabled=False):
        grads = _backward(grad_out, starts, inputs, z, reverse)
    return [grads[name] for name in _DIFFERENTIABLE if name in grads]


_DIFFERENTIABLE = ("u", "delta", "A", "B", "C", "D", "delta_bias", "z")


@_forward_operator.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    batch, length, channels = u.shape
    keep, chunks = others[-1], -(-length // CHUNK)
    segments = -(-chunks // _chunks_a_segment(chunks)) if keep else 0
    starts = (segments, batch, channels, A.shape[1])
    dtype = torch.promote_types(u.dtype, torch.float32)
    return torch.empty(u.shape, dtype=u.dtype, device=u.device), u.new_empty(starts, dtype=dtype)


@_backward_operator.register_fake
def _(grad_out: Tensor, starts: Tensor, *inputs: Any) -> list[Tensor]:
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus, z, ctx.reverse, _ = inputs
    ctx.save_for_backward(output[1], *tensors, z)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_out is None:
        return (None,) * 11
    starts, *tensors, z = ctx.saved_tensors
    found = iter(_backward_operator(grad_out, starts, *tensors, ctx.delta_softplus, z, ctx.reverse))
    grads = [None if x is None else next(found) for x in (*tensors, z)]
    return (*grads[:-1], None, grads[-1], None, None)


_forward_operator.register_autograd(_differentiate, setup_context=_keep)


def chunked_scan(
    inputs: ScanInputs, z: Float[Tensor, "b l d"] | None, reverse: bool
) -> Float[Tensor, "b l d"]:
    """Compute what ``reference_scan`` defines, differentiably, on any device that PyTorch knows."""
    fields = (inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, inputs.delta_bias)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (*fields, z))
    return _forward_operator(*fields, inputs.delta_softplus, z, reverse, keep)[0]
