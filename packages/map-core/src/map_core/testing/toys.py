"""The smallest tokenizer, position embedding, encoder and objective that behave like a domain's."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from map_core.blocks import MambaBlock, TransformerBlock, make_norm
from map_core.decoder import RegionDecoder
from map_core.encoder import HybridEncoder
from map_core.objective import MaskedAutoregression
from map_core.tokens import GLOBAL_REGION, Tokens


def toy_tokens(
    region: Sequence[int] | Sequence[Sequence[int]],
    *,
    batch: int = 1,
    embed_dim: int = 3,
    grid: tuple[int, int] | None = None,
) -> Tokens:
    """Random tokens with these regions, one list for all samples or one each; raster positions on a grid."""
    rows = torch.tensor(region)
    rows = rows.unsqueeze(0) if rows.ndim == 1 else rows
    batch, length = max(batch, rows.shape[0]), rows.shape[1]
    index = torch.arange(length)
    columns = length if grid is None else grid[1]
    position = torch.stack([index // columns, index % columns], dim=-1).float().unsqueeze(0)
    return Tokens(torch.randn(batch, length, embed_dim), position, rows, grid=grid)


class GridTokenizer(nn.Module):
    """Tokens of grids of vectors (b, rows, cols, c): a token is a vector and its own target, a region a row.

    Args:
        channels: Values of a vector, c.
        embed_dim: Width of the tokens.
        num_global: Global tokens in front of the sequence.
        order: Raster index of the vector at each place of the sequence; None scans in raster order.
    """

    def __init__(
        self, channels: int, embed_dim: int, *, num_global: int = 0, order: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(channels, embed_dim)
        self.num_global, self.order = num_global, order

    def forward(self, vectors: Float[Tensor, "b rows cols c"]) -> Tokens:
        batch, rows, cols, _ = vectors.shape
        order = torch.tensor(range(rows * cols) if self.order is None else self.order, device=vectors.device)
        target = vectors.flatten(1, 2)[:, order]
        position = torch.stack([order // cols, order % cols], dim=-1).float().unsqueeze(0)
        n = self.num_global
        front = torch.full((1, n), GLOBAL_REGION, device=vectors.device)
        return Tokens(
            embedding=torch.cat(
                [vectors.new_zeros(batch, n, self.embed.out_features), self.embed(target)], 1
            ),
            position=torch.cat([position.new_full((1, n, 2), -1), position], 1),
            region=torch.cat([front, (order // cols).unsqueeze(0)], 1),
            target=torch.cat([vectors.new_zeros(batch, n, target.shape[2]), target], 1),
            grid=(rows, cols) if n == 0 else None,
        )


class LinearPosition(nn.Module):
    """A linear map of raw coordinates, for any tokens."""

    def __init__(self, embed_dim: int, *, coordinates: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(coordinates, embed_dim)

    def forward(self, position: Float[Tensor, "#b l p"], grid: Any = None) -> Float[Tensor, "#b l d"]:
        return self.embed(position)


def toy_encoder(embed_dim: int = 16, layout: str = "MT", **options: Any) -> HybridEncoder:
    """A small hybrid encoder; ``options`` replace those of :class:`~map_core.encoder.HybridEncoder`."""
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
    tokenizer: nn.Module | None = None,
    encoder: nn.Module | None = None,
    decoder_dim: int = 12,
    **options: Any,
) -> MaskedAutoregression:
    """A small objective over grids of vectors; ``options`` go to :class:`~map_core.MaskedAutoregression`."""
    encoder = toy_encoder() if encoder is None else encoder
    embed_dim = int(encoder.embed_dim)  # type: ignore[arg-type]
    return MaskedAutoregression(
        GridTokenizer(channels, embed_dim) if tokenizer is None else tokenizer,
        encoder,
        RegionDecoder(embed_dim, LinearPosition(decoder_dim), embed_dim=decoder_dim, depth=2, num_heads=2),
        nn.Linear(decoder_dim, channels),
        **options,
    )
