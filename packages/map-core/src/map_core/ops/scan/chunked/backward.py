"""The gradients of the scan, computed chunk by chunk from its end."""

import torch
from jaxtyping import Float
from torch import Tensor

from map_core.ops.scan.chunked.recurrence import CHUNK, Chunks, Window, over_channels, read_out
from map_core.ops.scan.inputs import ScanInputs


def backward(
    grad_out: Float[Tensor, "b l d"],
    starts: Float[Tensor, "segments b d n"],
    inputs: ScanInputs,
    z: Float[Tensor, "b l d"] | None,
    reverse: bool,
) -> dict[str, Tensor]:
    """Return the gradients of z and of every tensor in the inputs, by name."""
    scan = Chunks(inputs, reverse)
    tensors = {"u": inputs.u, "delta": inputs.delta, "A": inputs.A, "B": inputs.B, "C": inputs.C}
    optional = {"D": inputs.D, "z": z, "delta_bias": inputs.delta_bias}
    tensors |= {name: x for name, x in optional.items() if x is not None}
    weights = {
        name: torch.zeros_like(x, dtype=scan.dtype)
        for name, x in tensors.items()
        if name in ("A", "D", "delta_bias")
    }
    grads = {
        name: torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for name, x in tensors.items()
        if name not in weights
    }
    carry, adjoint = scan.empty_states().zero_(), scan.empty_states(CHUNK)
    chunk_starts = scan.empty_states(scan.per_segment)
    for number, segment in reversed(list(enumerate(scan.segments()))):
        chunks = scan.chunks(segment)
        chunk_starts[0] = starts[number]
        for i, chunk in enumerate(chunks[:-1]):
            chunk_starts[i + 1] = scan.run(chunk, chunk_starts[i]).states[-1]
        for i, chunk in reversed(list(enumerate(chunks))):
            window = scan.run(chunk, chunk_starts[i])
            _backward_chunk(scan, chunk, window, chunk_starts[i], carry, adjoint, grad_out, z, grads, weights)
    return grads | {name: grad.to(tensors[name].dtype) for name, grad in weights.items()}


def _backward_chunk(
    scan: Chunks,
    chunk: int,
    window: Window,
    before: Float[Tensor, "b d n"],
    carry: Float[Tensor, "b d n"],
    adjoint: Float[Tensor, "chunk b d n"],
    grad_out: Float[Tensor, "b l d"],
    z: Float[Tensor, "b l d"] | None,
    grads: dict[str, Tensor],
    weights: dict[str, Tensor],
) -> None:
    """Add one chunk's share to ``grads`` and ``weights``; ``carry`` is the gradient of the state after it.

    Overwrites ``carry`` with the gradient of ``before``, and the window's decay and states.
    """
    D, decay, states = scan.inputs.D, window.decay, window.states
    grad_y = scan.load(grad_out, chunk)
    if z is not None:
        gate_input = scan.load(z, chunk)
        y = read_out(states, window.C)
        if D is not None:
            y.addcmul_(window.u, D.to(scan.dtype))
        gate = torch.sigmoid(gate_input)
        slope = gate * (1 + gate_input * (1 - gate))
        scan.store(grads["z"], chunk, grad_y * y * slope)
        grad_y = grad_y * gate_input * gate
    scan.store(grads["C"], chunk, over_channels(grad_y, states))

    adjoint = torch.mul(grad_y.unsqueeze(-1), window.C.unsqueeze(-2), out=adjoint[: grad_y.shape[0]])
    adjoint[-1] += carry
    for t in reversed(range(adjoint.shape[0] - 1)):
        adjoint[t].addcmul_(decay[t + 1], adjoint[t + 1])
    torch.mul(decay[0], adjoint[0], out=carry)

    scan.store(grads["B"], chunk, over_channels(window.delta * window.u, adjoint))
    grad_drive = read_out(adjoint, window.B)
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
