"""Loads the kernels that pip built, and runs their entry points."""

import ctypes
import functools
from pathlib import Path

import torch

from map_core.ops.registry import Request

PATH = Path(__file__).with_name("_kernels.so")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ABI = 5  # kAbi in native/ops.h


@functools.cache
def kernels() -> ctypes.CDLL:
    """Load the library once and give it PyTorch's thread pool.

    Raises:
        OSError: It was not built, cannot be loaded, or belongs to another version of map-core.
    """
    if not PATH.exists():
        raise OSError(
            "not built: no C++ compiler at install time, or it failed; "
            "install g++ or clang++ and reinstall map-core"
        )
    library = ctypes.CDLL(str(PATH))
    library.map_ops_abi.restype = ctypes.c_int64
    if library.map_ops_abi() != ABI:
        raise OSError(f"{PATH.name} was built by another version of map-core; reinstall map-core")
    library.map_ops_instruction_set.restype = ctypes.c_char_p
    library.map_ops_use_instruction_set.restype = ctypes.c_char_p
    library.map_ops_use_instruction_set.argtypes = (ctypes.c_int64,)
    library.map_ops_use_openmp.argtypes = (ctypes.c_void_p,)
    library.map_ops_use_openmp(_openmp_entry())
    return library


def _openmp_entry() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that PyTorch loaded, or None without one.

    With a second thread pool, PyTorch's idle threads would spin on the cores that the kernels need.
    """
    if "USE_OPENMP=ON" not in torch.__config__.show():
        return None
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None


@functools.cache
def native_missing() -> str | None:
    """Why the native kernels cannot run on this installation, or None; they are loaded once."""
    try:
        kernels()
    except OSError as error:
        return str(error)
    return None


def native_unfit(request: Request) -> str | None:
    """Why the native kernels cannot serve this request, or None."""
    if request.device != "cpu":
        return f"it runs on CPU tensors only, these are on {request.device}"
    if request.dtype not in DTYPES:
        return f"it takes float32, bfloat16 and float16, not {request.dtype}"
    return None


def run(entry: str, call: ctypes.Structure) -> None:
    """Run one entry point.

    Raises:
        MemoryError: The kernel could not allocate its scratch memory.
    """
    if getattr(kernels(), entry)(ctypes.byref(call)):
        raise MemoryError(f"{entry} could not allocate its scratch memory")
