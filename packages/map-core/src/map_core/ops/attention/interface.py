"""Multi-head attention under a mask, and the choice of the implementation that computes it."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from map_core.ops.attention.flex import MIN_TOKENS, flex_attention, flex_missing, flex_unfit
from map_core.ops.attention.native import native_attention, native_attention_unfit
from map_core.ops.attention.reference import reference_attention
from map_core.ops.exporting import exporting
from map_core.ops.native.library import native_missing
from map_core.ops.registry import BackendStatus, Implementation, Registry
from map_core.ops.transforms import is_functionally_transformed


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
            transformations of torch.func and forward-mode differentiation always use PyTorch's own operator.

    Returns:
        The averages in the dtype of ``q``.

    Raises:
        UserError: ``backend`` is unknown or cannot serve this call.
    """
    if has_torch_function_unary(q):  # torch.fx keeps the call whole
        return handle_torch_function(attention, (q,), q, k, v, mask, backend)
    if is_functionally_transformed():
        return torch_attention(q, k, v, mask)
    facts = () if exporting() else _facts(q, k, mask)  # reading the sizes would fix them in the program
    return REGISTRY[_choose(backend, q.device.type, q.dtype, int(q.shape[3]), facts)].run(q, k, v, mask)


def attention_backends() -> tuple[BackendStatus, ...]:
    """Return every implementation of attention, best first, with the reason where one cannot run here."""
    return REGISTRY.statuses()
