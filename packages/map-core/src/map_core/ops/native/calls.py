"""The arguments of the native kernels: the structures of native/ops.h, and tensors described by them."""

import ctypes

import torch
from torch import Tensor

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
        *((name, _Size) for name in ("batch", "length", "channels", "directions", "half", "threads")),
        *((name, Rows) for name in ("z", "grad_out")),
        *((name, _Pointer) for name in ("out", "grad_z")),
        ("direction", ScanDirection * 2),
    )


class ConvCall(ctypes.Structure):
    """A depthwise causal convolution."""

    _fields_ = (
        *(
            (name, _Size)
            for name in ("batch", "length", "channels", "taps", "silu", "reverse", "half", "threads")
        ),
        *((name, Rows) for name in ("x", "grad_out")),
        *((name, _Pointer) for name in ("weight", "bias", "out", "grad_x", "grad_weight", "grad_bias")),
        *((name, _Pointer) for name in ("part_weight", "part_bias")),
    )


class Heads(ctypes.Structure):
    """A (batch, length, heads, width) array whose last axis is contiguous."""

    _fields_ = (("data", _Pointer), *((f"{name}_stride", _Size) for name in ("batch", "step", "head")))


class AttentionCall(ctypes.Structure):
    """Attention of every head, under a mask or none."""

    _fields_ = (
        *((name, _Size) for name in ("batch", "heads", "queries", "keys", "width", "half", "threads")),
        *((name, Heads) for name in ("q", "k", "v", "grad_out")),
        *((name, _Size) for name in ("mask_batch", "mask_rows")),
        *((name, _Pointer) for name in ("mask", "out", "log_sum", "grad_q", "grad_k", "grad_v")),
        *((name, _Pointer) for name in ("mask_words", "mask_kinds")),
    )


class TransposeCall(ctypes.Structure):
    """A matrix, and where its transpose is written."""

    _fields_ = (
        *((name, _Size) for name in ("rows", "columns", "stride", "threads")),
        *((name, _Pointer) for name in ("from_", "into")),
    )


def common_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return the dtype in which a kernel reads and writes these tensors: bfloat16 if all have it, else float32."""
    all_bfloat16 = all(x is None or x.dtype == torch.bfloat16 for x in tensors)
    return torch.bfloat16 if all_bfloat16 else torch.float32


def readable(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the tensor in that dtype with a contiguous last axis."""
    if x.dtype != dtype:
        x = x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


def rows(x: Tensor | None) -> Rows:
    """Describe a readable (b, l, x) tensor."""
    return Rows(None, 0, 0) if x is None else Rows(x.data_ptr(), x.stride(0), x.stride(1))


def heads(x: Tensor) -> Heads:
    """Describe a readable (b, l, h, d) tensor."""
    return Heads(x.data_ptr(), x.stride(0), x.stride(1), x.stride(2))


def address(x: Tensor | None) -> int | None:
    """Where a contiguous tensor lies in memory."""
    return None if x is None else x.data_ptr()
