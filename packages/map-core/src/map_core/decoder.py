"""The Transformer decoder, which reconstructs the hidden tokens; its attention mask makes it go region by region."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from map_core.blocks import TransformerBlock, make_norm, residual_stream
from map_core.errors import UserError
from map_core.masking import TokenMask, predicted_tokens
from map_core.ops import Linear
from map_core.positions import embed_positions
from map_core.tokens import Features, Regions, Tokens


def require_depth(depth: int) -> None:
    """Check the number of a decoder's blocks.

    Raises:
        UserError: it is below 1.
    """
    if depth < 1:
        raise UserError(f"depth of a decoder must be at least 1; got {depth}")


class RegionDecoder(nn.Module):
    """A Transformer over all tokens in sequence order, visible features and mask tokens, under an attention mask.

    Source: paper, section 4; depth 4, width 192 and 16 heads as in the authors' code.

    Args:
        encoder_dim: Width of the encoder's features.
        position: Position embedding in the decoder's width: a module of (raw coordinates, grid).
        embed_dim, depth, num_heads, mlp_ratio: Shape of the Transformer.
        norm_eps: Epsilon of its norms.
        num_global: Global tokens at the front of every sequence whose positions are learned here; 0 where there are
            none, or where ``position`` covers them.
        repeat_position: Add the position embedding before every block, not only before the first.
        make_block: Makes a block for a subclass that runs others than a Transformer's.

    Raises:
        UserError: a depth below 1.
    """

    def __init__(
        self,
        encoder_dim: int,
        position: nn.Module,
        *,
        embed_dim: int = 192,
        depth: int = 4,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
        num_global: int = 0,
        repeat_position: bool = False,
        make_block: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        require_depth(depth)
        if make_block is None:
            make_block = partial(
                TransformerBlock, embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, norm_eps=norm_eps
            )
        self.embed_dim, self.repeat_position = embed_dim, repeat_position
        self.embed = Linear(encoder_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.empty(embed_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.position = position
        self.global_position = nn.Parameter(torch.zeros(num_global, embed_dim)) if num_global else None
        self.blocks = nn.ModuleList(make_block() for _ in range(depth))
        self.norm = make_norm("layer", embed_dim, norm_eps)

    def check(self, tokens: Tokens, regions: Regions) -> None:
        """Check that the decoder can handle these regions; a Transformer handles any.

        Raises:
            UserError: it cannot.
        """

    def forward(
        self,
        features: Features,
        tokens: Tokens,
        mask: TokenMask,
        regions: Regions,
        attention_mask: Bool[Tensor, "#b l l"],
    ) -> Float[Tensor, "b h e"]:
        """Return the decoded features of the hidden tokens (of all if none is hidden), in sequence order.

        Args:
            features: The encoder's output.
            tokens: All tokens.
            mask: Which of them are hidden.
            regions: The region of each token; this decoder reads the attention mask instead.
            attention_mask: True where query i may attend to key j.
        """
        query = predicted_tokens(tokens, mask)
        x = self.sequence(features, tokens, mask)
        repeated = None
        if self.repeat_position:
            repeated = embed_positions(self.position, tokens, self.global_position)
        return self.decode(x, attention_mask, query, repeated=repeated)

    def sequence(self, features: Features, tokens: Tokens, mask: TokenMask) -> Float[Tensor, "b l e"]:
        """Assemble the input: encoded features where tokens are visible, the mask token where they are hidden."""
        visible = residual_stream(self.embed(features.embedding))
        index = features.index.unsqueeze(-1).expand_as(visible)
        x = visible.new_zeros(tokens.batch_size, tokens.length, self.embed_dim).scatter(1, index, visible)
        x = torch.where(mask.hidden.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        return x + embed_positions(self.position, tokens, self.global_position).to(x.dtype)

    def decode(
        self,
        x: Float[Tensor, "b l e"],
        attention_mask: Bool[Tensor, "#b l l"],
        query: Int[Tensor, "b h"],
        *,
        repeated: Float[Tensor, "#b l e"] | None = None,
    ) -> Float[Tensor, "b h e"]:
        """Run the blocks and the norm. The last block computes only the query tokens: nothing reads the others.

        Args:
            x: The sequence.
            attention_mask: True where query i may attend to key j.
            query: Indices of the tokens to return.
            repeated: Position embedding to add again before every block but the first.
        """
        for block in self.blocks[:-1]:
            x = block(x, attention_mask=attention_mask)
            x = x if repeated is None else x + repeated.to(x.dtype)
        return self.norm(self.blocks[-1](x, attention_mask=attention_mask, query=query))
