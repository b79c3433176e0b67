"""The settings of masked autoregression, the paper's objective; ``map_core/objective.py`` is the objective."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from map_core.blocks.norm import NormKind
from map_core.decoder import RegionDecoder
from map_core.errors import UserError
from map_core.objective import EncoderKind, MaskedAutoregression
from map_core.objectives.mamba_decoder import MambaRegionDecoder
from map_core.objectives.settings import DecoderSettings, MaskingSettings, Method, ObjectiveSettings
from map_core.ops import Linear
from map_core.ranges import refuse_without_effect
from map_core.regions import AttentionMaskKind


@dataclass
class MaskedAutoregressionConfig(DecoderSettings, MaskingSettings, ObjectiveSettings):
    """What is hidden, and how it is reconstructed.

    Args:
        attention: Decoder mask: map, mae, local_mae or ar (each hidden token from its region so far and earlier
            ones, in the order of the scan; the encoder reads all visible tokens. For autoregression in the usual
            sense see the method autoregression).
        encoder: Whether features of visible tokens may have read later regions; causal needs Mamba layers that scan
            one way.
        decoder: What the decoder is made of.
        decoder_norm: Norm of a Mamba decoder's blocks; PointMamba uses layer.
        decoder_repeat_position: Add positions before every block of a Transformer decoder, as Point-MAE does, not once.
        target_scales: Predict targets of several scales at once: 1 is the token's own; others are coarser
            neighbourhoods (images: odd numbers of patches, pooled; clouds: patches of that many times the points).
    """

    method: Method = field(default="masked_autoregression", kw_only=True)
    attention: AttentionMaskKind = "map"
    encoder: EncoderKind = "bidirectional"
    decoder: Literal["transformer", "mamba"] = "transformer"
    decoder_norm: NormKind = "rms"
    decoder_repeat_position: bool = False
    target_scales: tuple[int, ...] = (1,)

    def validate(self) -> None:
        super().validate()
        if self.decoder == "mamba" and self.decoder_repeat_position:
            raise UserError(
                "objective.decoder_repeat_position is of a Transformer decoder; a Mamba decoder adds positions once: "
                "leave it out"
            )
        if not self.has_transformer:  # recipes set heads where the default does not divide their width
            transformer_only, because = ("decoder_mlp_ratio", "decoder_norm_eps"), "objective.decoder mamba"
            refuse_without_effect("objective", self, *transformer_only, because=because)
        if self.decoder == "transformer" and self.decoder_norm != "rms":
            raise UserError(
                f"objective.decoder_norm ({self.decoder_norm}) is of a Mamba decoder; a Transformer decoder has layer "
                "norms: set --objective.decoder_norm rms, or --objective.decoder mamba"
            )
        scales = self.target_scales
        if not scales or scales[0] != 1 or min(scales) < 1 or list(scales) != sorted(set(scales)):
            raise UserError(
                f"objective.target_scales must begin with 1 and grow, such as [1, 3]; got {list(scales)}"
            )

    @property
    def has_transformer(self) -> bool:
        return self.decoder == "transformer"

    @property
    def is_causal(self) -> bool:
        return self.attention in ("map", "ar") or self.encoder == "causal"

    def build(self, backbone: Any) -> MaskedAutoregression:
        coarser = self.target_scales[1:]
        return MaskedAutoregression(
            backbone,
            self.make_decoder(backbone),
            Linear(self.decoder_dim, self.target_dim(backbone) * len(self.target_scales)),
            loss=self.make_loss(),
            masking=self.masking,
            regions=self.make_regions(backbone),
            attention=self.attention,
            encoder=self.encoder,
            coarser_targets=self.make_coarser_targets(backbone, coarser) if coarser else None,
        )

    def make_decoder(self, backbone: Any) -> RegionDecoder:
        """The decoder that these settings describe."""
        position: nn.Module = self.make_position(backbone, self.decoder_dim)
        if self.decoder == "transformer":
            num_global = self.global_tokens(backbone)
            return RegionDecoder(
                backbone.embed_dim,
                position,
                num_global=num_global,
                repeat_position=self.decoder_repeat_position,
                **self.transformer,
            )
        return MambaRegionDecoder(
            backbone.embed_dim,
            position,
            embed_dim=self.decoder_dim,
            depth=self.decoder_depth,
            attention=self.attention,
            norm=self.decoder_norm,
        )
