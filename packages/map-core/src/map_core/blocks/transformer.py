"""The pre-norm Transformer block, on timm's attention and MLP."""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers import Attention, DropPath, Mlp
from torch import Tensor, nn

from map_core.blocks.norm import NormKind, make_norm
from map_core.errors import UserError
from map_core.ops import linear, with_fast_linears
from map_core.tokens import gather_tokens


def attend(
    attention: Attention,
    query: Float[Tensor, "b q d"],
    context: Float[Tensor, "b l d"],
    mask: Bool[Tensor, "#b 1 q l"] | None,
) -> Float[Tensor, "b q d"]:
    """What ``attention`` computes for the rows of ``query`` alone, with keys and values of all of ``context``."""
    width = attention.attn_dim
    bias = attention.qkv.bias
    q_bias, kv_bias = (None, None) if bias is None else (bias[:width], bias[width:])
    q = linear(query, attention.qkv.weight[:width], q_bias).unflatten(-1, (attention.num_heads, -1))
    kv = linear(context, attention.qkv.weight[width:], kv_bias).unflatten(-1, (2, attention.num_heads, -1))
    k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # (b, l, 2, h, d/h) -> 2 x (b, h, l, d/h)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask)
    return attention.proj(y.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; attention only when ``mlp_ratio`` is 0.

    Args:
        embed_dim: Width; a multiple of ``num_heads``.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``embed_dim``; 0 leaves the MLP out.
        qkv_bias, proj_bias: Biases of the attention's projections.
        norm, norm_eps: See :func:`make_norm`.
        drop_path: Stochastic depth rate of both branches.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        norm: NormKind = "layer",
        norm_eps: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise UserError(f"embed_dim ({embed_dim}) must be a multiple of num_heads ({num_heads})")
        self.norm1 = make_norm(norm, embed_dim, norm_eps)
        self.attn = with_fast_linears(Attention(embed_dim, num_heads, qkv_bias=qkv_bias, proj_bias=proj_bias))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2: nn.Module | None = None
        self.mlp: nn.Module | None = None
        if mlp_ratio > 0:
            self.norm2 = make_norm(norm, embed_dim, norm_eps)
            self.mlp = with_fast_linears(Mlp(embed_dim, int(embed_dim * mlp_ratio)))

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        position: Float[Tensor, "#b m p"] | None = None,
        attention_mask: Bool[Tensor, "#b l l"] | None = None,
        query: Int[Tensor, "b q"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Compute all tokens, or only those whose indices are in ``query``; the others are still attended to."""
        mask = None if attention_mask is None else attention_mask.unsqueeze(1)  # (b, l, l) -> (b, 1, l, l)
        context = self.norm1(x)
        if query is None:
            x = x + self.drop_path(self.attn(context, attn_mask=mask))
        else:
            if attention_mask is not None:
                mask = gather_tokens(attention_mask, query).unsqueeze(1)  # (b, l, l) -> (b, 1, q, l)
            y = attend(self.attn, gather_tokens(context, query), context, mask)
            x = gather_tokens(x, query) + self.drop_path(y)
        if self.mlp is not None and self.norm2 is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x
