"""The public scans: checks, choice of the implementation, and nothing else."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from map_core.errors import UserError
from map_core.ops.native.library import native_missing, native_unfit
from map_core.ops.registry import BackendStatus, Implementation, Registry
from map_core.ops.scan.chunked.scan import chunked_scan
from map_core.ops.scan.inputs import ScanInputs, check_inputs
from map_core.ops.scan.loop import loop_bidirectional_scan, loop_scan
from map_core.ops.scan.mamba_ssm import mamba_ssm_missing, mamba_ssm_scan, mamba_ssm_unfit
from map_core.ops.scan.native import native_bidirectional_scan, native_scan
from map_core.ops.scan.reference import reference_scan
from map_core.ops.scan.triton.loading import triton_missing, triton_unfit
from map_core.ops.scan.triton.scan import triton_bidirectional_scan, triton_scan
from map_core.ops.tracing_state import is_functionally_transformed

REGISTRY = Registry(
    "selective_scan",
    (
        Implementation("mamba_ssm", mamba_ssm_scan, missing=mamba_ssm_missing, unfit=mamba_ssm_unfit),
        Implementation(
            "native",
            native_scan,
            missing=native_missing,
            unfit=native_unfit,
            fused=native_bidirectional_scan,
        ),
        # Behind mamba_ssm: faster on an H100 up to 196 tokens, slower from 1,024 (docs/performance.md).
        Implementation(
            "triton",
            triton_scan,
            missing=triton_missing,
            unfit=triton_unfit,
            fused=triton_bidirectional_scan,
        ),
        Implementation("torch", chunked_scan),
        Implementation("reference", reference_scan, automatic=False),
    ),
    exported=Implementation("loop", loop_scan, fused=loop_bidirectional_scan),
)


@torch.compiler.assume_constant_result
def _choose(backend: str, device: str, dtype: torch.dtype, state: int) -> str:
    return REGISTRY.choose(backend, device, dtype, state)


def _implementation(backend: str, inputs: ScanInputs) -> Implementation:
    if is_functionally_transformed():
        REGISTRY.check_name(backend)
        return REGISTRY["reference"]  # the others have hand-written gradients, and nothing else
    return REGISTRY[_choose(backend, inputs.u.device.type, inputs.u.dtype, int(inputs.A.shape[1]))]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Run a selective state space model over a sequence, under mamba_ssm's names and semantics.

    Args:
        u: Input (b, l, d), float32, bfloat16, float16 or float64.
        delta: Step size before bias and softplus (b, l, d).
        A: Continuous-time decay, negative (d, n).
        B: Input projection of each step (b, l, n).
        C: Output projection of each step (b, l, n).
        D: Skip weight (d,): adds ``D * u``.
        z: Gate (b, l, d): multiplies the output, skip included, by ``silu(z)``.
        delta_bias: Added to ``delta`` (d,).
        delta_softplus: Whether the step size goes through softplus.
        reverse: Scan from the last step to the first; equal to flipping every sequence and the result.
        backend: 'auto', or the name of one implementation (``scan_backends`` lists them); transformations of
            torch.func and forward-mode differentiation always use the definition, but inside ``torch.compile`` need
            'reference', as gradients of gradients do everywhere.

    Returns:
        (b, l, d) in the dtype of ``u``; step sizes, decay and state are float32, or float64 where ``u`` is.

    Raises:
        UserError: Shapes, devices or dtypes do not agree, or the backend is unknown or cannot serve.

    Source: Gu and Dao 2023, Mamba, section 3.
    """
    if has_torch_function_unary(u):  # torch.fx keeps the call whole
        return handle_torch_function(
            selective_scan, (u,), u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, backend
        )
    inputs = ScanInputs(u, delta, A, B, C, D, delta_bias, delta_softplus)
    check_inputs("selective_scan", inputs, z)
    return _implementation(backend, inputs).run(inputs, z, reverse)


def bidirectional_selective_scan(
    forward: ScanInputs, backward: ScanInputs, z: Tensor | None, backend: str = "auto"
) -> Tensor:
    """Return the gated average of two scans, ``0.5 * (y_forward + y_backward) * silu(z)``.

    Args:
        forward: Inputs of the scan from the first step to the last.
        backward: Inputs of the scan from the last step to the first, in the same (unflipped) order.
        z: Gate (b, l, d) that both directions share, or None.
        backend: As for ``selective_scan``.

    Returns:
        (b, l, d) in the dtype of ``forward.u``.

    Raises:
        UserError: As ``selective_scan`` does, or the two directions differ in shape.
    """
    if has_torch_function_unary(forward.u):
        return handle_torch_function(
            bidirectional_selective_scan, (forward.u,), forward, backward, z, backend
        )
    check_inputs("bidirectional_selective_scan (forward)", forward, z)
    check_inputs("bidirectional_selective_scan (backward)", backward, z)
    if not torch.jit.is_tracing() and forward.u.shape != backward.u.shape:
        raise UserError(
            f"bidirectional_selective_scan: forward.u has shape {tuple(forward.u.shape)} but backward.u has "
            f"{tuple(backward.u.shape)}; they must be equal"
        )
    implementation = _implementation(backend, forward)
    if implementation.fused is not None:
        return implementation.fused(forward, backward, z)
    # silu(z) is a common factor, so gating each direction equals gating the average.
    return 0.5 * (implementation.run(forward, z, False) + implementation.run(backward, z, True))


def scan_backends() -> tuple[BackendStatus, ...]:
    """Return every implementation of the scan, best first, with the reason where one cannot run here."""
    return REGISTRY.statuses()
