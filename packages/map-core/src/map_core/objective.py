"""Masked autoregressive pretraining: hide tokens, encode the rest, reconstruct the hidden region by region.

READ FIRST. ``MaskedAutoregression.forward`` is the method; every call in it is one step of the paper (arXiv
2410.00871, section 4). MAE, local MAE and masked AR pretraining are the attention masks ``mae``, ``local_mae`` and
``ar``. The objectives that it is compared with are in ``objectives/``.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from map_core.decoder import RegionDecoder
from map_core.encoder import Backbone, require_causal
from map_core.errors import UserError
from map_core.initialization import init_weights, undecayed_parameters
from map_core.losses import MaskedMSE
from map_core.masking import Masking, TokenMask, predicted_tokens
from map_core.randomness import Draw
from map_core.regions import (
    AttentionMaskKind,
    GridRegions,
    RegionRule,
    region_attention_mask,
    region_by_region,
)
from map_core.tokens import Features, Tokens, gather_tokens

Loss = Callable[[Tensor, Tensor], Tensor]
MoreTargets = Callable[
    [Any, Tokens], Sequence[Tensor]
]  # (inputs, tokens) -> one (b, l, ...) for each coarser scale
EncoderKind = Literal["bidirectional", "causal"]


@dataclass(frozen=True)
class Terms:
    """What one pass of an objective leaves.

    Attributes:
        loss: What is minimised.
        scalars: Further numbers to log, by name.
    """

    loss: Float[Tensor, ""]
    scalars: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict, kw_only=True)


class Objective(nn.Module, abc.ABC):
    """From inputs and what is random in a step to a loss; its ``backbone`` is what is exported.

    Attributes:
        backbone: A module that is a :class:`~map_core.encoder.Backbone`.
        unfit_for_sharding: Why it cannot be trained under FSDP; None where it can.
    """

    backbone: Any
    unfit_for_sharding: str | None = None

    @abc.abstractmethod
    def forward(self, inputs: Any, draw: Draw) -> Terms:
        """Compute the loss of a batch of inputs that the backbone's ``tokenize`` reads."""

    def begin(self, total_steps: int) -> None:
        """Be told that training begins, for so many optimizer steps, with the backbone as it is now."""

    def no_weight_decay(self) -> set[str]:
        return undecayed_parameters(self)


@dataclass(frozen=True)
class Reconstruction(Terms):
    """What one pass of an objective that predicts tokens leaves: the loss, and what a picture of it needs.

    Attributes:
        prediction: The head's output for the predicted tokens, in sequence order.
        tokens: The tokens of the batch.
        mask: Which of them were hidden.
        index: Which of them are predicted; the hidden ones unless said otherwise.
    """

    prediction: Float[Tensor, "b h ..."]
    tokens: Tokens
    mask: TokenMask
    index: Int[Tensor, "b h"]


class ReconstructingObjective(Objective):
    """An objective that predicts targets of tokens, which a picture can show.

    Attributes:
        masking: How many tokens are hidden, and which; None where the objective does not draw them.
        loss: Of (prediction, target).
    """

    masking: Masking | None = None
    loss: Any

    @abc.abstractmethod
    def forward(self, inputs: Any, draw: Draw) -> Reconstruction: ...

    def rehearse(self, tokens: Tokens) -> None:
        """Do with the places of tokens what steps will do, before the first of them; nothing is encoded.

        Raises:
            UserError: some step could not hide or predict them.
        """

    @torch.no_grad()
    def reconstruct(self, inputs: Any, draw: Draw) -> Reconstruction:
        """Predict values to look at."""
        return self(inputs, draw)


class MaskedAutoregression(ReconstructingObjective):
    """The objective, for any backbone and loss.

    At a ratio of 0 nothing is hidden and all tokens are predicted, each from its own region and those before it: the
    autoencoding control of the paper's Table 5.

    >>> import torch
    >>> from map_core import Draw
    >>> from map_core.testing import toy_objective
    >>> objective = toy_objective()               # over grids of vectors (b, rows, cols, channels)
    >>> vectors = torch.randn(2, 4, 4, 4)
    >>> result = objective(vectors, Draw.of_batch(2, seed=0))
    >>> result.prediction.shape                   # half of the 16 tokens are hidden
    torch.Size([2, 8, 4])
    >>> result.loss.backward()

    Args:
        backbone: What is pretrained, and exported: ``objective.backbone.state_dict()``.
        decoder: Reconstructs the hidden tokens' features.
        head: From the decoder's width to the values of a target, times the number of scales.
        loss: Of (prediction, target), both (b, h, ...) of the hidden tokens; masked MSE when None.
        masking: How many tokens are hidden, and which.
        regions: Which tokens are predicted together.
        attention: Kind of decoder mask, see :func:`~map_core.regions.region_attention_mask`.
        encoder: ``bidirectional`` reads all visible tokens; ``causal`` keeps to equations 3 to 5, where nothing of a
            later region reaches a prediction. It needs a backbone that scans one way.
        coarser: Further targets, of (inputs, tokens): one tensor for each coarser scale, each with its own loss.

    Raises:
        UserError: ``backbone`` lacks what the objective asks of one.
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
        coarser: MoreTargets | None = None,
    ) -> None:
        super().__init__()
        require_backbone(backbone)
        if encoder == "causal":
            require_causal(backbone)
        self.backbone, self.decoder, self.head = backbone, decoder, head
        self.loss: Loss = loss or MaskedMSE()
        self.masking: Masking = masking or Masking()
        self.regions: RegionRule = regions or GridRegions("row")
        self.attention: AttentionMaskKind = attention
        self.encoder: EncoderKind = encoder
        self.coarser = coarser
        decoder.apply(init_weights)
        head.apply(init_weights)

    def forward(self, inputs: Any, draw: Draw) -> Reconstruction:
        """Hide tokens of the inputs and reconstruct them."""
        tokens = self.backbone.tokenize(inputs, targets=True)
        if self.encoder == "causal":
            tokens = region_by_region(tokens, self.regions(tokens)).tokens
        # hide some of them; the encoder reads the rest
        mask = self.masking(tokens, draw, self._regions_to_hide_in(tokens))
        features = self._encode(tokens, mask)
        # the decoder sees its own region and those before it
        regions = self.regions(tokens, mask)
        attention_mask = region_attention_mask(regions.index, self.attention)
        decoded = self.decoder(features, tokens, mask, attention_mask)
        # predictions of the hidden tokens against their targets
        index = predicted_tokens(tokens, mask)
        targets = [tokens.target, *(self.coarser(inputs, tokens) if self.coarser else ())]
        prediction, loss = self.compare(decoded, [gather_tokens(target, index) for target in targets], draw)
        return Reconstruction(loss, prediction, tokens, mask, index)

    def rehearse(self, tokens: Tokens) -> None:
        for masking in self.masking.extremes:
            mask = masking(tokens, Draw.of_batch(tokens.batch_size), self._regions_to_hide_in(tokens))
            self.decoder.check(tokens, self.regions(tokens, mask))

    def compare(
        self, decoded: Float[Tensor, "b h e"], targets: Sequence[Tensor], draw: Draw
    ) -> tuple[Tensor, Tensor]:
        """Predict each scale's targets; return the finest's prediction, and the mean loss of all scales."""
        predictions = self.head(decoded).chunk(len(targets), dim=-1)
        losses = [self.loss(one, target) for one, target in zip(predictions, targets, strict=True)]
        return predictions[0], losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _encode(self, tokens: Tokens, mask: TokenMask) -> Features:
        if self.encoder == "causal":
            return self.backbone.encode_causally(tokens, self.regions(tokens, mask), mask)
        return self.backbone.encode(tokens, mask)

    def _regions_to_hide_in(self, tokens: Tokens) -> Any:
        return self.regions(tokens) if self.masking.scope == "region" else None


def require_backbone(backbone: nn.Module) -> None:
    """Check that a module is a backbone.

    Raises:
        UserError: it lacks something of one.
    """
    if not isinstance(backbone, Backbone):
        raise UserError(
            f"backbone {type(backbone).__name__} needs embed_dim, tokenize(inputs, targets=...) and "
            "encode(tokens, mask)"
        )
