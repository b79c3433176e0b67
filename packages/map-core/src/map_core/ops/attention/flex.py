"""Attention by FlexAttention, which skips blocks of keys that a mask hides, on GPUs and for long sequences."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from map_core.ops.registry import NOT_INSTALLED, Request

MIN_TOKENS = 1024  # below, a mask has too few blocks to skip any; not timed
BLOCK = 128
MAX_SHAPES = 256  # compiled at most, PyTorch's limit for any function
MIN_WIDTH = 16  # the smallest dimension of a head that its kernels take
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def flex_missing() -> str | None:
    """Why FlexAttention's kernels, which are written in Triton, cannot run on this installation, or None."""
    return None if importlib.util.find_spec("triton") is not None else f"triton {NOT_INSTALLED}"


def flex_unfit(request: Request) -> str | None:
    """Why FlexAttention does not serve this request, or None."""
    if request.device != "cuda":
        return f"its kernels run on GPUs, these tensors are on {request.device}"
    if request.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, not {request.dtype}"
    if request.size < MIN_WIDTH:
        return f"it takes head dimensions of {MIN_WIDTH} or more, not {request.size}"
    if "masked" not in request.facts:
        return "it is for masks with a row for each query"
    if "long" not in request.facts:
        return f"fewer than {MIN_TOKENS} tokens have too few blocks for it to leave any out"
    return None


def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Bool[Tensor, "#b q l"], *, compiled: bool = True
) -> Tensor:
    """Compute what ``reference_attention`` defines, without the blocks that the mask hides entirely.

    Args:
        q, k, v: (b, h, q or l, d).
        mask: True where a query may attend; every query must attend to at least one key.
        compiled: Run FlexAttention's kernels; False runs its definition, on any device.
    """
    from torch.nn.attention import flex_attention as flex  # takes a second, and few calls need it

    whole_model_is_compiled = torch.compiler.is_compiling()
    block_mask = make_block_mask(mask) if whole_model_is_compiled else _block_mask_cache.get(mask)
    if not compiled or whole_model_is_compiled:
        return flex.flex_attention(q, k, v, block_mask=block_mask)
    # drawn mask ratios make other lengths; beyond its limit of graphs PyTorch would compute all scores for good
    dynamo = torch._dynamo.config
    with dynamo.patch(recompile_limit=max(dynamo.recompile_limit, MAX_SHAPES)):
        return _kernels()(q, k, v, block_mask=block_mask)


def make_block_mask(mask: Bool[Tensor, "#b q l"]) -> Any:
    """Sort the blocks of a mask into hidden, visible and partly visible ones; only the last read the mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    batch, queries, keys = mask.shape
    may_attend: Any = lambda b, h, query, key: mask[b, query, key]  # noqa: E731 (a def would be type-checked in tests)
    if batch == 1:  # one mask for all elements of the batch
        may_attend = lambda b, h, query, key: mask[0, query, key]  # noqa: E731
    return create_block_mask(
        may_attend,
        B=batch,
        H=None,
        Q_LEN=queries,
        KV_LEN=keys,
        device=mask.device,
        BLOCK_SIZE=BLOCK,
    )


@dataclass
class _BlockMaskCache:
    """Keeps the latest block mask: the layers of a step share one mask."""

    entry: tuple[Tensor, int | None, Any] | None = None  # in one, as another thread may replace it

    def get(self, mask: Tensor) -> Any:
        version = None if mask.is_inference() else mask._version  # counts the changes in place
        entry = self.entry
        if entry is None or entry[0] is not mask or entry[1] != version:
            entry = self.entry = mask, version, make_block_mask(mask)
        return entry[2]


_block_mask_cache = _BlockMaskCache()


@cache
def _kernels() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
