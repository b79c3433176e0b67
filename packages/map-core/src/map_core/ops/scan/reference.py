"""The definition: one time step after the other, in float32, readable by eye. Tests compare with it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from map_core.ops.scan.inputs import ScanInputs


def reference_scan(
    inputs: ScanInputs, z: Float[Tensor, "b l d"] | None, reverse: bool
) -> Float[Tensor, "b l d"]:
    """Run the selective state space model of Gu and Dao 2023, section 3 (algorithm 2).

        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        h (b, d, n)
        y_t = C_t h_t + D u_t, then y_t * silu(z_t)

    ``reverse`` starts at the last step. Float64 inputs are computed in float64, all others in float32.
    """
    dtype = torch.promote_types(inputs.u.dtype, torch.float32)
    with torch.autocast(inputs.u.device.type, enabled=False):
        u, delta, A, B, C = (x.to(dtype) for x in (inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C))
        if inputs.delta_bias is not None:
            delta = delta + inputs.delta_bias.to(dtype)
        if inputs.delta_softplus:
            delta = F.softplus(delta)
        length = u.shape[1]
        state = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
        outputs = [state.sum(-1)] * length
        for t in reversed(range(length)) if reverse else range(length):
            decay = torch.exp(delta[:, t, :, None] * A)
            state = decay * state + (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
            outputs[t] = (state * C[:, t, None, :]).sum(-1)
        # of no steps every gradient is 0
        y = torch.stack(outputs, dim=1) if length else u * delta * A.sum() * B.sum() * C.sum()
        if inputs.D is not None:
            y = y + inputs.D.to(dtype) * u
        if z is not None:
            y = y * F.silu(z.to(dtype))
    return y.to(inputs.u.dtype)
