"""The pre-norm Transformer block."""

from jaxtyping import Bool, Float, Int
from timm.layers import DropPath
from torch import Tensor, nn

from map_core.blocks.attention import Attention, Mlp
from map_core.blocks.norm import NormKind, make_norm
from map_core.errors import UserError
from map_core.tokens import gather_tokens


def mlp_width(embed_dim: int, mlp_ratio: float) -> int:
    """The hidden width of an MLP.

    Raises:
        UserError: it would be below 1.
    """
    width = int(embed_dim * mlp_ratio)
    if width < 1:
        raise UserError(
            f"mlp_ratio ({mlp_ratio}) times embed_dim ({embed_dim}) must be at least 1, the width of the smallest MLP; "
            f"set mlp_ratio to 1/{embed_dim} or more"
        )
    return width


class TransformerBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; only the attention when ``mlp_ratio`` is 0.

    Args:
        embed_dim: Width; a multiple of ``num_heads``.
        num_heads: Attention heads.
        mlp_ratio: Ratio of the MLP's hidden width to ``embed_dim``; 0 leaves the MLP out.
        qkv_bias, proj_bias: Biases of the attention's projections.
        norm, norm_eps: See :func:`make_norm`.
        drop_path: Stochastic depth rate of both branches.

    Raises:
        UserError: ``mlp_ratio`` leaves the MLP less than one unit.
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
        self.norm1 = make_norm(norm, embed_dim, norm_eps)
        self.attn = Attention(embed_dim, num_heads, qkv_bias=qkv_bias, proj_bias=proj_bias)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2: nn.Module | None = None
        self.mlp: nn.Module | None = None
        if mlp_ratio > 0:
            self.norm2 = make_norm(norm, embed_dim, norm_eps)
            self.mlp = Mlp(embed_dim, mlp_width(embed_dim, mlp_ratio))

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        position: Float[Tensor, "#b m p"] | None = None,
        attention_mask: Bool[Tensor, "#b l l"] | None = None,
        query: Int[Tensor, "b q"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Compute all tokens, or only those whose indices are in ``query``; the others are still attended to."""
        context = self.norm1(x)
        if query is None:
            x = x + self.drop_path(self.attn(context, mask=attention_mask))
        else:
            if attention_mask is not None:
                attention_mask = gather_tokens(attention_mask, query)  # (b, l, l) -> (b, q, l)
            attended = self.attn(gather_tokens(context, query), context, attention_mask)
            x = gather_tokens(x, query) + self.drop_path(attended)
        if self.mlp is not None and self.norm2 is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class CrossBlock(nn.Module):
    """Queries read a context: ``x + attention(norm(x), norm(context))``, then ``x + mlp(norm(x))``.

    Args:
        embed_dim: Width of queries and context; a multiple of ``num_heads``.
        num_heads: Attention heads.
        mlp_ratio: Ratio of the MLP's hidden width to ``embed_dim``.
        norm_eps: Epsilon of its norms.

    Raises:
        UserError: ``mlp_ratio`` leaves the MLP less than one unit.
    """

    def __init__(
        self, embed_dim: int, *, num_heads: int, mlp_ratio: float = 4.0, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1, self.norm_context = (make_norm("layer", embed_dim, norm_eps) for _ in range(2))
        self.attn = Attention(embed_dim, num_heads)
        self.norm2 = make_norm("layer", embed_dim, norm_eps)
        self.mlp = Mlp(embed_dim, mlp_width(embed_dim, mlp_ratio))

    def forward(
        self,
        x: Float[Tensor, "b q d"],
        context: Float[Tensor, "b l d"],
        attention_mask: Bool[Tensor, "#b q l"],
    ) -> Float[Tensor, "b q d"]:
        x = x + self.attn(self.norm1(x), self.norm_context(context), attention_mask)
        return x + self.mlp(self.norm2(x))
