"""Multi-head attention under a mask, and the choice of the implementation that computes it."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from map_core.errors import UserError
from map_core.float64 import at_least_float32
from map_core.ops.attention.flex import MIN_TOKENS, flex_attention, flex_missing, flex_unfit
from map_core.ops.attention.native import native_attention, native_attention_unfit
from map_core.ops.attention.reference import reference_attention
from map_core.ops.exporting import exporting
from map_core.ops.native.library import native_missing
from map_core.ops.registry import BackendStatus, Implementation, Registry
from map_core.ops.tracing_state import is_functionally_transformed


def torch_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute what ``reference_attention`` defines with PyTorch's own operator."""
    # (b, q, l) -> (b, 1, q, l)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask.unsqueeze(1))


TORCH = Implementation("torch", torch_attention)
REGISTRY = Registry(
    "attention",
    (
        Implementation("native", native_attention, missing=native_missing, unfit=native_attention_unfit),
        Implementation("flex", flex_attention, missing=flex_missing, unfit=flex_unfit),
        TORCH,
        Implementation("reference", reference_attention, automatic=False),
    ),
    exported=TORCH,
)


@torch.compiler.assume_constant_result
def _choose(backend: str, device: str, dtype: torch.dtype, width: int, facts: tuple[str, ...]) -> str:
    return REGISTRY.choose(backend, device, dtype, width, *facts)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    """Refuse shapes that do not fit, and masks of numbers.

    Raises:
        UserError: It names the argument, its shape or dtype, and the rule.
    """
    if torch.jit.is_tracing() or exporting():
        return  # sizes are traced tensors, or free
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise UserError(
                f"attention: {name} has shape {tuple(x.shape)}; it must have 4 axes (batch, heads, tokens, width)"
            )
    batch, heads, queries, width = q.shape
    keys = k.shape[2]
    for name, x in (("k", k), ("v", v)):
        if x.shape != (batch, heads, keys, width):
            raise UserError(
                f"attention: {name} has shape {tuple(x.shape)}; it must have {(batch, heads, keys, width)}, "
                "the batch, heads and width of q and the tokens of k"
            )
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise UserError(
            f"attention: mask has dtype {mask.dtype}; it must be torch.bool, True where a query may attend"
        )
    fits = mask.ndim == 3 and mask.shape[0] in (1, batch) and mask.shape[1] in (1, queries)
    if not fits or mask.shape[2] != keys:
        raise UserError(
            f"attention: mask has shape {tuple(mask.shape)}; it must have {(batch, queries, keys)}, "
            "or 1 in place of the first two"
        )


def _facts(q: Tensor, k: Tensor, mask: Tensor | None) -> tuple[str, ...]:
    facts: tuple[str, ...] = ()
    if mask is not None and int(mask.shape[1]) > 1:
        facts += ("masked",)  # a row for each query, so that whole blocks may be hidden
    if min(int(q.shape[2]), int(k.shape[2])) >= MIN_TOKENS:
        facts += ("long",)
    return facts


def attention(
    q: Float[Tensor, "b h q d"],
    k: Float[Tensor, "b h l d"],
    v: Float[Tensor, "b h l d"],
    mask: Bool[Tensor, "#b #q l"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b h q d"]:
    """Average values by the softmax of the scaled products of queries and keys.

    Args:
        q: Queries.
        k, v: Keys and values.
        mask: True where a query may attend to a key; all where None. A query that may attend to none gets zeros.
        backend: 'auto', or the name of one implementation (``attention_backends`` lists them). The
            transformations of torch.func and forward-mode differentiation always use the definition, but inside
            ``torch.compile`` need 'reference', as gradients of gradients do everywhere.

    Returns:
        The averages in the dtype of ``q``.

    Raises:
        UserError: Shapes do not fit, the mask is not of bool, or ``backend`` is unknown or cannot serve this call.
    """
    if has_torch_function_unary(q):  # torch.fx keeps the call whole
        return handle_torch_function(attention, (q,), q, k, v, mask, backend)
    _check(q, k, v, mask)
    if is_functionally_transformed():
        REGISTRY.check_name(backend)
        # PyTorch's own operator differentiates once, backwards
        q_wide, k_wide, v_wide = (at_least_float32(x) for x in (q, k, v))
        y = reference_attention(q_wide, k_wide, v_wide, mask)
    else:
        # reading a size that is free in an exported program would fix it
        facts = () if exporting() or torch.compiler.is_exporting() else _facts(q, k, mask)
        name = _choose(backend, q.device.type, q.dtype, int(q.shape[3]), facts)
        y = REGISTRY[name].run(q, k, v, mask)
    return y if y.dtype == q.dtype else y.to(q.dtype)  # autocast narrows PyTorch's


def attention_backends() -> tuple[BackendStatus, ...]:
    """Return every implementation of attention, best first, with the reason where one cannot run here."""
    return REGISTRY.statuses()
