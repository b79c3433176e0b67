"""Multi-head attention and the MLP of a Transformer block, with timm's parameter names."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from map_core.errors import UserError
from map_core.ops import Linear, attention, linear


class Attention(nn.Module):
    """Attention of tokens to each other, or to those of a context.

    Args:
        embed_dim: Width; a multiple of ``num_heads``.
        num_heads: Number of heads.
        qkv_bias, proj_bias: Biases of the projections.

    ``backend`` names the implementation of attention; set it to measure one.

    Raises:
        UserError: ``num_heads`` is below 1, or ``embed_dim`` is not a multiple of it.
    """

    backend = "auto"

    def __init__(
        self, embed_dim: int, num_heads: int, *, qkv_bias: bool = True, proj_bias: bool = True
    ) -> None:
        super().__init__()
        if num_heads < 1:
            raise UserError(f"num_heads ({num_heads}) must be at least 1")
        if embed_dim % num_heads:
            raise UserError(f"embed_dim ({embed_dim}) must be a multiple of num_heads ({num_heads})")
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.qkv = Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = Linear(embed_dim, embed_dim, bias=proj_bias)

    def forward(
        self,
        x: Float[Tensor, "b q d"],
        context: Float[Tensor, "b l d"] | None = None,
        mask: Bool[Tensor, "#b #q l"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Attend from ``x`` to ``context``, or to ``x`` itself; the mask is True where a token may attend."""
        q, k, v = self._project(x) if context is None else self._project_separately(x, context)
        y = attention(q, k, v, mask, self.backend)
        return self.proj(y.transpose(1, 2).flatten(2))  # (b, h, q, d/h) -> (b, q, d)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of the same tokens, in one product."""
        q, k, v = self._by_head(self.qkv(x), 3)
        return q, k, v

    def _project_separately(self, x: Tensor, context: Tensor) -> tuple[Tensor, ...]:
        """Queries of ``x``, keys and values of ``context``."""
        d, weight, bias = self.embed_dim, self.qkv.weight, self.qkv.bias
        q_bias, kv_bias = (None, None) if bias is None else (bias[:d], bias[d:])
        (q,) = self._by_head(linear(x, weight[:d], q_bias, self.qkv.backend), 1)
        k, v = self._by_head(linear(context, weight[d:], kv_bias, self.qkv.backend), 2)
        return q, k, v

    def _by_head(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        heads = projected.unflatten(-1, (parts, self.num_heads, -1))
        return heads.permute(2, 0, 3, 1, 4).unbind(0)  # (b, l, parts, h, d/h) -> parts x (b, h, l, d/h)


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(embed_dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, embed_dim)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.fc2(F.gelu(self.fc1(x)))
