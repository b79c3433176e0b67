"""Double precision: on devices that may lack it, and kept where inputs have it."""

import torch
from jaxtyping import Float
from torch import Tensor

WITHOUT_FLOAT64 = "mps"  # the type of device whose tensors cannot be float64: Apple's GPUs


def at_least_float32(values: Tensor) -> Tensor:
    """Values in single precision, or as they are where they have double."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def to_double(values: Tensor) -> Float[Tensor, "..."]:
    """Values in double precision, or in single on a device without it."""
    return values.to(torch.float32 if values.device.type == WITHOUT_FLOAT64 else torch.float64)
