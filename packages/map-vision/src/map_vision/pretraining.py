"""Pretraining of image models: the objective over patches, as a task of the training engine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from map_core import MaskedAutoregression, ObjectiveConfig, RegionDecoder, mask_noise, masked_mse
from map_core.errors import UserError
from map_core.training import Step, Task, TrainingConfig
from map_core.weights import MODEL_FILE, read_description, read_settings, read_weights, save_weights
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

PICTURES = 6


@dataclass
class ImageObjectiveConfig(MixingConfig, ObjectiveConfig):
    """The objective over image patches.

    Args:
        region: What is predicted at once: a row, a column or a block of patches.
        block_size: Rows and columns of patches of a block.
    """

    region: RegionKind = "row"
    block_size: tuple[int, int] = (4, 4)

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
    decoder = RegionDecoder(
        model.embed_dim,
        make_grid_position(config.decoder_position, grid, config.decoder_dim),
        embed_dim=config.decoder_dim,
        depth=config.decoder_depth,
        num_heads=config.decoder_heads,
        mlp_ratio=config.decoder_mlp_ratio,
    )
    return MaskedAutoregression(
        ImageTokenizer(patch_embed, order=model.order, region=config.region, block_size=config.block_size),
        model.encoder,
        decoder,
        nn.Linear(config.decoder_dim, ph * pw * patch_embed.in_chans),
        loss=partial(masked_mse, normalize=config.normalize_targets),
        mask_ratio=config.mask_ratio,
        mask_strategy=config.mask_strategy,
        mask_scope=config.mask_scope,
        attention=config.attention,
    )


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split an objective's state into the timm model's, in its key names, and the decoder's and head's."""
    model, rest = {}, {}
    for key, value in state.items():
        if key.startswith("tokenizer.patch_embed."):
            model[key.removeprefix("tokenizer.")] = value
        elif key.startswith("encoder."):
            model[key] = value
        else:
            rest[key] = value
    return model, rest


class PretrainTask(Task):
    """Masked autoregressive pretraining on images.

    Args:
        config: The run's configuration.
        data: Opened images, from ``config.data`` when None.
    """

    name = "pretrain"

    def __init__(self, config: PretrainConfig, data: ImageData | None = None) -> None:
        self.config = config
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

    def loss(self, model: nn.Module, batch: Any, step: Step) -> dict[str, Tensor]:
        images, labels = batch
        if self.mixer.enabled:
            images, _ = self.mixer(images, torch.zeros_like(labels), step)
        noise = mask_noise(step.seed, step.index, step.samples, (step.global_batch, self.num_tokens))
        ratio = self.config.objective.ratio(step.seed, step.index)
        return {"loss": model(images, ratio=ratio, noise=noise).loss}

    def export(self, model: nn.Module, directory: Path, weights: str) -> None:
        suffix = "" if weights == "raw" else f"_{weights}"
        encoder, rest = split_state(model.state_dict())
        normalization = {"mean": self.data.mean, "std": self.data.std}
        description = describe_model(
            self.config.model, task=self.name, holds="encoder", weights=weights, **normalization
        )
        save_weights(directory / f"model{suffix}.safetensors", encoder, description)
        objective = {
            "objective": asdict(self.config.objective),
            "holds": "decoder and head",
            "weights": weights,
        }
        save_weights(directory / f"pretraining{suffix}.safetensors", rest, objective)

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:
        assert isinstance(model, MaskedAutoregression)
        plain = self.data.train_unaugmented()
        chosen = range(0, len(plain), max(len(plain) // PICTURES, 1))[
            :PICTURES
        ]  # of all classes, not the first
        images = torch.stack([plain[i][0] for i in chosen])
        draw_reconstructions(
            model,
            images,
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
    """Rebuild the whole objective of a pretraining run (encoder, decoder and head), and its settings.

    Args:
        path: The run's directory, or one of its encoder files (``model_ema.safetensors`` for the averaged weights).

    Raises:
        UserError: the run has no decoder (``pretraining.safetensors``) or no description of its model.
    """
    path = Path(path)
    model_file = path / MODEL_FILE if path.is_dir() else path
    decoder_file = model_file.with_name(model_file.name.replace("model", "pretraining", 1))
    model_config, description = described_model(path), read_description(decoder_file)
    if model_config is None or "objective" not in description:
        raise UserError(
            f"{path} has no {decoder_file.name} with its description beside it: reconstruction needs the decoder, "
            "which only the directory of a pretraining run holds"
        )
    config = read_settings(ImageObjectiveConfig, description["objective"], decoder_file)
    objective = build_objective(create_backbone(model_config), config)
    encoder = read_weights(path)
    rest = read_weights(decoder_file)
    own = {
        f"tokenizer.{key}" if key.startswith("patch_embed.") else key: value for key, value in encoder.items()
    }
    objective.load_state_dict({**own, **rest})
    return objective, config
