"""Layers of published checkpoints, written a second time under their authors' names: plain and slow.

The parity tests of every domain build on them. Each reads a state dict as its authors saved it.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

State = Mapping[str, Tensor]
STATES = 16  # state dimension of a selective scan


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """A linear layer, or a convolution of kernel size 1."""
    weight = state[f"{name}.weight"]
    return F.linear(x, weight.reshape(weight.shape[:2]), state.get(f"{name}.bias"))


def layer_norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer norm over the last axis, with scale and shift."""
    deviation = x - x.mean(-1, keepdim=True)
    normal = deviation / (deviation.square().mean(-1, keepdim=True) + eps).sqrt()
    return normal * state[f"{name}.weight"] + state[f"{name}.bias"]


def scan(state: State, name: str, suffix: str, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
    """One direction of a Mamba mixer: a causal convolution and a selective scan, step by step."""
    taps, length = state[f"{name}.conv1d{suffix}.weight"][:, 0], x.shape[1]
    padded = F.pad(x, (0, 0, taps.shape[1] - 1, 0))
    u = torch.stack([padded[:, i : i + length] * taps[:, i] for i in range(taps.shape[1])]).sum(0)
    u = F.silu(u + state[f"{name}.conv1d{suffix}.bias"])
    projected = u @ state[f"{name}.x_proj{suffix}.weight"].mT
    dt, B, C = projected.split([projected.shape[-1] - 2 * STATES, STATES, STATES], dim=-1)
    step = F.softplus(linear(state, f"{name}.dt_proj{suffix}", dt))
    A, D = -state[f"{name}.A{suffix}_log"].exp(), state[f"{name}.D{suffix}"]
    memory, outputs = torch.zeros(*u.shape[::2], STATES, dtype=u.dtype), []
    for t in range(length):
        now = step[:, t, :, None]
        memory = (now * A).exp() * memory + now * B[:, t, None] * u[:, t, :, None]
        outputs.append((memory * C[:, t, None]).sum(-1) + D * u[:, t])
    return torch.stack(outputs, dim=1)


def count(state: State, prefix: str) -> int:
    """Number of layers whose keys begin with ``prefix`` and a number."""
    return 1 + max(int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix))


def learnable(state: State) -> dict[str, Tensor]:
    """A copy of a state dict in which all tensors but running statistics require gradients."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {
        key: value.clone() if key.endswith(statistics) else value.clone().requires_grad_()
        for key, value in state.items()
    }


def gradients(state: State, loss: Float[Tensor, ""]) -> dict[str, Tensor]:
    """Gradients of the loss with respect to every learnable tensor of a state dict that it depends on."""
    tensors = {key: value for key, value in state.items() if value.requires_grad}
    grads = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return {name: grad for name, grad in zip(tensors, grads, strict=True) if grad is not None}
