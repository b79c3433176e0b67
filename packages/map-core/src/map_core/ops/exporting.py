"""What ops do differently in a program that is to run without this package: the switch, and the loop that they use."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_exporting: ContextVar[bool] = ContextVar("exporting", default=False)


@contextmanager
def for_export() -> Iterator[None]:
    """Within it every op is computed by operators of PyTorch's own, of inputs of any size; without gradients."""
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


def exporting() -> bool:
    """Whether this is within :func:`for_export`."""
    return _exporting.get()


def loop(
    step: Callable[..., tuple[Tensor, ...]],
    start: Sequence[Tensor],
    sequences: Sequence[Tensor],
    constants: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Carry tensors through steps as one operator, which ONNX has as Scan.

    Args:
        step: Of what is carried, the slices of a step, and the constants; what is carried on, then the step's results.
        start: What is carried into the first step.
        sequences: What steps read, along their first axis.
        constants: What every step reads.

    Returns:
        What is carried out of the last step, then the results of all steps along a first axis.
    """
    # PyTorch calls it a prototype; nothing but exports needs it
    from torch._higher_order_ops.scan import scan_op

    return list(scan_op(step, list(start), list(sequences), tuple(constants)))
