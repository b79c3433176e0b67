"""Masked autoregressive pretraining: hide tokens, encode the rest, reconstruct the hidden region by region.

READ FIRST. ``MaskedAutoregression.forward`` is the method; every call in it is one step of the paper (arXiv
2410.00871, section 4). MAE, local MAE and AR pretraining are the attention masks ``mae``, ``local_mae`` and
``ar``.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from map_core.decoder import RegionDecoder
from map_core.encoder import Backbone
from map_core.errors import UserError
from map_core.initialization import init_weights, undecayed_parameters
from map_core.losses import MaskedMSE
from map_core.masking import Masking, TokenMask
from map_core.randomness import Draw
from map_core.regions import AttentionMaskKind, GridRegions, RegionRule, region_attention_mask
from map_core.tokens import Tokens, gather_tokens

Loss = Callable[[Tensor, Tensor], Tensor]


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
    """

    backbone: Any

    @abc.abstractmethod
    def forward(self, inputs: Any, draw: Draw) -> Terms:
        """Compute the loss of a batch of inputs that the backbone's ``tokenize`` reads."""

    def no_weight_decay(self) -> set[str]:
        return undecayed_parameters(self)


@dataclass(frozen=True)
class Reconstruction(Terms):
    """What one pass of masked autoregression leaves: the loss, and what a picture of it needs.

    Attributes:
        prediction: The head's output for the hidden tokens, in sequence order.
        tokens: The tokens of the batch.
        mask: Which of them were hidden.
    """

    prediction: Float[Tensor, "b h ..."]
    tokens: Tokens
    mask: TokenMask


class MaskedAutoregression(Objective):
    """The objective, for any backbone and loss.

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
        head: From the decoder's width to the values of a target.
        loss: Of (prediction, target), both (b, h, ...) of the hidden tokens; masked MSE when None.
        masking: How many tokens are hidden, and which.
        regions: Which tokens are predicted together.
        attention: Kind of decoder mask, see :func:`~map_core.regions.region_attention_mask`.

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
    ) -> None:
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise UserError(
                f"backbone {type(backbone).__name__} needs embed_dim, tokenize(inputs, targets=...) and "
                "encode(tokens, mask)"
            )
        self.backbone, self.decoder, self.head = backbone, decoder, head
        self.loss: Loss = loss or MaskedMSE()
        self.masking = masking or Masking()
        self.regions: RegionRule = regions or GridRegions("row")
        self.attention: AttentionMaskKind = attention
        decoder.apply(init_weights)
        head.apply(init_weights)

    def forward(self, inputs: Any, draw: Draw) -> Reconstruction:
        """Hide tokens of the inputs and reconstruct them."""
        tokens = self.backbone.tokenize(inputs, targets=True)
        # hide some of them; the encoder reads the rest
        mask = self.masking(tokens, draw, self._regions_to_hide_in(tokens))
        features = self.backbone.encode(tokens, mask)
        # the decoder sees its own region and those before it
        regions = self.regions(tokens, mask)
        attention_mask = region_attention_mask(regions.index, self.attention)
        prediction = self.head(self.decoder(features, tokens, mask, attention_mask))
        loss = self.loss(prediction, gather_tokens(tokens.target, mask.drop))
        return Reconstruction(loss, prediction, tokens, mask)

    def _regions_to_hide_in(self, tokens: Tokens) -> Any:
        return self.regions(tokens) if self.masking.scope == "region" else None
