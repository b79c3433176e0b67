"""Loads the kernels that pip built, and mirrors the structures of native/ops.h."""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from map_core.ops.registry import Request

PATH = Path(__file__).with_name("_kernels.so")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ABI = 3  # kAbi in native/ops.h
INSTRUCTION_SETS = ("avx512", "avx2", "portable")

_Pointer = ctypes.c_void_p
_Size = ctypes.c_int64


class Rows(ctypes.Structure):
    """A (batch, length, x) array whose last axis is contiguous."""

    _fields_ = (("data", _Pointer), ("batch_stride", _Size), ("step_stride", _Size))


class ScanDirection(ctypes.Structure):
    """Inputs, gradients and (filled in by the library) partial sums of one direction of a scan."""

    _fields_ = (
        *((name, Rows) for name in ("u", "delta", "B", "C")),
        *((name, _Pointer) for name in ("A", "D", "bias")),
        *((name, _Size) for name in ("state", "softplus", "reverse")),
        *((f"grad_{name}", _Pointer) for name in ("u", "delta", "B", "C", "A", "D", "bias")),
        *((f"part_{name}", _Pointer) for name in ("B", "C", "A", "D", "bias")),
    )


class ScanCall(ctypes.Structure):
    """A scan over one direction, or the average of two."""

    _fields_ = (
        *((name, _Size) for name in ("batch", "length", "channels", "directions", "threads")),
        *((name, Rows) for name in ("z", "grad_out")),
        *((name, _Pointer) for name in ("out", "grad_z")),
        ("direction", ScanDirection * 2),
    )


class ConvCall(ctypes.Structure):
    """A depthwise causal convolution."""

    _fields_ = (
        *((name, _Size) for name in ("batch", "length", "channels", "taps", "silu", "reverse", "threads")),
        *((name, Rows) for name in ("x", "grad_out")),
        *((name, _Pointer) for name in ("weight", "bias", "out", "grad_x", "grad_weight", "grad_bias")),
        *((name, _Pointer) for name in ("part_weight", "part_bias")),
    )


class TransposeCall(ctypes.Structure):
    """A matrix, and where its columns are to be rows."""

    _fields_ = (
        *((name, _Size) for name in ("rows", "columns", "stride", "threads")),
        *((name, _Pointer) for name in ("from_", "into")),
    )


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
    library.map_ops_abi.restype = _Size
    if library.map_ops_abi() != ABI:
        raise OSError(f"{PATH.name} was built by another version of map-core; reinstall map-core")
    library.map_ops_instruction_set.restype = ctypes.c_char_p
    library.map_ops_use_instruction_set.restype = ctypes.c_char_p
    library.map_ops_use_instruction_set.argtypes = (_Size,)
    library.map_ops_use_openmp.argtypes = (_Pointer,)
    library.map_ops_use_openmp(_openmp_entry())
    return library


def _openmp_entry() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that PyTorch loaded, or None without one.

    With a second thread pool, PyTorch's idle threads would spin on the cores that the kernels need.
    """
    if "USE_OPENMP=ON" not in torch.__config__.show():
        return None
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, _Pointer).value
    except (AttributeError, OSError):
        return None


@functools.cache
def native_missing() -> str | None:
    """Why the native kernels cannot run on this installation, or None; looked for once."""
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


def widen(x: Tensor) -> Tensor:
    """Return the tensor as float32 with a contiguous last axis."""
    if x.dtype != torch.float32:
        x = x.to(torch.float32)
    return x if x.stride(-1) == 1 else x.contiguous()


def rows(x: Tensor | None) -> Rows:
    """Describe a widened (b, l, x) tensor."""
    return Rows(None, 0, 0) if x is None else Rows(x.data_ptr(), x.stride(0), x.stride(1))


def address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
