"""The pre-norm Transformer block, on timm's attention and MLP."""

from jaxtyping import Bool, Float
from timm.layers import Attention, DropPath, Mlp
from torch import Tensor, nn

from map_core.blocks.norm import NormKind, make_norm
from map_core.errors import UserError


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
        self.attn = Attention(embed_dim, num_heads, qkv_bias=qkv_bias, proj_bias=proj_bias)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2: nn.Module | None = None
        self.mlp: nn.Module | None = None
        if mlp_ratio > 0:
            self.norm2 = make_norm(norm, embed_dim, norm_eps)
            self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        position: Float[Tensor, "#b n p"] | None = None,
        attention_mask: Bool[Tensor, "#b l l"] | None = None,
    ) -> Float[Tensor, "b l d"]:
        mask = None if attention_mask is None else attention_mask.unsqueeze(1)  # (b, l, l) -> (b, 1, l, l)
        x = x + self.drop_path(self.attn(self.norm1(x), attn_mask=mask))
        if self.mlp is not None and self.norm2 is not None:
            x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x
