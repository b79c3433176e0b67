"""Whether Triton can run here, and the import of what needs it, put off until a scan is asked to run with it."""

import importlib
import os
from types import ModuleType
from typing import Any

import torch

from map_core.ops.registry import Request, optional_import

MAX_STATE = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _interpreting() -> bool:
    """Whether Triton, once imported, runs kernels on the CPU; its own switch for tests without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_missing() -> str | None:
    """Why Triton kernels cannot run on this installation, or None."""
    if not (_interpreting() or torch.cuda.is_available()):
        return "PyTorch sees no CUDA device"
    return optional_import("triton", kernels)


def triton_unfit(request: Request) -> str | None:
    """Why the Triton kernels cannot serve this request, or None."""
    if request.device != "cuda" and not (_interpreting() and request.named):
        return f"it runs on CUDA tensors only, these are on {request.device}"
    if request.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, not {request.dtype}"
    if not 1 <= request.size <= MAX_STATE:
        return f"it holds 1 to {MAX_STATE} states a channel, A has {request.size}"
    return None


def kernels() -> ModuleType:
    """Import the kernels, and Triton with them."""
    return importlib.import_module("map_core.ops.scan.triton.kernels")


def constexpr(value: Any) -> Any:
    """Mark a value that Triton is to know when it compiles."""
    return importlib.import_module("triton.language").constexpr(value)
