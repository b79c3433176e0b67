"""Attention of heads under a mask, and which of PyTorch's two ways of it computes a call."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

FLEX_TOKENS = 1024  # below, a mask has too few blocks to leave any out; never timed
FLEX_BLOCK = 128
FLEX_HEAD = 16  # the narrowest head that its kernels take
FLEX_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def attend(
    q: Float[Tensor, "b h q d"],
    k: Float[Tensor, "b h l d"],
    v: Float[Tensor, "b h l d"],
    mask: Bool[Tensor, "#b #q l"] | None,
) -> Float[Tensor, "b h q d"]:
    """Attend from every query to the keys where the mask is True; to all keys without one."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    if isinstance(q, Tensor) and flex_fits(q.device.type, q.dtype, tuple(q.shape), tuple(mask.shape)):
        return flex(q, k, v, mask)  # torch.fx traces with what is no tensor
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1))  # (b, q, l) -> (b, 1, q, l)


def flex_fits(device: str, dtype: torch.dtype, query: tuple[int, ...], mask: tuple[int, ...]) -> bool:
    """Whether FlexAttention serves a call: on a GPU, for long sequences and heads that are wide enough.

    Args:
        device: Type of the tensors' device.
        dtype: Of queries, keys and values.
        query: Shape of the queries, (b, h, q, d).
        mask: Shape of the mask, (b or 1, q or 1, l).
    """
    long = min(query[2], mask[2]) >= FLEX_TOKENS and mask[1] == query[2]
    return device == "cuda" and dtype in FLEX_DTYPES and long and query[3] >= FLEX_HEAD and _compiles()


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Bool[Tensor, "#b q l"], *, compiled: bool = True) -> Tensor:
    """Attend by FlexAttention, which computes no block of keys that the mask hides from a whole block of queries.

    Args:
        q, k, v: (b, h, q or l, d).
        mask: True where a query may attend; every query to one key at least.
        compiled: Run its kernels; False runs the definition, on any device.
    """
    from torch.nn.attention.flex_attention import flex_attention  # takes a second, and few need it

    whole_model_is_compiled = torch.compiler.is_compiling()
    run: Any = _kernels() if compiled and not whole_model_is_compiled else flex_attention
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
        BLOCK_SIZE=FLEX_BLOCK,
    )


@dataclass
class _Last:
    """The block mask made last: the layers of a step share one mask."""

    mask: Tensor | None = None
    made: Any = None

    def of(self, mask: Tensor) -> Any:
        if self.mask is not mask:
            self.mask, self.made = mask, make_block_mask(mask)
        return self.made


_last = _Last()


@cache
def _kernels() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
def _compiles() -> bool:
    """Whether Triton, which FlexAttention's kernels are written in, is there."""
    return importlib.util.find_spec("triton") is not None
