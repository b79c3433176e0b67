"""Whether Triton can run here, and the import of the kernels, deferred to the first convolution that runs with them."""

import importlib
from types import ModuleType

from map_core.ops.registry import Request, optional_import
from map_core.ops.triton_devices import no_device, unfit_tensors

MAX_TAPS = 16  # a kernel is unrolled over them


def triton_missing() -> str | None:
    """Why Triton kernels cannot run on this installation, or None."""
    return no_device() or optional_import("triton", kernels)


def triton_unfit(request: Request) -> str | None:
    """Why the Triton kernels cannot serve this request, or None."""
    if (reason := unfit_tensors(request)) is not None:
        return reason
    if request.size > MAX_TAPS:
        return f"it takes up to {MAX_TAPS} taps, weight has {request.size}"
    return None


def kernels() -> ModuleType:
    """Import the kernels, and Triton with them."""
    return importlib.import_module("map_core.ops.conv.triton.kernels")
