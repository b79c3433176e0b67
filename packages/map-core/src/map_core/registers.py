"""Registers: learned global tokens within a sequence.

``Registers.places`` is the definition of where they go; ``_sequence_places`` is its traceable form, in which the length
of the sequence may stay free.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from map_core.tracing import fx_leaf


def spread_places(count: int, length: int) -> list[int]:
    """Sequence indices of ``count`` registers spread evenly among ``length`` other tokens (Mamba-R's places).

    >>> spread_places(1, 16), spread_places(3, 16)
    ([8], [4, 9, 14])
    """
    gap = length // (count + 1)
    return [(i + 1) * gap + i for i in range(count)]


class Registers(nn.Module):
    """Learned global tokens in a sequence: spread evenly through it, or all in front (a class token).

    Args:
        num_registers: Number of registers, n.
        embed_dim: Width.
        spread: Put register i after ``(i + 1) * (l // (n + 1))`` of the l tokens; False puts all of them first.
    """

    def __init__(self, num_registers: int, embed_dim: int, *, spread: bool = True) -> None:
        super().__init__()
        self.num_registers, self.spread = num_registers, spread
        self.token = nn.Parameter(torch.empty(num_registers, embed_dim))
        self.position = nn.Parameter(torch.empty(num_registers, embed_dim))
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def places(self, length: int) -> list[int]:
        """Sequence indices of the registers among ``length`` other tokens: the definition for insert and split."""
        return spread_places(self.num_registers, length) if self.spread else list(range(self.num_registers))

    def insert(self, x: Float[Tensor, "b m d"]) -> Float[Tensor, "b m+{self.num_registers} d"]:
        """Put the registers, with their positions, among the tokens."""
        return self._place(self.token + self.position, x)

    def insert_position(self, x: Float[Tensor, "b m d"]) -> Float[Tensor, "b m+{self.num_registers} d"]:
        """Put only the registers' positions among those of the tokens."""
        return self._place(self.position, x)

    def split(self, x: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor]:
        """Undo :meth:`insert`: return the registers (b, n, d) and the other tokens in their order."""
        x = x.index_select(1, registers_first(x, self.num_registers, self.spread))
        return x[:, : self.num_registers], x[:, self.num_registers :]

    def _place(self, registers: Float[Tensor, "n d"], x: Float[Tensor, "b m d"]) -> Float[Tensor, "b n+m d"]:
        order = register_order(x, self.num_registers, self.spread)
        registers = registers.to(x.dtype).expand(x.shape[0], -1, -1)  # (n, d) -> (b, n, d)
        return torch.cat([registers, x], dim=1).index_select(1, order)


@fx_leaf
def register_order(x: Float[Tensor, "b m d"], num_registers: int, spread: bool) -> Int[Tensor, " n"]:
    """Indices that rearrange the registers, followed by the tokens of ``x``, into sequence order."""
    return _sequence_places(x.shape[1], num_registers, spread, x.device).argsort()


@fx_leaf
def registers_first(x: Float[Tensor, "b n d"], num_registers: int, spread: bool) -> Int[Tensor, " n"]:
    """Indices that undo :func:`register_order`, from the sequence with its registers."""
    return _sequence_places(x.shape[1] - num_registers, num_registers, spread, x.device)


def _sequence_places(length: Any, num_registers: int, spread: bool, device: torch.device) -> Tensor:
    """Sequence indices of the registers, then of ``length`` other tokens; no lists, as exports keep the length free."""
    if isinstance(length, Tensor):
        length = int(length)  # a size under tracing
    registers = torch.arange(num_registers, device=device)
    others = torch.arange(length, device=device)
    gap = length // (num_registers + 1) if spread else 0
    if gap == 0:
        return torch.cat([registers, num_registers + others])
    before = (others // gap).clamp(max=num_registers)  # registers before each token
    return torch.cat([(registers + 1) * gap + registers, others + before])
