"""Whether PyTorch's operators run plainly, or under a compiler, a tracer or a transformation."""

import torch
from torch.autograd import forward_ad


def is_autocast_enabled(device: str) -> bool:
    """Whether autocast is on for a type of device; False for those that it does not know, such as ``meta``."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def is_transformed() -> bool:
    """Whether a compiler, a tracer, torch.func or forward-mode differentiation is at work on PyTorch's operators."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_functionally_transformed()


def is_functionally_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: they know PyTorch's own operators only."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )
