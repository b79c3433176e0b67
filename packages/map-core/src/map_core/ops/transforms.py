"""Whether something else than plain execution is at work on PyTorch's operators."""

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether a compiler, a tracer, torch.func or forward-mode differentiation is at work on PyTorch's operators."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or differentiated_anew()


def differentiated_anew() -> bool:
    """Whether torch.func or forward-mode differentiation is: they know PyTorch's own operators alone."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )
