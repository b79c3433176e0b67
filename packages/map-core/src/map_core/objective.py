"""Masked autoregressive pretraining: hide tokens, encode the rest, and reconstruct the hidden ones region by region.

READ FIRST. ``MaskedAutoregression.forward`` is the method; each call in it is one step of the paper (arXiv 2410.00871,
section 4). The decoder reconstructs all hidden tokens in one pass, and its attention mask sets the order: with ``map``
a token attends to its own region and the earlier ones. The masks ``mae``, ``local_mae`` and ``ar`` give MAE, local MAE
and masked AR pretraining instead. The objectives that it is compared with are in ``objectives/``.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from map_core.decoder import RegionDecoder
from map_core.encoder import Backbone, require_causal
from map_core.errors import UserError, unknown_name
from map_core.initialization import init_weights, undecayed_parameters
from map_core.losses import MaskedMSE
from map_core.masking import Masking, TokenMask, predicted_tokens
from map_core.randomness import Draw
from map_core.regions import (
    ATTENTION_MASK_KINDS,
    AttentionMaskKind,
    GridRegions,
    RegionRule,
    order_by_region,
    region_attention_mask,
)
from map_core.tokens import Features, Regions, Tokens, gather_tokens

Loss = Callable[[Tensor, Tensor], Tensor]
# (inputs, tokens) -> one tensor (b, l, ...) per coarser scale
CoarserTargets = Callable[[Any, Tokens], Sequence[Tensor]]
EncoderKind = Literal["bidirectional", "causal"]


@dataclass(frozen=True)
class LossOutput:
    """The result of one pass of an objective.

    Attributes:
        loss: The value to minimise.
        scalars: Further numbers to log, by name.
    """

    loss: Float[Tensor, ""]
    scalars: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict, kw_only=True)


class Objective(nn.Module, abc.ABC):
    """Maps inputs, and the random draws of a step, to a loss; its ``backbone`` is the part that is exported.

    Attributes:
        backbone: The module to pretrain, a :class:`~map_core.encoder.Backbone`.
        reason_not_to_shard: Why the objective cannot be trained under FSDP; None where it can.
    """

    backbone: Any
    reason_not_to_shard: str | None = None

    @abc.abstractmethod
    def forward(self, inputs: Any, draw: Draw) -> LossOutput:
        """Compute the loss of a batch of inputs, in the form that the backbone's ``tokenize`` accepts."""

    def begin(self, total_steps: int) -> None:
        """Prepare for ``total_steps`` optimizer steps that start from the backbone's present weights."""

    def no_weight_decay(self) -> set[str]:
        return undecayed_parameters(self)


@dataclass(frozen=True)
class Reconstruction(LossOutput):
    """The result of one pass of an objective that predicts tokens: the loss, and what is needed to visualise it.

    Attributes:
        prediction: The head's output for the predicted tokens, in sequence order.
        tokens: The tokens of the batch.
        mask: Which of them were hidden.
        index: Sequence indices of the predicted tokens: the hidden ones, unless the objective says otherwise.
    """

    prediction: Float[Tensor, "b h ..."]
    tokens: Tokens
    mask: TokenMask
    index: Int[Tensor, "b h"]


class ReconstructingObjective(Objective):
    """An objective that predicts the targets of tokens, so that its predictions can be visualised.

    Attributes:
        masking: How many tokens are hidden, and which; None where the objective does not sample them.
        loss: A function of (prediction, target).
    """

    masking: Masking | None = None
    loss: Any

    @abc.abstractmethod
    def forward(self, inputs: Any, draw: Draw) -> Reconstruction: ...

    def rehearse(self, tokens: Tokens) -> None:
        """Check before training that every step can hide and predict such tokens; nothing is encoded.

        Raises:
            UserError: some step could not.
        """

    @torch.no_grad()
    def reconstruct(self, inputs: Any, draw: Draw) -> Reconstruction:
        """Predict values for visualisation, without gradients."""
        return self(inputs, draw)


class MaskedAutoregression(ReconstructingObjective):
    """Masked autoregressive pretraining (MAP) of any backbone, with any loss.

    At a mask ratio of 0 nothing is hidden and all tokens are predicted, each from its own region and the earlier ones:
    the autoencoding control of the paper's Table 5.

    >>> import torch
    >>> from map_core import Draw
    >>> from map_core.testing import toy_objective
    >>> objective = toy_objective()               # on grids of vectors (b, rows, cols, channels)
    >>> vectors = torch.randn(2, 4, 4, 4)
    >>> result = objective(vectors, Draw.of_batch(2, seed=0))
    >>> result.prediction.shape                   # half of the 16 tokens are hidden
    torch.Size([2, 8, 4])
    >>> result.loss.backward()

    Args:
        backbone: The module to pretrain and to export: ``objective.backbone.state_dict()``.
        decoder: Reconstructs the features of the hidden tokens.
        head: Maps the decoder's width to the values of a target, times the number of scales.
        loss: A function of (prediction, target), both (b, h, ...) of the hidden tokens; masked MSE when None.
        masking: How many tokens are hidden, and which; half of them at random when None.
        regions: Which tokens are predicted together; each row of the grid when None.
        attention: Kind of decoder mask, see :func:`~map_core.regions.region_attention_mask`.
        encoder: ``bidirectional`` reads all visible tokens; ``causal`` follows equations 3 to 5, where nothing from a
            later region reaches a prediction. It needs a backbone that scans one way.
        coarser_targets: Maps (inputs, tokens) to further targets: one tensor per coarser scale, each with its own loss.

    Raises:
        UserError: an unknown ``attention`` or ``encoder``; or ``backbone`` lacks something that the objective calls, or
            must encode causally and cannot.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: RegionDecoder,
        head: nn.Module,
        *,
        loss: Loss | None = None,
        masking: Masking | None = None,
        regions: RegionRule | None = None,
        attention: AttentionMaskKind = "map",
        encoder: EncoderKind = "bidirectional",
        coarser_targets: CoarserTargets | None = None,
    ) -> None:
        super().__init__()
        require_backbone(backbone)
        if attention not in ATTENTION_MASK_KINDS:
            raise unknown_name("attention mask kind", attention, ATTENTION_MASK_KINDS)
        if encoder not in get_args(EncoderKind):
            raise unknown_name("encoder", encoder, get_args(EncoderKind))
        if encoder == "causal":
            require_causal(backbone)
        self.backbone, self.decoder, self.head = backbone, decoder, head
        self.loss: Loss = loss or MaskedMSE()
        self.masking: Masking = masking or Masking()
        self.regions: RegionRule = regions or GridRegions("row")
        self.attention: AttentionMaskKind = attention
        self.encoder: EncoderKind = encoder
        self.coarser_targets = coarser_targets
        decoder.apply(init_weights)
        head.apply(init_weights)

    def forward(self, inputs: Any, draw: Draw) -> Reconstruction:
        """Hide tokens of the inputs and reconstruct them."""
        tokens = self.backbone.tokenize(inputs, targets=True)
        if self.encoder == "causal":  # in the order of prediction, so that a scan reads no later region
            tokens, _ = order_by_region(tokens, self.regions(tokens))
        # hide some of the tokens
        mask = self.masking(tokens, draw, self._regions_to_hide_in(tokens))
        regions = self.regions(tokens, mask)
        # the encoder reads the visible tokens
        features = self._encode(tokens, regions, mask)
        # each prediction sees its own region and the earlier ones
        attention_mask = region_attention_mask(regions.index, self.attention)
        decoded = self.decoder(features, tokens, mask, regions, attention_mask)
        # the head predicts the targets of the hidden tokens, and the loss compares the two
        index = predicted_tokens(tokens, mask)
        targets = [tokens.target, *(self.coarser_targets(inputs, tokens) if self.coarser_targets else ())]
        prediction, loss = self.predict_with_loss(decoded, [gather_tokens(t, index) for t in targets], draw)
        return Reconstruction(loss, prediction, tokens, mask, index)

    def rehearse(self, tokens: Tokens) -> None:
        for masking in self.masking.extremes:
            mask = masking(tokens, Draw.of_batch(tokens.batch_size), self._regions_to_hide_in(tokens))
            self.decoder.check(tokens, self.regions(tokens, mask))

    def predict_with_loss(
        self, decoded: Float[Tensor, "b h e"], targets: Sequence[Tensor], draw: Draw
    ) -> tuple[Tensor, Tensor]:
        """Predict the targets of every scale; return the finest prediction and the mean loss over all scales."""
        predictions = self.head(decoded).chunk(len(targets), dim=-1)
        pairs = zip(predictions, targets, strict=True)
        losses = [self.loss(prediction, target) for prediction, target in pairs]
        return predictions[0], losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _encode(self, tokens: Tokens, regions: Regions, mask: TokenMask) -> Features:
        if self.encoder == "causal":
            return self.backbone.encode_causally(tokens, regions, mask)
        return self.backbone.encode(tokens, mask)

    def _regions_to_hide_in(self, tokens: Tokens) -> Regions | None:
        return self.regions(tokens) if self.masking.scope == "region" else None


def require_backbone(backbone: nn.Module) -> None:
    """Check that a module is a :class:`~map_core.encoder.Backbone`.

    Raises:
        UserError: an attribute or method is missing.
    """
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"backbone {type(backbone).__name__} needs embed_dim, tokenize(inputs, targets=...) and "
            "encode(tokens, mask)"
        )
