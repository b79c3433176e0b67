"""The data that travel through the objective: tokens, their regions and features, and functions that index them."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from map_core.tracing import fx_leaf

GLOBAL_REGION = -1  # region of class tokens and registers, which every query sees


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch in scan order.

    Attributes:
        embedding: Token features without any position embedding.
        position: Raw coordinates: row and column of a patch, or xyz of a centre. A leading axis of 1 means
            that all samples share them.
        target: What the objective reconstructs (pixels of a patch, points of a group), or None.
        grid: Rows and columns when the tokens tile a grid, else None.
        origin: Index of each token before the scan order was applied (raster index of a patch, index among
            the sampled centres; global tokens are counted first); None where the scan changes nothing.
        num_global: Number of global tokens (class tokens) at the front of the sequence: never hidden, in
            no region, seen by every query.
    """

    embedding: Float[Tensor, "b l d"]
    position: Float[Tensor, "#b l p"]
    target: Float[Tensor, "b l ..."] | None = None
    grid: tuple[int, int] | None = None
    origin: Int[Tensor, "#b l"] | None = None
    num_global: int = 0

    @property
    def batch_size(self) -> int:
        return self.embedding.shape[0]

    @property
    def length(self) -> int:
        return self.embedding.shape[1]

    @property
    def num_maskable(self) -> int:
        """Number of tokens that may be hidden: all but the global ones."""
        return self.length - self.num_global


@dataclass(frozen=True)
class Regions:
    """Which tokens are predicted together; counts are plain integers, so that nothing waits for a device.

    Attributes:
        index: Region of each token, counted from 0 in the order of prediction; -1 for global tokens.
        count: Number of regions.
        smallest: Number of tokens in the smallest region.
    """

    index: Int[Tensor, "#b l"]
    count: int
    smallest: int


@dataclass(frozen=True)
class Features:
    """The output of an encoder: features of the tokens it read, and their indices in the sequence.

    Attributes:
        embedding: Encoded tokens.
        index: Sequence index of each token, ascending.
    """

    embedding: Float[Tensor, "b m d"]
    index: Int[Tensor, "#b m"]


@fx_leaf
def gather_tokens(values: Tensor, index: Int[Tensor, "#b k"]) -> Tensor:
    """Pick tokens along axis 1: ``values`` (b or 1, l, ...) at ``index`` (b or 1, k) -> (b, k, ...)."""
    batch = index.shape[0] if values.shape[0] == 1 else values.shape[0]  # none in an empty batch
    tail = values.shape[2:]
    values = values.expand(batch, *values.shape[1:])
    index = index.reshape(*index.shape, *(1 for _ in tail)).expand(batch, index.shape[1], *tail)
    return torch.gather(values, 1, index)


def with_global_tokens(tokens: Tokens, front: Float[Tensor, "{n} d"], n: int) -> Tokens:
    """Put ``n`` global tokens, such as a class token, in front of tokens that have none."""
    batch = tokens.batch_size
    position, target, origin = tokens.position, tokens.target, tokens.origin
    if target is not None:
        target = torch.cat([target.new_zeros(batch, n, *target.shape[2:]), target], dim=1)
    if origin is not None:
        first = torch.arange(n, device=origin.device).expand(origin.shape[0], n)
        origin = torch.cat([first, origin + n], dim=1)
    return Tokens(
        embedding=torch.cat(
            [front.to(tokens.embedding.dtype).expand(batch, -1, -1), tokens.embedding], dim=1
        ),
        position=torch.cat(
            [position.new_full((position.shape[0], n, position.shape[2]), -1), position], dim=1
        ),
        target=target,
        grid=tokens.grid,
        origin=origin,
        num_global=n,
    )


def reorder_tokens(tokens: Tokens, index: Int[Tensor, "#b l"]) -> Tokens:
    """Reorder tokens: token ``index[i]`` goes to place i; global ones must stay in front."""
    origin = tokens.origin
    if origin is None:
        origin = torch.arange(tokens.length, device=tokens.embedding.device).unsqueeze(0)
    return replace(
        tokens,
        embedding=gather_tokens(tokens.embedding, index),
        position=gather_tokens(tokens.position, index),
        target=None if tokens.target is None else gather_tokens(tokens.target, index),
        origin=gather_tokens(origin, index),
    )


def undo_scan(values: Tensor, tokens: Tokens) -> Tensor:
    """Bring per-token ``values`` (b, l, ...) from scan order back to the original order."""
    return values if tokens.origin is None else gather_tokens(values, tokens.origin.argsort(dim=1))
