"""What ops do differently in a program that is to run without this package: the switch, and the loop they use."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_exporting: ContextVar[bool] = ContextVar("exporting", default=False)


@contextmanager
def for_export() -> Iterator[None]:
    """Within this context PyTorch's own operators compute every op, for inputs of any size, without gradients."""
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


@torch.compiler.assume_constant_result  # torch.compile cannot read context variables
def exporting() -> bool:
    """Whether the caller runs within :func:`for_export`."""
    return _exporting.get()


def loop(
    step: Callable[..., tuple[Tensor, ...]],
    start: Sequence[Tensor],
    sequences: Sequence[Tensor],
    constants: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Carry tensors through steps as one operator, which ONNX has as Scan.

    Args:
        step: Takes the carried tensors, one slice of each sequence, and the constants; returns the tensors to carry
            on, then the step's results.
        start: The tensors carried into the first step.
        sequences: One slice per step is read, along their first axis.
        constants: Read by every step.

    Returns:
        The tensors carried out of the last step, then the results of all steps, stacked along a first axis.
    """
    # a prototype in PyTorch, and needed for exports only
    from torch._higher_order_ops.scan import scan_op

    return list(scan_op(step, list(start), list(sequences), tuple(constants)))
