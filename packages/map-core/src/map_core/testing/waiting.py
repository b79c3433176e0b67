"""The proof that code does not wait for its device, on a machine without one."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ACCELERATOR = torch.device("meta")
FROM_PYTHON = {torch.tensor, torch.as_tensor, Tensor.new_tensor}


class NoWaiting(TorchFunctionMode):
    """Within it, waiting for :data:`ACCELERATOR` raises; put modules and inputs there first.

    The ``meta`` device stands in for an accelerator. Its tensors hold no data, so that whatever reads one
    raises: ``item()``, ``tolist()``, ``bool()``, ``int()``, ``nonzero()``, a boolean index, ``cpu()``. What it
    would let pass is refused here: copies to the device that the host waits for, of Python's numbers or
    without ``non_blocking``.

    Raises:
        AssertionError: at such a copy.
    """

    def __enter__(self) -> "NoWaiting":
        self._patches = ExitStack()
        for name, there in (("autocast", nullcontext), ("is_autocast_enabled", _never)):
            # autocast does not know of the meta device, where there is nothing for it to do
            self._patches.enter_context(
                patch.object(torch, name, _unless_on_meta(getattr(torch, name), there))
            )
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.device == ACCELERATOR:
            from_python = func in FROM_PYTHON and not isinstance(args[-1], Tensor)
            from_host = func is Tensor.to and args[0].device != ACCELERATOR and not kwargs.get("non_blocking")
            if from_python or from_host:
                raise AssertionError(f"{func.__name__} copies to the device and waits for it")
        return result


def _never() -> bool:
    return False


def _unless_on_meta(function: Callable[..., Any], there: Callable[[], Any]) -> Callable[..., Any]:
    """``function`` of a device's type first, but ``there()`` for the meta device."""

    def choose(*args: Any, **kwargs: Any) -> Any:
        return there() if args and args[0] == ACCELERATOR.type else function(*args, **kwargs)

    return choose
