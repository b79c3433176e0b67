"""A decoder of Mamba blocks whose scans, not an attention mask, decide which regions a prediction reads."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from map_core.blocks import MambaMixer, make_norm
from map_core.blocks.norm import NormKind
from map_core.decoder import RegionDecoder
from map_core.errors import UserError
from map_core.masking import TokenMask, predicted_tokens
from map_core.ops import selective_scan
from map_core.regions import AttentionMaskKind
from map_core.tokens import Features, Regions, Tokens, gather_tokens


class RegionMixer(MambaMixer):
    """Two scans over tokens in the order of their regions; ``attention`` decides which scans cross region borders.

    ``map``: the forward scan runs through all regions, the backward scan within each, so that a token reads its whole
    region and those before it. ``ar``: only the forward scan. ``local_mae``: both within each region. ``mae``: both
    through all.

    Args:
        embed_dim: Width.
        attention: Named after the attention mask that allows the same reads.
    """

    def __init__(self, embed_dim: int, attention: AttentionMaskKind) -> None:
        super().__init__(embed_dim, bidirectional=attention != "ar")
        self.attention: AttentionMaskKind = attention
        if self.scan_backward is not None and attention == "map":
            self.scan_backward.reverse = False  # mix flips its regions

    def mix(self, x: Float[Tensor, "b l d"], num_regions: int) -> Float[Tensor, "b l d"]:
        """Mix tokens of ``num_regions`` regions of equal size."""
        if self.attention == "local_mae":
            return (
                self(x.unflatten(1, (num_regions, -1)).flatten(0, 1))
                .unflatten(0, (x.shape[0], -1))
                .flatten(1, 2)
            )
        if self.attention != "map":
            return self(x)
        assert self.scan_backward is not None
        projected = self.in_proj(x)
        # (b, r * s, 2e) -> (b * r, s, 2e), each region from its last token to its first; flipped here, because a scan
        # in reverse would sum the gradients of the weights in another order
        flipped = projected.unflatten(1, (num_regions, -1)).flatten(0, 1).flip(1)
        forward = self._scan(self.scan_forward, projected)
        backward = (
            self._scan(self.scan_backward, flipped).flip(1).unflatten(0, (x.shape[0], -1)).flatten(1, 2)
        )
        return self.out_proj(0.5 * (forward + backward))

    def _scan(self, direction: nn.Module, projected: Tensor) -> Tensor:
        x, z = projected.chunk(2, dim=-1)
        inputs = direction(x, self.conv_backend)
        return selective_scan(**vars(inputs), z=z, backend=self.scan_backend)


class RegionMambaBlock(nn.Module):
    """``x + mixer(norm(x))`` over tokens in the order of their regions.

    Args:
        embed_dim: Width.
        attention: See :class:`RegionMixer`.
        norm: See :func:`~map_core.blocks.make_norm`.
    """

    def __init__(self, embed_dim: int, attention: AttentionMaskKind, norm: NormKind = "rms") -> None:
        super().__init__()
        self.norm = make_norm(norm, embed_dim)
        self.mixer = RegionMixer(embed_dim, attention)

    def forward(self, x: Float[Tensor, "b l d"], num_regions: int) -> Float[Tensor, "b l d"]:
        return x + self.mixer.mix(self.norm(x), num_regions)


class MambaRegionDecoder(RegionDecoder):
    """A region decoder of Mamba blocks: a prediction reads exactly what the attention mask of its kind would allow.

    Args:
        encoder_dim: Width of the encoder's features.
        position: Position embedding of the decoder's width.
        embed_dim, depth: Shape of the decoder.
        attention: The objective's kind of attention mask.
        norm: Norm of the blocks.
    """

    def __init__(
        self,
        encoder_dim: int,
        position: nn.Module,
        *,
        embed_dim: int,
        depth: int,
        attention: AttentionMaskKind,
        norm: NormKind = "rms",
    ) -> None:
        make_block = partial(RegionMambaBlock, embed_dim, attention, norm)
        super().__init__(encoder_dim, position, embed_dim=embed_dim, depth=depth, make_block=make_block)
        self.attention = attention

    def forward(
        self,
        features: Features,
        tokens: Tokens,
        mask: TokenMask,
        regions: Regions,
        attention_mask: Bool[Tensor, "#b l l"],
    ) -> Float[Tensor, "b h e"]:
        """Return the decoded features of the predicted tokens; the scans stand in for the attention mask."""
        self.check(tokens, regions)
        order = torch.argsort(regions.index, dim=1, stable=True)
        x = gather_tokens(self.sequence(features, tokens, mask), order)
        for block in self.blocks:
            x = block(x, regions.count)
        x = gather_tokens(x, order.argsort(dim=1))  # back to the order of the sequence
        return self.norm(gather_tokens(x, predicted_tokens(tokens, mask)))

    def check(self, tokens: Tokens, regions: Regions) -> None:
        if tokens.num_global:
            raise UserError("a Mamba decoder has no place for global tokens: use a Transformer decoder")
        scans_within_regions = self.attention in ("map", "local_mae")
        if scans_within_regions and regions.count * regions.smallest != tokens.length:
            raise UserError(
                f"a Mamba decoder with attention {self.attention} needs regions of equal size, but these "
                f"{regions.count} regions of {tokens.length} tokens differ: choose regions of one size, or attention "
                "ar or mae"
            )
