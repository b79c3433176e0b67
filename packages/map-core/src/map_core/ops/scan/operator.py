"""The scan's operators, for one direction or the average of two."""

from collections.abc import Callable, Sequence

from torch import Tensor

from map_core.ops.operator import Devices, register_operator
from map_core.ops.scan.flops import backward_flops, forward_flops
from map_core.ops.scan.inputs import ScanInputs

Apply = Callable[[Sequence[ScanInputs], Tensor | None, Sequence[int]], Tensor]


def scan_operator(
    name: str, devices: Devices, forward: Callable[..., Tensor], backward: Callable[..., list[Tensor]]
) -> Apply:
    """Register ``map_core::name`` and its backward; return a function that runs it.

    Args:
        name: Name of the operator.
        devices: Device types that the operator serves.
        forward: ``(tensors, z, present, softplus, reverse)`` to the average of the scans whose inputs are listed in
            ``tensors`` as :func:`~map_core.ops.scan.directions.by_direction` reads them, gated by ``z``.
        backward: The cotangent, then the same, to the gradients of ``tensors``, then that of ``z`` if there is one.
    """
    operator = register_operator(
        name, forward, backward, devices=devices, flops=forward_flops, backward_flops=backward_flops
    )

    def apply(directions: Sequence[ScanInputs], z: Tensor | None, reverse: Sequence[int]) -> Tensor:
        fields = [
            x
            for inputs in directions
            for x in (inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C, inputs.D, inputs.delta_bias)
        ]
        present = [int(x is not None) for x in fields]
        softplus = [int(inputs.delta_softplus) for inputs in directions]
        return operator([x for x in fields if x is not None], z, present, softplus, list(reverse))

    return apply
