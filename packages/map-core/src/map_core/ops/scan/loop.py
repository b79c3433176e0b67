"""The scan as one operator that PyTorch and ONNX have: a loop over steps that carries the state."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from map_core.ops.exporting import loop
from map_core.ops.scan.inputs import ScanInputs


def loop_scan(inputs: ScanInputs, z: Float[Tensor, "b l d"] | None, reverse: bool) -> Float[Tensor, "b l d"]:
    """Compute what ``reference_scan`` defines, for programs that run without this package; without gradients.

    States are laid out (b, n, d), so that what a step multiplies lies side by side; the step takes the exponential, so
    that nothing of the full length has a state axis.
    """
    dtype = torch.promote_types(inputs.u.dtype, torch.float32)
    u, delta, B, C = (x.to(dtype) for x in (inputs.u, inputs.delta, inputs.B, inputs.C))
    if inputs.delta_bias is not None:
        delta = delta + inputs.delta_bias.to(dtype)
    if inputs.delta_softplus:
        delta = F.softplus(delta)
    steps = [x.transpose(0, 1) for x in (delta, delta * u, B, C)]  # (b, l, ...) -> (l, b, ...)
    if reverse:
        steps = [x.flip(0) for x in steps]
    A = inputs.A.to(dtype).t().contiguous()  # (d, n) -> (n, d)
    start = u.new_zeros(u.shape[0], *A.shape)
    _, y = loop(_step, [start], steps, [A])
    y = (y.flip(0) if reverse else y).transpose(0, 1)
    if inputs.D is not None:
        y = y + inputs.D.to(dtype) * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(inputs.u.dtype)


def _step(
    state: Tensor, delta: Tensor, drive: Tensor, B: Tensor, C: Tensor, A: Tensor
) -> tuple[Tensor, Tensor]:
    """The state after a step, and what it reads out: (b, n, d), (b, d)."""
    decay = torch.exp(delta.unsqueeze(1) * A)
    state = decay * state + drive.unsqueeze(1) * B.unsqueeze(2)
    return state, torch.matmul(C.unsqueeze(1), state).squeeze(1)
