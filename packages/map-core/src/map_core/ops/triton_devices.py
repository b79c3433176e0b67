"""The devices and dtypes that Triton kernels of any op run on."""

import os

import torch

from map_core.ops.registry import Request

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def interpreting() -> bool:
    """Whether Triton, once imported, runs kernels on the CPU: its own switch, for tests without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def no_device() -> str | None:
    """Why no kernel can run on this machine, or None."""
    return None if interpreting() or torch.cuda.is_available() else "PyTorch sees no CUDA device"


def unfit_tensors(request: Request) -> str | None:
    """Why the kernels cannot read the tensors of this request, or None."""
    if request.device != "cuda" and not (interpreting() and request.named):
        return f"it runs on CUDA tensors only, these are on {request.device}"
    if request.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, not {request.dtype}"
    return None
