"""What the ``objective`` sections of recipes share: the method's name, and what a domain adds to any method.

Each method has its own section, made of parts; a setting that a method does not have is refused by name.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from map_core.errors import UserError
from map_core.masking import (
    Masking,
    MaskPlacement,
    MaskScope,
    MaskStrategy,
    check_placement,
    check_ratio,
)
from map_core.objective import CoarserTargets, Loss, Objective
from map_core.randomness import Draw
from map_core.ranges import check, check_choices, refuse_without_effect
from map_core.regions import RegionRule

Method = Literal["masked_autoregression", "autoregression", "simmim", "masked_diffusion", "contrastive"]
# Mixes inputs and, in the same way, their labels.
Mixer = Callable[[Tensor, Tensor, Draw], tuple[Tensor, Tensor]]


class Settings:
    """One part of an ``objective`` section."""

    def validate(self) -> None:
        """Check what can be checked before any data is read.

        Raises:
            UserError: naming the field, its value and the rule.
        """
        check_choices("objective", self)


@dataclass
class ObjectiveSettings(Settings):
    """The section of an objective; a domain adds its settings, and builds from them what only it can build.

    Args:
        method: What is learned from unlabelled inputs; each method has its own settings.
    """

    method: Method = field(default="masked_autoregression", kw_only=True)

    def validate(self) -> None:
        super().validate()
        if self.method != type(self).method:
            raise UserError(
                f"objective.method of these settings is {type(self).method}; got {self.method}: use those of that "
                "method"
            )

    @property
    def is_causal(self) -> bool:
        """Whether regions are predicted one after the other, so that their order matters."""
        return False

    def build(self, backbone: nn.Module) -> Objective:
        """Build the objective on a backbone, which is not copied.

        Raises:
            UserError: the backbone does not suit the objective.
        """
        raise NotImplementedError

    def mixer(self) -> Mixer | None:
        """The function that mixes the inputs of a batch with one another, or None."""
        return None

    def training_samples(self, data: Any, *, batch_size: int, micro_batch: int) -> Any:
        """The training samples of opened data, as the objective reads them.

        Args:
            data: Opened data.
            batch_size: Samples of an optimizer step.
            micro_batch: How many of them one process holds at once.

        Raises:
            UserError: the objective cannot learn from them.
        """
        return data.train

    # ---- what a domain builds from its settings, for the methods that need it

    def target_dim(self, backbone: Any) -> int:
        """Number of values in a token's target."""
        raise NotImplementedError

    def make_loss(self) -> Loss:
        """The loss, a function of (prediction, target)."""
        raise NotImplementedError

    def make_regions(self, backbone: Any) -> RegionRule:
        """The rule that says which tokens are predicted together."""
        raise NotImplementedError

    def make_position(self, backbone: Any, embed_dim: int) -> nn.Module:
        """The position embedding of a decoder."""
        raise NotImplementedError

    def global_tokens(self, backbone: Any) -> int:
        """Number of the backbone's global tokens, whose positions a decoder learns."""
        return 0

    def make_coarser_targets(self, backbone: Any, scales: tuple[int, ...]) -> CoarserTargets:
        """The function that makes the targets of coarser scales."""
        raise NotImplementedError


@dataclass
class MaskingSettings(Settings):
    """Which tokens are hidden.

    Args:
        mask_ratio: Share of tokens hidden from the encoder, in [0, 1); at 0 all tokens are visible and predicted.
        mask_ratio_std: Draw the ratio of each step from a normal around mask_ratio with this deviation,
            truncated to mask_ratio_bounds (the authors' code: .25); fixed when not set.
        mask_ratio_bounds: Lowest and highest drawn ratio.
        mask_strategy: Which tokens are hidden.
        mask_scope: Choose among all tokens, or within each region.
        mask_placement: Where sequential and diagonal masks begin: fixed hides the same tokens of every sample,
            random draws a start in the scan, or a corner, for each.
    """

    mask_ratio: float = 0.5
    mask_ratio_std: float | None = None
    mask_ratio_bounds: tuple[float, float] = (0.3, 0.7)
    mask_strategy: MaskStrategy = "random"
    mask_scope: MaskScope = "all"
    mask_placement: MaskPlacement = "fixed"

    def validate(self) -> None:
        super().validate()
        check_ratio("objective.mask_ratio", self.mask_ratio, self.mask_ratio_std, self.mask_ratio_bounds)
        if self.mask_ratio_std is None:
            because = "a fixed ratio (no objective.mask_ratio_std)"
            refuse_without_effect("objective", self, "mask_ratio_bounds", because=because)
        check_placement("objective.mask_", self.mask_placement, self.mask_strategy)
        if (self.mask_placement, self.mask_strategy, self.mask_scope) == ("random", "sequential", "region"):
            raise UserError(
                "objective.mask_placement 'random' draws a start in the whole scan, which changes nothing within most "
                "regions: with objective.mask_strategy sequential choose objective.mask_scope all, or mask_strategy "
                "diagonal"
            )

    @property
    def masking(self) -> Masking:
        """How many tokens are hidden, and which."""
        return Masking(
            self.mask_ratio,
            self.mask_ratio_std,
            self.mask_ratio_bounds,
            self.mask_strategy,
            self.mask_scope,
            placement=self.mask_placement,
        )


@dataclass
class DecoderSettings(Settings):
    """The size of a decoder.

    Args:
        decoder_depth: Blocks of the decoder.
        decoder_dim: Width of the decoder.
        decoder_heads: Attention heads of a Transformer decoder, like the two that follow.
        decoder_mlp_ratio: Ratio of the MLP's width to decoder_dim.
        decoder_norm_eps: Added to the variance in the decoder's norms.
    """

    decoder_depth: int = 4
    decoder_dim: int = 192
    decoder_heads: int = 16
    decoder_mlp_ratio: float = 4.0
    decoder_norm_eps: float = 1e-5

    def validate(self) -> None:
        super().validate()
        check(
            "objective",
            self,
            at_least_one=("decoder_depth", "decoder_dim", "decoder_heads"),
            positive=("decoder_norm_eps",),
            not_negative=("decoder_mlp_ratio",),
        )
        if self.has_transformer and self.decoder_dim % self.decoder_heads:
            fitting = next(n for n in range(self.decoder_heads, 0, -1) if self.decoder_dim % n == 0)
            raise UserError(
                f"objective.decoder_dim ({self.decoder_dim}) must be a multiple of objective.decoder_heads "
                f"({self.decoder_heads}); set decoder_heads to a number that divides it, such as {fitting}"
            )

    @property
    def has_transformer(self) -> bool:
        """Whether the decoder is a Transformer."""
        return True

    @property
    def transformer(self) -> dict[str, Any]:
        """The arguments of a Transformer decoder."""
        return {
            "embed_dim": self.decoder_dim,
            "depth": self.decoder_depth,
            "num_heads": self.decoder_heads,
            "mlp_ratio": self.decoder_mlp_ratio,
            "norm_eps": self.decoder_norm_eps,
        }
