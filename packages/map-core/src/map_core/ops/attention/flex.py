"""Attention by FlexAttention, which skips blocks of keys that a mask hides, on GPUs and for long sequences."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from map_core.ops.registry import NOT_INSTALLED, Request

LEAST_TOKENS = 1024  # below, a mask has too few blocks to leave any out; never timed
BLOCK = 128
LEAST_WIDTH = 16  # of a head, that its kernels take
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def flex_missing() -> str | None:
    """Why its kernels cannot run on this installation, or None: they are written in Triton."""
    return None if importlib.util.find_spec("triton") is not None else f"triton {NOT_INSTALLED}"


def flex_unfit(request: Request) -> str | None:
    """Why FlexAttention does not serve this request, or None."""
    if request.device != "cuda":
        return f"its kernels run on GPUs, these tensors are on {request.device}"
    if request.dtype not in DTYPES:
        return f"it takes float32, float16 and bfloat16, not {request.dtype}"
    if request.size < LEAST_WIDTH:
        return f"it takes heads of {LEAST_WIDTH} numbers or more, not {request.size}"
    if "masked" not in request.facts:
        return "it is for masks with a row for each query"
    if "long" not in request.facts:
        return f"fewer than {LEAST_TOKENS} tokens have too few blocks for it to leave any out"
    return None


def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Bool[Tensor, "#b q l"], *, compiled: bool = True
) -> Tensor:
    """Compute what ``reference_attention`` defines, but no block of keys that the mask hides from a block of queries.

    Args:
        q, k, v: (b, h, q or l, d).
        mask: True where a query may attend; every query to one key at least.
        compiled: Run its kernels; False runs the definition, on any device.
    """
    from torch.nn.attention import flex_attention as flex  # takes a second, and few need it

    whole_model_is_compiled = torch.compiler.is_compiling()
    run: Any = _kernels() if compiled and not whole_model_is_compiled else flex.flex_attention
    block_mask = make_block_mask(mask) if whole_model_is_compiled else _last.of(mask)
    return run(q, k, v, block_mask=block_mask)


def make_block_mask(mask: Bool[Tensor, "#b q l"]) -> Any:
    """Which blocks of a mask are hidden, seen in part, and seen whole: only those in part look at the mask itself."""
    from torch.nn.attention.flex_attention import create_block_mask

    batch, queries, keys = mask.shape
    may_attend: Any = lambda b, h, query, key: mask[b, query, key]  # noqa: E731 (a def would be type-checked in tests)
    if batch == 1:  # shared: whichever element asks
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
class _Last:
    """The block mask made last: the layers of a step share one mask."""

    pair: tuple[Tensor, Any] | None = None  # together, as another thread may replace them

    def of(self, mask: Tensor) -> Any:
        last = self.pair
        if last is None or last[0] is not mask:
            last = self.pair = mask, make_block_mask(mask)
        return last[1]


_last = _Last()


@cache
def _kernels() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
