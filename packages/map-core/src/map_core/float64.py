"""Exact arithmetic on devices that may lack float64."""

import torch
from jaxtyping import Float
from torch import Tensor

WITHOUT_FLOAT64 = "mps"  # the type of device whose tensors cannot be float64: Apple's GPUs


def exact(values: Tensor) -> Float[Tensor, "..."]:
    """Values as float64, or as float32 on a device without float64."""
    return values.to(torch.float32 if values.device.type == WITHOUT_FLOAT64 else torch.float64)
