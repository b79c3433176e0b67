"""Pretraining of image models: the objective over patches, as a task of the training engine."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from map_core import MaskedAutoregression, ObjectiveConfig, masked_mse
from map_core.errors import UserError
from map_core.pretraining import ObjectiveTask, assemble_objective, inputs_to_draw, load_objective
from map_core.training import Step, TrainingConfig
from map_vision.data import DataConfig, ImageData, load_image_data
from map_vision.factory import ModelConfig, create_backbone, describe_model, described_model
from map_vision.hybridnet import HybridNet
from map_vision.mixing import BatchMixer, MixingConfig
from map_vision.patches import patch_grid
from map_vision.positions import make_grid_position
from map_vision.reconstruction import draw_reconstructions
from map_vision.scan_orders import RegionKind
from map_vision.tokenizer import ImageTokenizer
from map_vision.weights import load_init


@dataclass
class ImageObjectiveConfig(MixingConfig, ObjectiveConfig):
    """The objective over image patches.

    Args:
        region: What is predicted at once: a row, a column or a block of patches.
        block_size: Rows and columns of patches of a block.
        decoder_position: Learned or fixed sin-cos positions of the decoder.
        normalize_targets: Reconstruct patches normalised by their own mean and deviation.
    """

    region: RegionKind = "row"
    block_size: tuple[int, int] = (4, 4)
    decoder_position: Literal["learned", "sincos"] = "learned"
    normalize_targets: bool = True

    def validate(self) -> None:
        super().validate()
        if min(self.block_size) < 1:
            rows, cols = self.block_size
            raise UserError(f"objective.block_size must be at least 1x1; got {rows}x{cols}")


@dataclass
class PretrainConfig:
    """Masked autoregressive pretraining.

    Args:
        data: Images; labels are not used.
        model: The encoder.
        objective: What is hidden and how it is reconstructed.
        training: Epochs, batch, learning rate and the like.
        init: Start the encoder from this run or weights file.
        resume: 'auto' continues the newest checkpoint in out; a path continues that one.
        out: Run directory.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ImageObjectiveConfig = field(default_factory=ImageObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    init: str | None = None
    resume: str | None = None
    out: str = "runs/pretrain"


def build_objective(model: HybridNet, config: ImageObjectiveConfig) -> MaskedAutoregression:
    """Put a model's patch embedding and encoder under the objective; both stay shared with the model."""
    config.validate()
    if model.encoder.registers is not None:
        raise UserError(
            "pretraining has no registers: create the model with num_registers=0, global_pool='avg'"
        )
    patch_embed = model.patch_embed
    ph, pw = patch_embed.patch_size
    grid = patch_grid(model.img_size, patch_embed.patch_size)
    return assemble_objective(
        ImageTokenizer(patch_embed, order=model.order, region=config.region, block_size=config.block_size),
        model.encoder,
        config,
        position=make_grid_position(config.decoder_position, grid, config.decoder_dim),
        target_dim=ph * pw * patch_embed.in_chans,
        loss=partial(masked_mse, normalize=config.normalize_targets),
    )


class PretrainTask(ObjectiveTask):
    """Masked autoregressive pretraining on images.

    Args:
        config: The run's configuration.
        data: Opened images, from ``config.data`` when None.
    """

    def __init__(self, config: PretrainConfig, data: ImageData | None = None) -> None:
        self.config, self.settings = config, config.objective
        torch.manual_seed(config.training.seed)
        backbone = create_backbone(config.model)
        backbone.set_grad_checkpointing(config.training.activation_checkpointing)
        self.model = build_objective(backbone, config.objective)
        if config.init is not None:
            load_init(backbone, config.init)
        rows, cols = patch_grid(backbone.img_size, backbone.patch_size)
        self.num_tokens = rows * cols
        self.data = data or load_image_data(
            config.data,
            img_size=backbone.img_size,
            in_chans=backbone.patch_embed.in_chans,
            purpose="pretrain",
        )
        self.train_data = self.data.train
        self.mixer = BatchMixer(config.objective, num_classes=0)

    def inputs(self, batch: Any, step: Step) -> Tensor:
        images, labels = batch
        if self.mixer.enabled:
            images, _ = self.mixer(images, torch.zeros_like(labels), step)
        return images

    def describe(self, weights: str) -> dict[str, Any]:
        pixels = {"mean": self.data.mean, "std": self.data.std}
        return describe_model(self.config.model, task=self.name, holds="encoder", weights=weights, **pixels)

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:
        assert isinstance(model, MaskedAutoregression)
        draw_reconstructions(
            model,
            inputs_to_draw(self.data.train_unaugmented()),
            directory / "reconstructions.png",
            mean=self.data.mean,
            std=self.data.std,
            normalized_targets=self.config.objective.normalize_targets,
        )
        skipped = self.data.skipped()
        if skipped.count:
            summary["skipped_images"] = skipped.count
            print(skipped)


def load_pretraining(path: str | Path) -> tuple[MaskedAutoregression, ImageObjectiveConfig]:
    """Rebuild the whole objective of a pretraining run; see :func:`map_core.pretraining.load_objective`."""

    def build(settings: ImageObjectiveConfig) -> MaskedAutoregression:
        model = described_model(path)
        assert model is not None
        return build_objective(create_backbone(model), settings)

    return load_objective(path, ImageObjectiveConfig, build)
