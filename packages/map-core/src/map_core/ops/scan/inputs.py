"""The arguments of one scan, and the checks that run before any kernel does."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from map_core.errors import UserError

_AXES = {
    "u": ("batch", "length", "channels"),
    "delta": ("batch", "length", "channels"),
    "A": ("channels", "state"),
    "B": ("batch", "length", "state"),
    "C": ("batch", "length", "state"),
    "D": ("channels",),
    "z": ("batch", "length", "channels"),
    "delta_bias": ("channels",),
}


@dataclass(frozen=True)
class ScanInputs:
    """What one direction of a selective scan reads, under mamba_ssm's names.

    Attributes:
        u: Input (b, l, d).
        delta: Step size before bias and softplus (b, l, d).
        A: Continuous-time decay, negative (d, n).
        B: Input projection of each step (b, l, n).
        C: Output projection of each step (b, l, n).
        D: Skip weight (d,), or None.
        delta_bias: Added to ``delta`` (d,), or None.
        delta_softplus: Whether the step size goes through softplus, by default as in a Mamba layer; the default of
            :func:`~map_core.ops.selective_scan`, as of mamba_ssm's function, is that it does not.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    delta_bias: Tensor | None = None
    delta_softplus: bool = True


def _named_tensors(inputs: ScanInputs, z: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    fields = (
        ("u", inputs.u),
        ("delta", inputs.delta),
        ("A", inputs.A),
        ("B", inputs.B),
        ("C", inputs.C),
        ("D", inputs.D),
        ("z", z),
        ("delta_bias", inputs.delta_bias),
    )
    return ((name, tensor) for name, tensor in fields if tensor is not None)


def check_inputs(op: str, inputs: ScanInputs, z: Tensor | None) -> None:
    """Refuse arguments whose shapes, devices or dtypes do not agree.

    Raises:
        UserError: It names the argument, the axis and both sizes.
    """
    if torch.jit.is_tracing():
        return  # sizes are traced tensors
    expected: dict[str, tuple[str, int]] = {}
    for name, tensor in _named_tensors(inputs, z):
        axes = _AXES[name]
        if not tensor.is_floating_point():
            raise UserError(
                f"{op}: {name} has dtype {tensor.dtype}; it must be real floating point, cast it first"
            )
        if tensor.ndim != len(axes):
            raise UserError(
                f"{op}: {name} has shape {tuple(tensor.shape)}; "
                f"it must have {len(axes)} axes ({', '.join(axes)})"
            )
        if tensor.device != inputs.u.device:
            raise UserError(
                f"{op}: {name} is on {tensor.device} but u is on {inputs.u.device}; move them to one device"
            )
        for axis, (meaning, size) in enumerate(zip(axes, tensor.shape, strict=True)):
            source, expected_size = expected.setdefault(meaning, (f"{name}'s axis {axis}", size))
            if size != expected_size:
                raise UserError(
                    f"{op}: {name}'s axis {axis} ({meaning}) has size {size} but {source} has {expected_size}; "
                    "they must be equal"
                )
