"""What travels through the objective: tokens, what the encoder made of them, and how to index both."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

GLOBAL_REGION = -1  # class tokens and registers: never hidden, seen by every query


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch in scan order.

    Attributes:
        embedding: Token features without any position embedding.
        position: Raw coordinates: row and column of a patch, or xyz of a centre. A leading axis of 1 says
            that all samples share them.
        region: Region of each token, counted from 0 in the order of prediction; -1 marks a global token.
            Every sample has the same number of global tokens.
        target: What the objective reconstructs (pixels of a patch, points of a group), or None.
        grid: Rows and columns when the tokens tile a grid, else None.
    """

    embedding: Float[Tensor, "b l d"]
    position: Float[Tensor, "#b l p"]
    region: Int[Tensor, "#b l"]
    target: Float[Tensor, "b l ..."] | None = None
    grid: tuple[int, int] | None = None

    @property
    def batch_size(self) -> int:
        return self.embedding.shape[0]

    @property
    def length(self) -> int:
        return self.embedding.shape[1]


@dataclass(frozen=True)
class Features:
    """What an encoder returns: features of the tokens it read, and where in the sequence they stand.

    Attributes:
        embedding: Encoded tokens.
        index: Sequence index of each, ascending.
    """

    embedding: Float[Tensor, "b m d"]
    index: Int[Tensor, "#b m"]


def gather_tokens(values: Tensor, index: Int[Tensor, "#b k"]) -> Tensor:
    """Pick tokens along axis 1: ``values`` (b or 1, l, ...) at ``index`` (b or 1, k) -> (b, k, ...)."""
    batch = max(values.shape[0], index.shape[0])
    tail = values.shape[2:]
    values = values.expand(batch, *values.shape[1:])
    index = index.reshape(*index.shape, *(1 for _ in tail)).expand(batch, index.shape[1], *tail)
    return torch.gather(values, 1, index)
