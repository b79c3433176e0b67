"""The scan as one operator that PyTorch and ONNX both have: a loop over steps that carries the state."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from map_core.ops.exporting import loop
from map_core.ops.scan.inputs import ScanInputs


def loop_scan(inputs: ScanInputs, z: Float[Tensor, "b l d"] | None, reverse: bool) -> Float[Tensor, "b l d"]:
    """Compute what ``reference_scan`` defines, for programs that run without this package; without gradients."""
    (y,) = _scans((inputs, reverse))
    return _gated(y, z).to(inputs.u.dtype)


def loop_bidirectional_scan(
    forward: ScanInputs, backward: ScanInputs, z: Float[Tensor, "b l d"] | None
) -> Float[Tensor, "b l d"]:
    """The gated average of two scans, in one loop: the cost of a step is mostly that of calling its operators."""
    forward_y, backward_y = _scans((forward, False), (backward, True))
    return _gated(0.5 * (forward_y + backward_y), z).to(forward.u.dtype)


def _gated(y: Tensor, z: Tensor | None) -> Tensor:
    return y if z is None else y * F.silu(z.to(y.dtype))


def _scans(*directions: tuple[ScanInputs, bool]) -> list[Float[Tensor, "b l d"]]:
    """Scan s sequences side by side, each in one direction, in float32.

    States are laid out (s, b, n, d), so that a step multiplies contiguous values; the step takes the exponential,
    so that nothing of the full length has a state axis.
    """
    u = directions[0][0].u
    dtype = torch.promote_types(u.dtype, torch.float32)
    parts = zip(*(_steps(inputs, reverse, dtype) for inputs, reverse in directions), strict=True)
    steps = [torch.stack(part, dim=1) for part in parts]  # s x (l, b, ...) -> (l, s, b, ...)
    A = torch.stack([inputs.A.to(dtype).t() for inputs, _ in directions]).unsqueeze(1)  # (s, 1, n, d)
    start = u.new_zeros(len(directions), u.shape[0], *A.shape[2:], dtype=dtype)
    _, y = loop(_step, [start], steps, [A.contiguous()])
    results = []
    for (inputs, reverse), output in zip(directions, y.unbind(1), strict=True):
        output = (output.flip(0) if reverse else output).transpose(0, 1)  # (l, b, d) -> (b, l, d)
        results.append(output if inputs.D is None else output + inputs.D.to(dtype) * inputs.u.to(dtype))
    return results


def _steps(inputs: ScanInputs, reverse: bool, dtype: torch.dtype) -> list[Tensor]:
    """What the steps of a scan read, in scan order: the step size, the input that drives the state, B and C."""
    u, delta, B, C = (x.to(dtype) for x in (inputs.u, inputs.delta, inputs.B, inputs.C))
    if inputs.delta_bias is not None:
        delta = delta + inputs.delta_bias.to(dtype)
    if inputs.delta_softplus:
        delta = F.softplus(delta)
    steps = [x.transpose(0, 1) for x in (delta, delta * u, B, C)]  # (b, l, ...) -> (l, b, ...)
    return [x.flip(0) for x in steps] if reverse else steps


def _step(
    state: Tensor, delta: Tensor, drive: Tensor, B: Tensor, C: Tensor, A: Tensor
) -> tuple[Tensor, Tensor]:
    """The state after a step, and its output: (s, b, n, d), (s, b, d)."""
    decay = torch.exp(delta.unsqueeze(-2) * A)
    state = decay * state + drive.unsqueeze(-2) * B.unsqueeze(-1)
    return state, torch.matmul(C.unsqueeze(-2), state).squeeze(-2)
