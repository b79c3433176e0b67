"""SimMIM: hidden tokens are painted over, the encoder reads every place, and a linear head predicts their values."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from map_core.errors import UserError
from map_core.initialization import init_weights
from map_core.losses import MaskedL1
from map_core.masking import Masking, TokenMask
from map_core.objective import Loss, ReconstructingObjective, Reconstruction, require_backbone
from map_core.objectives.settings import MaskingSettings, Method, ObjectiveSettings
from map_core.ops import Linear
from map_core.randomness import Draw
from map_core.tokens import Features, Tokens, gather_tokens

NONE_HIDDEN = "objective.mask_ratio of simmim must be above 0: it learns from hidden tokens alone"


class SimMIM(ReconstructingObjective):
    """Predict hidden tokens from the encoder's features at their places, without a decoder.

    Source: SimMIM (arXiv 2111.09886). The learned token takes the place of a hidden token's embedding, before its
    position is added. A backbone that paints by itself (one with a ``mask_token``, as pyramids have) does so.

    >>> import torch
    >>> from map_core.testing import GridBackbone, toy_encoder
    >>> objective = SimMIM(GridBackbone(4, toy_encoder(16)), torch.nn.Linear(16, 4))
    >>> objective(torch.randn(2, 4, 4, 4), Draw.of_batch(2, seed=0)).prediction.shape
    torch.Size([2, 10, 4])

    Args:
        backbone: The model that is pretrained and exported.
        head: Maps the backbone's width to the values of a target.
        loss: Function of (prediction, target) of the hidden tokens; L1 when None.
        masking: How many tokens are hidden, and which; 60 % when None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        *,
        loss: Loss | None = None,
        masking: Masking | None = None,
    ) -> None:
        super().__init__()
        require_backbone(backbone)
        self.backbone, self.head = backbone, head
        self.loss: Loss = loss or MaskedL1()
        self.masking: Masking = masking or Masking(0.6)
        self.mask_token: nn.Parameter | None = None
        if getattr(backbone, "mask_token", None) is None:
            self.mask_token = nn.Parameter(torch.empty(int(self.backbone.embed_dim)))
            nn.init.normal_(self.mask_token, std=0.02)
        head.apply(init_weights)

    def forward(self, inputs: Any, draw: Draw) -> Reconstruction:
        """Hide tokens of the inputs and predict them.

        Raises:
            UserError: the mask ratio is 0.
        """
        tokens = self.backbone.tokenize(inputs, targets=True)
        mask = self.masking(tokens, draw)
        if mask.drop.shape[1] == 0:
            raise UserError(NONE_HIDDEN)
        # the encoder reads every place, with hidden tokens painted over
        features = self.encode_painted(tokens, mask)
        at_hidden = gather_tokens(features.embedding, mask.drop)
        prediction = self.head(at_hidden)
        loss = self.loss(prediction, gather_tokens(tokens.target, mask.drop))
        return Reconstruction(loss, prediction, tokens, mask, mask.drop)

    def rehearse(self, tokens: Tokens) -> None:
        for masking in self.masking.extremes:
            masking(tokens, Draw.of_batch(tokens.batch_size))

    def encode_painted(self, tokens: Tokens, mask: TokenMask) -> Features:
        """Features of every place, with the learned token in the hidden ones."""
        if self.mask_token is None:
            return self.backbone.encode(tokens, mask)
        paint = self.mask_token.to(tokens.embedding.dtype)
        painted = torch.where(mask.hidden.unsqueeze(-1), paint, tokens.embedding)
        return self.backbone.encode(replace(tokens, embedding=painted))


@dataclass
class SimMIMConfig(MaskingSettings, ObjectiveSettings):
    """What is painted over.

    Args:
        mask_unit: Rows and columns of patches of the squares that are hidden together, where patches tile a grid
            (SimMIM hides 32 pixels at once: 2 patches of 16); 1 hides single patches.
    """

    method: Method = field(default="simmim", kw_only=True)
    mask_ratio: float = 0.6
    mask_unit: int = 1

    def validate(self) -> None:
        super().validate()
        if self.mask_ratio == 0:
            raise UserError(NONE_HIDDEN)
        if self.mask_scope != "all":
            raise UserError(
                f"objective.mask_scope of simmim is all, as it has no regions; got {self.mask_scope}"
            )
        if self.mask_unit < 1 or (self.mask_unit > 1 and self.mask_strategy != "random"):
            raise UserError(
                f"objective.mask_unit must be at least 1, and 1 unless objective.mask_strategy is random; got "
                f"{self.mask_unit} with {self.mask_strategy}"
            )

    @property
    def masking(self) -> Masking:
        return replace(super().masking, unit=self.mask_unit)

    def build(self, backbone: Any) -> SimMIM:
        head = Linear(backbone.embed_dim, self.target_dim(backbone))
        return SimMIM(backbone, head, loss=self.make_loss(), masking=self.masking)
