"""Whether Triton can run here, and the import of the kernels, deferred to the first scan that runs with them."""

import importlib
from types import ModuleType
from typing import Any

from map_core.ops.registry import Request, optional_import
from map_core.ops.triton_devices import no_device, unfit_tensors

MAX_STATE = 256


def triton_missing() -> str | None:
    """Why Triton kernels cannot run on this installation, or None."""
    return no_device() or optional_import("triton", kernels)


def triton_unfit(request: Request) -> str | None:
    """Why the Triton kernels cannot serve this request, or None."""
    if (reason := unfit_tensors(request)) is not None:
        return reason
    if not 1 <= request.size <= MAX_STATE:
        return f"it holds 1 to {MAX_STATE} states per channel, A has {request.size}"
    return None


def kernels() -> ModuleType:
    """Import the kernels, and Triton with them."""
    return importlib.import_module("map_core.ops.scan.triton.kernels")


def constexpr(value: Any) -> Any:
    """Mark a value that Triton is to know when it compiles."""
    return importlib.import_module("triton.language").constexpr(value)
