"""The smallest backbone, position embedding, encoder and objective that behave like those of a domain."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from map_core.blocks import MambaBlock, TransformerBlock, make_norm
from map_core.decoder import RegionDecoder
from map_core.encoder import HybridEncoder
from map_core.masking import TokenMask
from map_core.objective import MaskedAutoregression
from map_core.tokens import Features, Regions, Tokens


def toy_tokens(
    length: int = 16,
    *,
    batch: int = 1,
    embed_dim: int = 3,
    grid: tuple[int, int] | None = None,
    num_global: int = 0,
) -> Tokens:
    """Random tokens, global ones in front; raster positions on the grid, or along a line where there is none."""
    length = length if grid is None else grid[0] * grid[1]
    columns = length if grid is None else grid[1]
    index = torch.arange(length)
    position = torch.stack([index // columns, index % columns], dim=-1).float().unsqueeze(0)
    position = torch.cat([position.new_full((1, num_global, 2), -1), position], dim=1)
    embedding = torch.randn(batch, num_global + length, embed_dim)
    return Tokens(embedding, position, grid=grid, num_global=num_global)


class GridBackbone(nn.Module):
    """A backbone over grids of vectors (b, rows, cols, c): a token is a vector and its own target.

    Args:
        channels: Number of values in a vector, c.
        encoder: Encodes the tokens.
        num_global: Number of global tokens at the front of the sequence.
        order: Raster index of the vector at each position of the sequence; None scans in raster order.
    """

    def __init__(
        self,
        channels: int,
        encoder: HybridEncoder,
        *,
        num_global: int = 0,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = encoder.embed_dim
        self.embed = nn.Linear(channels, encoder.embed_dim)
        self.encoder = encoder
        self.num_global = num_global
        self.register_buffer("order", None if order is None else torch.tensor(order), persistent=False)

    def tokenize(self, inputs: Float[Tensor, "b rows cols c"], *, targets: bool = False) -> Tokens:
        batch, rows, cols, _ = inputs.shape
        order: Any = torch.arange(rows * cols, device=inputs.device) if self.order is None else self.order
        target = inputs.flatten(1, 2)[:, order]
        position = torch.stack([order // cols, order % cols], dim=-1).float().unsqueeze(0)
        n = self.num_global
        front = inputs.new_zeros(batch, n, self.embed_dim)
        return Tokens(
            embedding=torch.cat([front, self.embed(target)], 1),
            position=torch.cat([position.new_full((1, n, 2), -1), position], 1),
            target=torch.cat([inputs.new_zeros(batch, n, target.shape[2]), target], 1) if targets else None,
            grid=(rows, cols),
            origin=None
            if self.order is None
            else torch.cat([torch.arange(n, device=order.device), order + n])[None],
            num_global=n,
        )

    def encode(self, tokens: Tokens, mask: TokenMask | None = None) -> Features:
        return self.encoder.encode(tokens, mask)

    def encode_causally(self, tokens: Tokens, regions: Regions, mask: TokenMask | None = None) -> Features:
        return self.encoder.encode_causally(tokens, regions, mask)


class LinearPosition(nn.Module):
    """A linear map of raw coordinates, for any tokens."""

    def __init__(self, embed_dim: int, *, coordinates: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(coordinates, embed_dim)

    def forward(self, position: Float[Tensor, "#b l p"], grid: Any = None) -> Float[Tensor, "#b l d"]:
        return self.embed(position)


def toy_encoder(embed_dim: int = 16, layout: str = "MT", **options: Any) -> HybridEncoder:
    """A small hybrid encoder; ``options`` override arguments of :class:`~map_core.encoder.HybridEncoder`."""
    settings: dict[str, Any] = {
        "block_makers": {
            "M": lambda dim, drop_path: MambaBlock(dim, state_dim=4, drop_path=drop_path),
            "T": lambda dim, drop_path: TransformerBlock(
                dim, num_heads=2, mlp_ratio=2.0, drop_path=drop_path
            ),
        },
        "position": LinearPosition(embed_dim),
        "norm": make_norm("rms", embed_dim),
    }
    return HybridEncoder(embed_dim, layout, **(settings | options))


def toy_objective(
    *,
    channels: int = 4,
    backbone: nn.Module | None = None,
    decoder_dim: int = 12,
    **options: Any,
) -> MaskedAutoregression:
    """A small objective over grids of vectors; ``options`` go to :class:`~map_core.MaskedAutoregression`."""
    backbone = GridBackbone(channels, toy_encoder()) if backbone is None else backbone
    embed_dim = int(backbone.embed_dim)  # type: ignore[arg-type]
    return MaskedAutoregression(
        backbone,
        RegionDecoder(embed_dim, LinearPosition(decoder_dim), embed_dim=decoder_dim, depth=2, num_heads=2),
        nn.Linear(decoder_dim, channels),
        **options,
    )
