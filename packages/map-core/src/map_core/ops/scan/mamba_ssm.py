"""Adapter to mamba_ssm's CUDA kernel, through its public function only."""

import importlib

import torch
from jaxtyping import Float
from torch import Tensor

from map_core.ops.registry import Request, optional_import
from map_core.ops.scan.chunked.scan import chunked_scan
from map_core.ops.scan.inputs import ScanInputs

MAX_STATE = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTERFACE = "mamba_ssm.ops.selective_scan_interface"


def _load() -> None:
    # mamba_ssm can be imported without its scan kernel, so the extension is what counts.
    importlib.import_module("selective_scan_cuda")
    if not callable(importlib.import_module(INTERFACE).selective_scan_fn):
        raise TypeError(f"{INTERFACE}.selective_scan_fn is not a function")


def mamba_ssm_missing() -> str | None:
    """Why mamba_ssm's scan cannot run on this installation, or None."""
    return optional_import("mamba_ssm", _load)


def mamba_ssm_unfit(request: Request) -> str | None:
    """Why mamba_ssm's scan cannot serve this request, or None."""
    if request.device != "cuda":
        return f"it runs on CUDA tensors only, these are on {request.device}"
    if request.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, not {request.dtype}"
    if request.size > MAX_STATE:
        return f"it holds at most {MAX_STATE} states per channel, A has {request.size}"
    return None


def mamba_ssm_scan(
    inputs: ScanInputs, z: Float[Tensor, "b l d"] | None, reverse: bool
) -> Float[Tensor, "b l d"]:
    """Compute what ``reference_scan`` defines with mamba_ssm's kernel; a reverse scan flips its inputs."""
    if inputs.u.numel() == 0:
        return chunked_scan(inputs, z, reverse)  # the kernel cannot be launched over nothing
    dtype = inputs.u.dtype

    def lay_out(x: Tensor) -> Tensor:
        x = x.flip(1) if reverse else x
        return x.to(dtype).transpose(1, 2).contiguous()  # (b, l, d) -> (b, d, l)

    def weight(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.float().contiguous()

    y = (
        importlib.import_module(INTERFACE)
        .selective_scan_fn(
            lay_out(inputs.u),
            lay_out(inputs.delta),
            weight(inputs.A),
            lay_out(inputs.B),
            lay_out(inputs.C),
            D=weight(inputs.D),
            z=None if z is None else lay_out(z),
            delta_bias=weight(inputs.delta_bias),
            delta_softplus=inputs.delta_softplus,
        )
        .transpose(1, 2)
    )
    return y.flip(1) if reverse else y
