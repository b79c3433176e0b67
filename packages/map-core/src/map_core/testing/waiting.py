"""A check that code does not wait for its device, on a machine without one."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ACCELERATOR = torch.device("meta")
HOST_CONSTRUCTORS = {torch.tensor, torch.as_tensor, Tensor.new_tensor}


class NoWaiting(TorchFunctionMode):
    """Within it, waiting for :data:`ACCELERATOR` raises; put modules and inputs there first.

    The ``meta`` device stands in for an accelerator. Its tensors hold no data, so that reading one raises:
    ``item()``, ``tolist()``, ``bool()``, ``int()``, ``nonzero()``, a boolean index, ``cpu()``. This mode also refuses
    what ``meta`` would allow: copies to the device that the host waits for, of Python numbers or without
    ``non_blocking``.

    Raises:
        AssertionError: such a copy is made.
    """

    def __enter__(self) -> "NoWaiting":
        self._patches = ExitStack()
        for name, on_meta in (("autocast", nullcontext), ("is_autocast_enabled", _never)):
            # autocast does not support the meta device, where it has nothing to do
            self._patches.enter_context(
                patch.object(torch, name, _unless_on_meta(getattr(torch, name), on_meta))
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
            from_python = func in HOST_CONSTRUCTORS and not isinstance(args[-1], Tensor)
            from_host = func is Tensor.to and args[0].device != ACCELERATOR and not kwargs.get("non_blocking")
            if from_python or from_host:
                raise AssertionError(f"{func.__name__} copies to the device and waits for it")
        return result


def _never() -> bool:
    return False


def _unless_on_meta(function: Callable[..., Any], on_meta: Callable[[], Any]) -> Callable[..., Any]:
    """Wrap a function whose first argument is a device type, to call ``on_meta()`` for the meta device instead."""

    def choose(*args: Any, **kwargs: Any) -> Any:
        return on_meta() if args and args[0] == ACCELERATOR.type else function(*args, **kwargs)

    return choose
