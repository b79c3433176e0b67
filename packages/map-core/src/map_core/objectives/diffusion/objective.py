"""Masked autoregression whose hidden tokens are sampled from a learned distribution instead of regressed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from map_core.errors import UserError
from map_core.losses import PatchLoss, normalize_targets
from map_core.objective import MaskedAutoregression, Reconstruction
from map_core.objectives.diffusion.head import DiffusionHead
from map_core.objectives.masked_autoregression import MaskedAutoregressionConfig
from map_core.objectives.settings import Method
from map_core.randomness import Draw, derive_seed
from map_core.ranges import check


class MaskedDiffusion(MaskedAutoregression):
    """The paper's objective with a diffusion head (Table 7); the loss is that of denoising the hidden tokens.

    In training the prediction is the decoder's features; :meth:`reconstruct` samples values from them.

    Args:
        backbone, decoder, options: See :class:`~map_core.MaskedAutoregression`.
        head: Denoises the values of hidden tokens.
        loss: Decides whether those are normalised; it is not computed itself.
        repeats: Number of random steps and noises at which each hidden token is denoised in one pass.
    """

    head: DiffusionHead
    loss: PatchLoss

    def __init__(
        self,
        backbone: nn.Module,
        decoder: Any,
        head: DiffusionHead,
        *,
        loss: PatchLoss,
        repeats: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(backbone, decoder, head, loss=loss, **options)
        self.repeats = repeats

    def predict_with_loss(
        self, decoded: Float[Tensor, "b h e"], targets: Sequence[Tensor], draw: Draw
    ) -> tuple[Tensor, Tensor]:
        """Denoise the hidden tokens, each at its own random steps."""
        (target,) = targets
        target = normalize_targets(target.float()) if self.loss.normalize else target.float()
        values, condition = (x.flatten(0, 1).repeat(self.repeats, 1) for x in (target, decoded))
        generator = torch.Generator(values.device)
        generator.manual_seed(derive_seed(draw.seed, "diffusion", draw.step, draw.samples.start))
        t = torch.randint(len(self.head.process), (len(values),), generator=generator, device=values.device)
        noise = torch.randn(values.shape, generator=generator, device=values.device)
        return decoded, self.head.loss(values, condition, t, noise).mean()

    @torch.no_grad()
    def reconstruct(self, inputs: Any, draw: Draw) -> Reconstruction:
        """Sample values of the hidden tokens."""
        result = self(inputs, draw)
        condition = result.prediction
        values = self.head.sample(condition.flatten(0, 1), draw.generator("sampling"))
        return replace(result, prediction=values.unflatten(0, condition.shape[:2]))


@dataclass
class MaskedDiffusionConfig(MaskedAutoregressionConfig):
    """What is hidden, and how its distribution is learned.

    Args:
        diffusion_depth: Blocks of the denoising network.
        diffusion_dim: Its width.
        diffusion_repeats: Number of random steps and noises at which each hidden token is denoised in one pass.
        sampling_steps: Steps from noise to a picture.
    """

    method: Method = field(default="masked_diffusion", kw_only=True)
    diffusion_depth: int = 3
    diffusion_dim: int = 1024
    diffusion_repeats: int = 4
    sampling_steps: int = 100

    def validate(self) -> None:
        super().validate()
        check("objective", self, at_least_one=("diffusion_depth", "diffusion_dim", "diffusion_repeats"))
        if not 2 <= self.sampling_steps <= 1000:
            raise UserError(
                f"objective.sampling_steps must lie between 2 and 1000; got {self.sampling_steps}"
            )
        if self.target_scales != (1,):
            raise UserError(
                "objective.target_scales of masked_diffusion is [1], as one scale is denoised; got "
                f"{list(self.target_scales)}"
            )

    def build(self, backbone: Any) -> MaskedDiffusion:
        loss = self.make_loss()
        assert isinstance(loss, PatchLoss)
        return MaskedDiffusion(
            backbone,
            self.make_decoder(backbone),
            DiffusionHead(
                self.target_dim(backbone),
                self.decoder_dim,
                depth=self.diffusion_depth,
                width=self.diffusion_dim,
                sampling_steps=self.sampling_steps,
            ),
            loss=loss,
            repeats=self.diffusion_repeats,
            masking=self.masking,
            regions=self.make_regions(backbone),
            attention=self.attention,
            encoder=self.encoder,
        )
