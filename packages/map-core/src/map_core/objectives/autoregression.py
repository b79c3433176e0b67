"""Autoregression in the usual sense: a causal encoder, each region predicted from those before it, no sampled mask."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from map_core.blocks import CrossBlock, make_norm, residual_stream
from map_core.decoder import require_depth
from map_core.encoder import require_causal
from map_core.errors import UserError
from map_core.initialization import init_weights
from map_core.losses import MaskedMSE
from map_core.masking import TokenMask
from map_core.objective import Loss, ReconstructingObjective, Reconstruction, require_backbone
from map_core.objectives.settings import DecoderSettings, Method, ObjectiveSettings
from map_core.ops import Linear
from map_core.randomness import Draw
from map_core.regions import GridRegions, RegionRule, order_by_region
from map_core.tokens import Features, Regions, Tokens, gather_tokens


class NextRegionDecoder(nn.Module):
    """Predict features for the place of each token from earlier regions, by a learned query with its position.

    Queries do not read each other. Before the first region there is only a learned start token.

    Source: the decoder of ARM (arXiv 2406.07537), whose first cluster is not predicted.

    Args:
        encoder_dim: Width of the encoder's features.
        position: Position embedding of the decoder's width: module of (raw coordinates, grid).
        embed_dim, depth, num_heads, mlp_ratio: Shape of the Transformer.
        norm_eps: Epsilon of its norms.

    Raises:
        UserError: a depth below 1.
    """

    def __init__(
        self,
        encoder_dim: int,
        position: nn.Module,
        *,
        embed_dim: int = 512,
        depth: int = 4,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        require_depth(depth)
        self.embed = Linear(encoder_dim, embed_dim)
        self.query, self.start = nn.Parameter(torch.empty(embed_dim)), nn.Parameter(torch.empty(embed_dim))
        for token in (self.query, self.start):
            nn.init.normal_(token, std=0.02)
        self.position = position
        self.blocks = nn.ModuleList(
            CrossBlock(embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio, norm_eps=norm_eps)
            for _ in range(depth)
        )
        self.norm = make_norm("layer", embed_dim, norm_eps)

    def forward(self, features: Features, tokens: Tokens, regions: Regions) -> Float[Tensor, "b m e"]:
        """Return the decoded features of all tokens but the global ones."""
        n, batch = tokens.num_global, tokens.batch_size
        context = residual_stream(self.embed(features.embedding))
        context = torch.cat([self.start.to(context.dtype).expand(batch, 1, -1), context], dim=1)
        position = self.position(tokens.position[:, n:], tokens.grid).to(context.dtype)
        x = (self.query.to(context.dtype) + position).expand(batch, -1, -1)
        # token i reads the start token and the encoded tokens of the regions before its own
        context_region = gather_tokens(regions.index, features.index)
        attention_mask = context_region.unsqueeze(1) < regions.index[:, n:].unsqueeze(2)  # (b or 1, l, m)
        attention_mask = F.pad(attention_mask, (1, 0), value=True)
        for block in self.blocks:
            x = block(x, context, attention_mask)
        return self.norm(x)


class Autoregression(ReconstructingObjective):
    """Each region is predicted from those before it; the loss is on every token.

    Tokens are laid out in the order of their regions. The encoder is causal: Mamba layers scan one way, Transformer
    layers read no later region. So a prediction depends on no pixel of its own region or of later ones.

    Source: ARM (arXiv 2406.07537) for regions that are blocks (its clusters); the paper's pilot study (Tables 1 to 3).
    "n masked tokens" of that study is read as ``hidden_tokens``: the last n tokens never enter the encoder. ARM hides
    the last region, which no prediction would read.

    >>> import torch
    >>> from map_core.blocks import MambaBlock
    >>> from map_core.testing import GridBackbone, LinearPosition, toy_encoder
    >>> one_way = {"M": lambda width, drop_path: MambaBlock(width, bidirectional=False)}
    >>> backbone = GridBackbone(4, toy_encoder(16, "MM", block_makers=one_way))
    >>> decoder = NextRegionDecoder(16, LinearPosition(8), embed_dim=8, depth=1, num_heads=2)
    >>> objective = Autoregression(backbone, decoder, torch.nn.Linear(8, 4))
    >>> objective(torch.randn(2, 4, 4, 4), Draw.of_batch(2)).prediction.shape
    torch.Size([2, 16, 4])

    Args:
        backbone: The model that is pretrained and exported; it must be able to encode causally.
        decoder: Maps the features of earlier regions to those of each token.
        head: Maps the decoder's width to the values of a target.
        loss: Function of (prediction, target), both (b, l, ...); MSE on normalised values when None.
        regions: Which tokens are predicted together.
        hidden_tokens: How many of the last tokens the encoder does not read; as many as the smallest region has when
            None.

    Raises:
        UserError: ``backbone`` cannot encode causally.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: NextRegionDecoder,
        head: nn.Module,
        *,
        loss: Loss | None = None,
        regions: RegionRule | None = None,
        hidden_tokens: int | None = None,
    ) -> None:
        super().__init__()
        require_backbone(backbone)
        require_causal(backbone)
        self.backbone, self.decoder, self.head = backbone, decoder, head
        self.loss: Loss = loss or MaskedMSE()
        self.regions: RegionRule = regions or GridRegions("row")
        self.hidden_tokens = hidden_tokens
        decoder.apply(init_weights)
        head.apply(init_weights)

    def forward(self, inputs: Any, draw: Draw) -> Reconstruction:
        """Predict every region of the inputs from those before it; nothing is random."""
        tokens = self.backbone.tokenize(inputs, targets=True)
        # in the order of prediction, so that the scan reads no later region
        tokens, regions = order_by_region(tokens, self.regions(tokens))
        mask = self.last_hidden(tokens, regions)
        features = self.backbone.encode_causally(tokens, regions, mask)
        prediction = self.head(self.decoder(features, tokens, regions))
        index = torch.arange(tokens.num_global, tokens.length, device=prediction.device)
        index = index.expand(tokens.batch_size, -1)
        assert tokens.target is not None
        loss = self.loss(prediction, gather_tokens(tokens.target, index))
        return Reconstruction(loss, prediction, tokens, mask, index)

    def rehearse(self, tokens: Tokens) -> None:
        self.last_hidden(tokens, self.regions(tokens))

    def last_hidden(self, tokens: Tokens, regions: Regions) -> TokenMask:
        """Hide the last tokens.

        Raises:
            UserError: there is only one region, or no token would be left for the encoder.
        """
        if regions.count < 2:
            raise UserError(
                f"autoregression predicts a region from those before it, but these {tokens.num_maskable} tokens are "
                "one: choose smaller regions"
            )
        # no later region reads the tokens of the last one, of which there are at least as many as in the smallest
        num_hidden = regions.smallest if self.hidden_tokens is None else self.hidden_tokens
        if not 0 <= num_hidden < tokens.num_maskable:
            raise UserError(
                f"objective.hidden_tokens must lie between 0 and {tokens.num_maskable - 1}, as the encoder needs one "
                f"of the {tokens.num_maskable} tokens; got {num_hidden}"
            )
        index = torch.arange(tokens.length, device=tokens.embedding.device).expand(tokens.batch_size, -1)
        num_visible = tokens.length - num_hidden
        return TokenMask(
            hidden=index >= num_visible, keep=index[:, :num_visible], drop=index[:, num_visible:]
        )


@dataclass
class AutoregressionConfig(DecoderSettings, ObjectiveSettings):
    """How each region is predicted from those before it.

    Args:
        hidden_tokens: Tokens at the end of the order that the encoder never reads; as many as the smallest region has
            when not set.
    """

    method: Method = field(default="autoregression", kw_only=True)
    hidden_tokens: int | None = None

    def validate(self) -> None:
        super().validate()
        if self.hidden_tokens is not None and self.hidden_tokens < 0:
            raise UserError(f"objective.hidden_tokens must not be negative; got {self.hidden_tokens}")

    @property
    def is_causal(self) -> bool:
        return True

    def build(self, backbone: Any) -> Autoregression:
        require_causal(backbone)
        position = self.make_position(backbone, self.decoder_dim)
        return Autoregression(
            backbone,
            NextRegionDecoder(backbone.embed_dim, position, **self.transformer),
            Linear(self.decoder_dim, self.target_dim(backbone)),
            loss=self.make_loss(),
            regions=self.make_regions(backbone),
            hidden_tokens=self.hidden_tokens,
        )
