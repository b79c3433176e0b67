"""The check that every kernel of the convolution makes before it reads memory."""

from torch import Tensor


def check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Refuse weights that do not fit the input: kernels check nothing, and traced models call them directly.

    Raises:
        ValueError: It names the tensor and both shapes.
    """
    channels = x.shape[2]
    if weight.ndim != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise ValueError(f"weight must have shape ({channels}, 1 or more); got {(*weight.shape,)}")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape {(channels,)}; got {(*bias.shape,)}")
