"""Encoders of the visible tokens; the hybrid one stacks Mamba and Transformer blocks as a layout string says."""

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
from map_core.errors import UserError, unknown_name
from map_core.layout import expand_layout
from map_core.masking import TokenMask
from map_core.positions import embed_positions
from map_core.regions import region_attention_mask
from map_core.registers import Registers
from map_core.tokens import Features, Regions, Tokens, gather_tokens
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
    :func:`~map_core.regions.order_by_region`.
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
            f"{type(backbone).__name__} lacks; choose another model, or an objective whose encoder reads all it sees"
        )
    if any(isinstance(module, ScanDirection) and module.reverse for module in backbone.modules()):
        raise UserError(
            "a causal encoder scans one way, but the Mamba layers of this model scan both: set "
            "--model.bidirectional false (images) or --model.scan forward (clouds), and choose a layout of M and T"
        )
    for module in backbone.modules():
        if isinstance(module, HybridEncoder):
            module.refuse_registers()


@fx_leaf
def every_index(x: Float[Tensor, "b l d"]) -> Int[Tensor, "1 l"]:
    """The sequence index of every token."""
    return torch.arange(x.shape[1], device=x.device).unsqueeze(0)


@dataclass(frozen=True)
class LayerFeatures:
    """Unnormalised output of one layer: features of the patches, and of the registers where there are any."""

    patches: Features
    registers: Float[Tensor, "b n d"] | None


@dataclass(frozen=True)
class _BlockInputs:
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
        layout: See :func:`~map_core.layout.expand_layout`; each letter is a key of ``block_makers``.
        block_makers: Function of (width, drop-path rate) that makes the block of each letter. Blocks map
            (x, position) to x's shape; position holds raw coordinates of the tokens, without the registers. To
            encode causally they are called with a third argument, the attention mask.
        position: Position embedding: a module that maps raw coordinates (b or 1, l, p) and grid to (b or 1, l, d).
        norm: The final norm.
        drop_path_rate: Stochastic depth, growing linearly from 0 at the first layer to this rate at the last.
        registers: Global tokens of the classification form, inserted where the tokens carry none (``num_global``);
            tokens that do carry some get the registers' positions. None in pretraining without global tokens.
        repeat_position: Add the position embedding before every block, not only before the first.
        wiring: What a Transformer block reads: see :meth:`_run_branch_wired`.

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

    def set_grad_checkpointing(self, enable: bool = True, *, every: int = 1) -> None:
        """Recompute every n-th block in the backward pass instead of storing its activations; ``every=1`` is all.

        Raises:
            UserError: ``every`` below 1.
        """
        if every < 1:
            raise UserError(f"every must be at least 1, which recomputes every block; got {every}")
        self.activation_checkpointing, self.recompute_every = enable, every

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
        inputs = self._block_inputs(tokens, mask)
        attention_mask = region_attention_mask(gather_tokens(regions.index, inputs.index), "map")
        return self.normalize(self._last_layer(replace(inputs, attention_mask=attention_mask))).patches

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
        return self._last_layer(self._block_inputs(tokens, mask))

    def layer_outputs(self, tokens: Tokens, mask: TokenMask | None = None) -> Iterator[LayerFeatures]:
        """Yield the output of every layer in turn, before the final norm."""
        inputs = self._block_inputs(tokens, mask)
        for x in self._stack(inputs):
            yield self._layer_features(x, inputs)

    def normalize(self, features: LayerFeatures) -> LayerFeatures:
        """Apply the final norm to patches and registers."""
        patches = Features(self.norm(features.patches.embedding), features.patches.index)
        return LayerFeatures(patches, None if features.registers is None else self.norm(features.registers))

    def _block_inputs(self, tokens: Tokens, mask: TokenMask | None) -> _BlockInputs:
        """Add the position embedding, drop the hidden tokens, and insert the registers."""
        x = residual_stream(tokens.embedding)
        position = tokens.position
        front = self.registers.position if self.registers is not None and tokens.num_global else None
        embedded = embed_positions(self.position, tokens, front).to(x.dtype)
        x = x + embedded
        # only the visible tokens go on
        if mask is None:
            index = every_index(x)
        else:
            index = mask.keep
            x, position = gather_tokens(x, index), gather_tokens(position, index)
        # the positions to add again before every later block
        repeated = None
        if self.repeat_position:
            repeated = embedded if mask is None else gather_tokens(embedded, index)
            repeated = repeated.expand_as(x)
        # registers, unless the tokens bring global ones already
        inserted = self.registers is not None and tokens.num_global == 0
        if self.registers is not None and inserted:
            x = self.registers.insert(x)
            repeated = None if repeated is None else self.registers.insert_position(repeated)
        return _BlockInputs(x, position, index, repeated, inserted)

    def _last_layer(self, inputs: _BlockInputs) -> LayerFeatures:
        x = inputs.x
        for output in self._stack(inputs):
            x = output
        return self._layer_features(x, inputs)

    def _stack(self, inputs: _BlockInputs) -> Iterator[Tensor]:
        """Yield the output of every block in turn."""
        x, branch = inputs.x, None
        arguments: tuple[Tensor, ...] = (inputs.position,)
        if inputs.attention_mask is not None:
            arguments += (inputs.attention_mask,)
        for i, block in enumerate(self.blocks):
            if inputs.repeated is not None and i > 0:
                x = x + inputs.repeated
            if self.wiring == "branch":
                x, branch = self._run_branch_wired(i, x, branch, *arguments)
            else:
                x = self._run(i, block, x, *arguments)
            yield x

    def _run_branch_wired(
        self, i: int, x: Tensor, branch: Tensor | None, *arguments: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run block i with the wiring of the authors' code; return the stream and the branch, its latest addition.

        Mamba blocks read the stream and add to it, as usual. A Transformer block reads the latest addition h instead
        of the stream, and adds Block(h) = h + attention + MLP to the stream; the latest addition is then h + Block(h).
        """
        block = self.blocks[i]
        if self.layout[i] == "T":
            assert branch is not None
            added = self._run(i, block, branch, *arguments)
            return x + added, branch + added
        branch = self._run(i, partial(block, residual=False), x, *arguments)
        return x + branch, branch

    def _run(self, i: int, block: Callable[..., Tensor], x: Tensor, *arguments: Tensor) -> Tensor:
        """Run block i, or its branch; activation checkpointing recomputes every n-th block in the backward pass."""
        if self.activation_checkpointing and self.training and i % self.recompute_every == 0:
            return checkpoint(block, x, *arguments, use_reentrant=False)
        return block(x, *arguments)

    def _layer_features(self, x: Tensor, inputs: _BlockInputs) -> LayerFeatures:
        registers = None
        if self.registers is not None and inputs.inserted:
            registers, x = self.registers.split(x)
        return LayerFeatures(Features(x, inputs.index), registers)


def _check_wiring(wiring: str, letters: str) -> None:
    if wiring not in get_args(Wiring):
        raise unknown_name("wiring", wiring, get_args(Wiring))
    if wiring == "branch" and (letters[0] == "T" or set(letters) - set("MT")):
        raise UserError(
            "wiring 'branch' needs a layout of M and T that begins with M, whose output the first T reads; "
            f"got {letters!r}"
        )
