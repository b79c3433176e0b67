"""Masked autoregressive pretraining: hide tokens, encode the rest, reconstruct the hidden region by region.

READ FIRST. ``MaskedAutoregression.forward`` is the method; every call in it is one step of the paper (arXiv
2410.00871, section 4). MAE, local MAE and AR pretraining are the attention masks ``mae``, ``local_mae`` and
``ar``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from map_core.decoder import RegionDecoder
from map_core.encoder import Encoder
from map_core.errors import UserError
from map_core.initialization import init_weights, undecayed_parameters
from map_core.losses import masked_mse
from map_core.masking import MaskScope, MaskStrategy, TokenMask, sample_mask, truncated_normal_ratio
from map_core.regions import AttentionMaskKind, region_attention_mask
from map_core.tokens import Tokens, gather_tokens

RegionRule = Callable[[Tokens, TokenMask], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Reconstruction:
    """What one pass of the objective leaves: the loss, and what a picture of it needs.

    Attributes:
        loss: Mean over all hidden tokens.
        prediction: The head's output for the hidden tokens, in sequence order.
        tokens: The tokens of the batch.
        mask: Which of them were hidden.
    """

    loss: Float[Tensor, ""]
    prediction: Float[Tensor, "b h ..."]
    tokens: Tokens
    mask: TokenMask


def own_region(tokens: Tokens, mask: TokenMask) -> Tensor:
    """The default region rule: a token's region is fixed before hiding."""
    return tokens.region


class MaskedAutoregression(nn.Module):
    """The objective, for any tokenizer, encoder and loss.

    Args:
        tokenizer: Module from inputs to :class:`Tokens` with targets.
        encoder: An :class:`~map_core.encoder.Encoder` that is a module.
        decoder: Reconstructs the hidden tokens' features.
        head: From the decoder's width to the values of a target.
        loss: Of (prediction, target), both (b, h, ...) of the hidden tokens.
        mask_ratio: Share of tokens to hide when the call names none.
        mask_strategy, mask_scope: See :func:`~map_core.masking.sample_mask`.
        attention: Kind of decoder mask, see :func:`~map_core.regions.region_attention_mask`.
        region_rule: Region of each token, given the mask.
    """

    def __init__(
        self,
        tokenizer: nn.Module,
        encoder: nn.Module,
        decoder: RegionDecoder,
        head: nn.Module,
        *,
        loss: Loss = masked_mse,
        mask_ratio: float = 0.5,
        mask_strategy: MaskStrategy = "random",
        mask_scope: MaskScope = "all",
        attention: AttentionMaskKind = "map",
        region_rule: RegionRule = own_region,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise UserError(
                f"encoder {type(encoder).__name__} needs an encode(tokens, mask) method and embed_dim"
            )
        self.tokenizer, self.encoder = tokenizer, encoder
        self.decoder, self.head = decoder, head
        self.loss, self.region_rule = loss, region_rule
        self.mask_ratio, self.mask_strategy, self.mask_scope = mask_ratio, mask_strategy, mask_scope
        self.attention: AttentionMaskKind = attention
        decoder.apply(init_weights)
        head.apply(init_weights)

    def forward(
        self, inputs: Any, *, ratio: float | None = None, noise: Float[Tensor, "b l"] | None = None
    ) -> Reconstruction:
        """Hide tokens of the inputs and reconstruct them.

        Args:
            inputs: A batch that the tokenizer reads.
            ratio: Share to hide; ``mask_ratio`` when None.
            noise: Decides the random strategy, see :func:`~map_core.masking.mask_noise`.
        """
        tokens = self.tokenizer(inputs)
        ratio = self.mask_ratio if ratio is None else ratio
        mask = sample_mask(tokens, ratio, self.mask_strategy, noise=noise, scope=self.mask_scope)
        features = self.encoder.encode(tokens, mask)
        attention_mask = region_attention_mask(self.region_rule(tokens, mask), self.attention)
        prediction = self.head(self.decoder(features, tokens, mask, attention_mask))
        loss = self.loss(prediction, gather_tokens(tokens.target, mask.drop))
        return Reconstruction(loss, prediction, tokens, mask)

    def no_weight_decay(self) -> set[str]:
        return undecayed_parameters(self)


@dataclass
class ObjectiveConfig:
    """What is hidden, and how it is reconstructed.

    Args:
        mask_ratio: Share of tokens hidden from the encoder, inside (0, 1).
        mask_ratio_std: Draw the ratio of each step from a normal around mask_ratio with this deviation,
            truncated to mask_ratio_bounds (the authors' code: .25); fixed when not given.
        mask_ratio_bounds: Lowest and highest drawn ratio.
        mask_strategy: Which tokens are hidden.
        mask_scope: Choose among all tokens, or within each region.
        attention: Decoder mask: map, mae, local_mae or ar.
        decoder_depth: Transformer blocks of the decoder.
        decoder_dim: Width of the decoder.
        decoder_heads: Attention heads of the decoder.
        decoder_mlp_ratio: MLP width over decoder_dim.
    """

    mask_ratio: float = 0.5
    mask_ratio_std: float | None = None
    mask_ratio_bounds: tuple[float, float] = (0.3, 0.7)
    mask_strategy: MaskStrategy = "random"
    mask_scope: MaskScope = "all"
    attention: AttentionMaskKind = "map"
    decoder_depth: int = 4
    decoder_dim: int = 192
    decoder_heads: int = 16
    decoder_mlp_ratio: float = 4.0

    def validate(self) -> None:
        """Check what can be checked before any data is read.

        Raises:
            UserError: naming the field, its value and the rule.
        """
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"objective.mask_ratio must lie inside (0, 1); got {self.mask_ratio}")
        low, high = self.mask_ratio_bounds
        if self.mask_ratio_std is not None and not 0 < low < high < 1:
            raise UserError(f"objective.mask_ratio_bounds must satisfy 0 < low < high < 1; got {low}, {high}")
        if self.mask_ratio_std is not None and self.mask_ratio_std <= 0:
            raise UserError(f"objective.mask_ratio_std must be positive; got {self.mask_ratio_std}")
        for name in ("decoder_depth", "decoder_dim", "decoder_heads"):
            if getattr(self, name) < 1:
                raise UserError(f"objective.{name} must be at least 1; got {getattr(self, name)}")
        if self.decoder_dim % self.decoder_heads:
            raise UserError(
                f"objective.decoder_dim ({self.decoder_dim}) must be a multiple of objective.decoder_heads "
                f"({self.decoder_heads})"
            )

    def ratio(self, seed: int, step: int) -> float:
        """The masking ratio of a step: fixed, or one keyed draw for all processes."""
        if self.mask_ratio_std is None:
            return self.mask_ratio
        return truncated_normal_ratio(
            seed, step, self.mask_ratio, self.mask_ratio_std, self.mask_ratio_bounds
        )
