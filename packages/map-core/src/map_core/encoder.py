"""Encoders of the visible tokens; the hybrid one stacks Mamba and Transformer blocks as a layout string says."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from map_core.blocks import residual_stream
from map_core.blocks.mamba import ScanDirection
from map_core.errors import UserError, near_matches
from map_core.masking import TokenMask
from map_core.regions import region_attention_mask
from map_core.tokens import Features, Regions, Tokens, gather_tokens, spread_places
from map_core.tracing import fx_leaf

Wiring = Literal["residual", "branch"]
BlockMaker = Callable[[int, float], nn.Module]  # (embed_dim, drop_path) -> block


@runtime_checkable
class Backbone(Protocol):
    """The module that is pretrained, exported and finetuned: it turns inputs into tokens and encodes them.

    With ``targets``, ``tokenize`` attaches what an objective reconstructs. ``encode`` returns features of (at
    least) the visible tokens; a backbone that cannot drop tokens paints over the hidden ones and returns
    features at every position, where the decoder replaces those of hidden tokens by its mask token.
    """

    embed_dim: int

    def tokenize(self, inputs: Any, *, targets: bool = False) -> Tokens: ...

    def encode(self, tokens: Tokens, mask: TokenMask | None = None) -> Features: ...


@runtime_checkable
class CausalBackbone(Backbone, Protocol):
    """A backbone that can encode each token without reading later regions.

    ``encode_causally`` is ``encode`` for tokens laid out region by region, see
    :func:`~map_core.regions.region_by_region`.
    """

    def encode_causally(
        self, tokens: Tokens, regions: Regions, mask: TokenMask | None = None
    ) -> Features: ...


def require_causal(backbone: nn.Module) -> None:
    """Check that a backbone can encode causally.

    Raises:
        UserError: it has no ``encode_causally``, its Mamba layers also scan backwards, or it has registers.
    """
    if not isinstance(backbone, CausalBackbone):
        raise UserError(
            f"a causal encoder needs a backbone with encode_causally(tokens, regions, mask), which "
            f"{type(backbone).__name__} has not; choose another model, or an objective whose encoder reads all it sees"
        )
    if any(isinstance(module, ScanDirection) and module.reverse for module in backbone.modules()):
        raise UserError(
            "a causal encoder scans one way, but the Mamba layers of this model scan both: set "
            "--model.bidirectional false (images) or --model.scan forward (clouds), and choose a layout of M and T"
        )
    for module in backbone.modules():
        if isinstance(module, HybridEncoder):
            module.refuse_registers()


def expand_layout(layout: str) -> str:
    """Expand a layout with counts to one letter per layer.

    >>> expand_layout("(MMT)x2"), expand_layout("Mx2,Tx1")
    ('MMTMMT', 'MMT')

    Raises:
        UserError: the layout does not parse.
    """
    letters = ""
    for part in layout.replace(" ", "").split(","):
        match = re.fullmatch(
            r"(?:\((?P<group>[A-Z]+)\)|(?P<single>[A-Z])|(?P<plain>[A-Z]+))(?:x(?P<count>[1-9]\d*))?", part
        )
        if match is None or (match["plain"] and match["count"]):
            raise UserError(
                f"layout {layout!r} does not parse at {part!r}; write letters with counts, for example "
                "'(MMMT)x8', 'Mx24,Tx8' or 'MMMT'"
            )
        letters += (match["group"] or match["single"] or match["plain"]) * int(match["count"] or 1)
    return letters


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


@fx_leaf
def every_index(x: Float[Tensor, "b l d"]) -> Int[Tensor, "1 l"]:
    """The sequence index of every token."""
    return torch.arange(x.shape[1], device=x.device).unsqueeze(0)


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


@dataclass(frozen=True)
class LayerFeatures:
    """Unnormalised output of one layer: features of the patches, and of the registers where there are any."""

    patches: Features
    registers: Float[Tensor, "b n d"] | None


@dataclass(frozen=True)
class _Visible:
    """The input of the stack of blocks.

    Attributes:
        x: The sequence.
        position: Raw coordinates of its tokens.
        index: Their indices among all tokens.
        repeated: Position embedding to add again before every block but the first.
        inserted: Whether registers were inserted among the tokens.
        attention_mask: True where query i may attend to key j; None allows all pairs.
    """

    x: Float[Tensor, "b n d"]
    position: Float[Tensor, "#b m p"]
    index: Tensor
    repeated: Float[Tensor, "b n d"] | None
    inserted: bool
    attention_mask: Bool[Tensor, "#b n n"] | None = None


class HybridEncoder(nn.Module):
    """A stack of blocks, one letter of the layout each, over the visible tokens in scan order.

    >>> from map_core.blocks import MambaBlock, TransformerBlock, make_norm
    >>> from map_core.masking import sample_mask
    >>> from map_core.positions import make_position
    >>> from map_core.testing import toy_tokens
    >>> makers = {
    ...     "M": lambda width, drop_path: MambaBlock(width, drop_path=drop_path),
    ...     "T": lambda width, drop_path: TransformerBlock(width, num_heads=2, drop_path=drop_path),
    ... }
    >>> position, norm = make_position("sincos", 16), make_norm("rms", 16)
    >>> encoder = HybridEncoder(16, "MMMT", block_makers=makers, position=position, norm=norm)
    >>> tokens = toy_tokens(grid=(4, 4), embed_dim=16)
    >>> encoder.encode(tokens, sample_mask(tokens, 0.5)).embedding.shape
    torch.Size([1, 8, 16])

    Args:
        embed_dim: Width.
        layout: See :func:`expand_layout`; each letter is a key of ``block_makers``.
        block_makers: Function of (width, drop-path rate) that makes the block of each letter. Blocks map
            (x, position) to x's shape; position holds raw coordinates of the tokens, without the registers. To
            encode causally they are called with a third argument, the attention mask.
        position: Position embedding: a module that maps raw coordinates (b or 1, l, p) and grid to (b or 1, l, d).
        norm: The final norm.
        drop_path_rate: Stochastic depth, growing linearly from 0 at the first layer to this rate at the last.
        registers: Global tokens of the classification form, inserted where the tokens carry none (``num_global``);
            tokens that do carry some get the registers' positions. None in pretraining without global tokens.
        repeat_position: Add the position embedding before every block, not only before the first.
        wiring: What a Transformer block reads: see :meth:`_add_block`.

    Raises:
        UserError: a layout that does not parse, uses a letter without a maker or does not suit the wiring.
    """

    def __init__(
        self,
        embed_dim: int,
        layout: str,
        *,
        block_makers: Mapping[str, BlockMaker],
        position: nn.Module,
        norm: nn.Module,
        drop_path_rate: float = 0.0,
        registers: Registers | None = None,
        repeat_position: bool = False,
        wiring: Wiring = "residual",
    ) -> None:
        super().__init__()
        letters = expand_layout(layout)
        _check_wiring(wiring, letters)
        unknown = set(letters) - set(block_makers)
        if unknown:
            raise UserError(
                f"layout {layout!r} uses {', '.join(sorted(unknown))}; "
                f"known layers: {', '.join(sorted(block_makers))}"
            )
        self.embed_dim, self.layout = embed_dim, letters
        self.activation_checkpointing = False
        self.recompute_every = 1
        self.position = position
        self.registers = registers
        self.repeat_position = repeat_position
        self.wiring = wiring
        rates = [drop_path_rate * i / max(len(letters) - 1, 1) for i in range(len(letters))]
        self.blocks = nn.ModuleList(
            block_makers[letter](embed_dim, rate) for letter, rate in zip(letters, rates, strict=True)
        )
        self.norm = norm

    def encode(self, tokens: Tokens, mask: TokenMask | None = None) -> Features:
        """Encode the visible tokens (all tokens if there is no mask) and apply the final norm."""
        return self.normalize(self.last_layer(tokens, mask)).patches

    def encode_causally(self, tokens: Tokens, regions: Regions, mask: TokenMask | None = None) -> Features:
        """Encode the visible tokens so that none reads a region later than its own.

        Args:
            tokens: Laid out region by region, so that a scan reads no later region either.
            regions: The region of each token.
            mask: Which tokens are hidden.

        Raises:
            UserError: the encoder has registers, which would read all regions.
        """
        self.refuse_registers()
        visible = self._visible(tokens, mask)
        attention_mask = region_attention_mask(gather_tokens(regions.index, visible.index), "map")
        return self.normalize(self._last_layer(replace(visible, attention_mask=attention_mask))).patches

    def refuse_registers(self) -> None:
        """Check that there are no registers, which rule out encoding causally.

        Raises:
            UserError: there are some.
        """
        if self.registers is not None:
            raise UserError(
                "an encoder with registers cannot encode causally: create the model without any "
                "(--model.keep_registers false)"
            )

    def forward(self, tokens: Tokens, mask: TokenMask | None = None) -> Features:
        return self.encode(tokens, mask)

    def last_layer(self, tokens: Tokens, mask: TokenMask | None = None) -> LayerFeatures:
        """Output of the last layer, registers included, before the final norm."""
        return self._last_layer(self._visible(tokens, mask))

    def layers(self, tokens: Tokens, mask: TokenMask | None = None) -> Iterator[LayerFeatures]:
        """Yield the output of every layer in turn, before the final norm."""
        visible = self._visible(tokens, mask)
        for layer in self._stack(visible):
            yield self._layer_features(layer, visible)

    def normalize(self, features: LayerFeatures) -> LayerFeatures:
        """Apply the final norm to patches and registers."""
        patches = Features(self.norm(features.patches.embedding), features.patches.index)
        return LayerFeatures(patches, None if features.registers is None else self.norm(features.registers))

    def _visible(self, tokens: Tokens, mask: TokenMask | None) -> "_Visible":
        x = residual_stream(tokens.embedding)
        position = tokens.position
        embedded = self._embedded_position(tokens).to(x.dtype)
        x = x + embedded
        if mask is None:
            index = every_index(x)
        else:
            index = mask.keep
            x, position = gather_tokens(x, index), gather_tokens(position, index)
        repeated = None
        if self.repeat_position:
            repeated = embedded if mask is None else gather_tokens(embedded, index)
            repeated = repeated.expand_as(x)
        inserted = self.registers is not None and tokens.num_global == 0
        if self.registers is not None and inserted:
            x = self.registers.insert(x)
            repeated = None if repeated is None else self.registers.insert_position(repeated)
        return _Visible(x, position, index, repeated, inserted)

    def _embedded_position(self, tokens: Tokens) -> Float[Tensor, "#b l d"]:
        """Position embedding of the tokens; global tokens take the registers' positions, where there are registers."""
        n = tokens.num_global
        if n == 0 or self.registers is None:
            return self.position(tokens.position, tokens.grid)
        others = self.position(tokens.position[:, n:], tokens.grid)
        front = self.registers.position.to(others.dtype).expand(others.shape[0], -1, -1)
        return torch.cat([front, others], dim=1)

    def _last_layer(self, visible: "_Visible") -> LayerFeatures:
        x = visible.x
        for layer in self._stack(visible):
            x = layer
        return self._layer_features(x, visible)

    def _stack(self, visible: "_Visible") -> Iterator[Tensor]:
        x, branch = visible.x, None
        for i, block in enumerate(self.blocks):
            if visible.repeated is not None and i > 0:
                x = x + visible.repeated
            mask = () if visible.attention_mask is None else (visible.attention_mask,)
            if self.wiring == "branch":
                x, branch = self._add_block(i, x, branch, visible.position, *mask)
            else:
                x = self._run(i, block, x, visible.position, *mask)
            yield x

    def _add_block(
        self, i: int, x: Tensor, branch: Tensor | None, position: Tensor, *mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run block i with the wiring of the authors' code; return the stream and the branch, its latest addition.

        Mamba blocks read the stream and add to it, as usual. A Transformer block reads the latest addition h instead
        of the stream, and adds Block(h) = h + attention + MLP to the stream; the latest addition is then h + Block(h).
        """
        block = self.blocks[i]
        if self.layout[i] == "T":
            assert branch is not None
            added = self._run(i, block, branch, position, *mask)
            return x + added, branch + added
        branch = self._run(i, partial(block, residual=False), x, position)
        return x + branch, branch

    def _run(
        self, i: int, block: Callable[..., Tensor], x: Tensor, position: Tensor, *mask: Tensor
    ) -> Tensor:
        """Run block i, or its branch; activation checkpointing recomputes every n-th block in the backward pass."""
        if self.activation_checkpointing and self.training and i % self.recompute_every == 0:
            return checkpoint(block, x, position, *mask, use_reentrant=False)
        return block(x, position, *mask)

    def _layer_features(self, x: Tensor, visible: "_Visible") -> LayerFeatures:
        registers = None
        if self.registers is not None and visible.inserted:
            registers, x = self.registers.split(x)
        return LayerFeatures(Features(x, visible.index), registers)


def _check_wiring(wiring: str, letters: str) -> None:
    if wiring not in get_args(Wiring):
        raise UserError(f"wiring {wiring!r} is unknown; {near_matches(wiring, get_args(Wiring))}")
    if wiring == "branch" and (letters[0] == "T" or set(letters) - set("MT")):
        raise UserError(
            "wiring 'branch' needs a layout of M and T that begins with M, whose output the first T reads; "
            f"got {letters!r}"
        )
