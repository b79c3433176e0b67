"""The objective as a task of the training engine: what pretraining on images and on points share."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from map_core.decoder import RegionDecoder
from map_core.encoder import Encoder
from map_core.errors import UserError
from map_core.masking import mask_noise
from map_core.objective import (
    Loss,
    MaskedAutoregression,
    ObjectiveConfig,
    Reconstruction,
    RegionRule,
    own_region,
)
from map_core.ops import Linear
from map_core.training import Step, Task
from map_core.training.task import MapStyleDataset, exported_file
from map_core.weights import MODEL_FILE, read_description, read_settings, read_weights, save_weights

Settings = TypeVar("Settings", bound=ObjectiveConfig)
PICTURES = 6  # rows of a run's reconstructions.png


def assemble_objective(
    tokenizer: nn.Module,
    encoder: nn.Module,
    config: ObjectiveConfig,
    *,
    position: nn.Module,
    target_dim: int,
    loss: Loss,
    region_rule: RegionRule = own_region,
) -> MaskedAutoregression:
    """Put a domain's tokenizer and encoder under the objective that ``config`` describes.

    Args:
        tokenizer: From inputs to tokens with targets.
        encoder: An :class:`~map_core.encoder.Encoder`, shared with the model that it belongs to.
        config: Masking, attention and the decoder's sizes.
        position: The decoder's positions, of width ``config.decoder_dim``.
        target_dim: Values of a token's target.
        loss: Of (prediction, target).
        region_rule: Region of each token, given the mask.
    """
    assert isinstance(encoder, Encoder)
    decoder = RegionDecoder(
        encoder.embed_dim,
        position,
        embed_dim=config.decoder_dim,
        depth=config.decoder_depth,
        num_heads=config.decoder_heads,
        mlp_ratio=config.decoder_mlp_ratio,
    )
    return MaskedAutoregression(
        tokenizer,
        encoder,
        decoder,
        Linear(config.decoder_dim, target_dim),
        loss=loss,
        mask_ratio=config.mask_ratio,
        mask_strategy=config.mask_strategy,
        mask_scope=config.mask_scope,
        attention=config.attention,
        region_rule=region_rule,
    )


class ObjectiveTask(Task):
    """Train a :class:`~map_core.objective.MaskedAutoregression`.

    A subclass sets, beside ``train_data``, ``model`` (the objective), ``settings`` (what it was built with)
    and ``num_tokens`` (of one sample).
    """

    name = "pretrain"
    model: MaskedAutoregression
    settings: ObjectiveConfig
    num_tokens: int

    @abc.abstractmethod
    def describe(self, weights: str) -> dict[str, Any]:
        """The JSON description that makes the encoder's file readable without its recipe."""

    def inputs(self, batch: Any, step: Step) -> Any:
        """What the tokenizer reads of a batch: the first of its parts."""
        return batch[0]

    def loss(self, model: nn.Module, batch: Any, step: Step) -> dict[str, Tensor]:
        noise = mask_noise(step.seed, step.index, step.samples, (step.global_batch, self.num_tokens))
        ratio = self.settings.ratio(step.seed, step.index)
        return {"loss": model(self.inputs(batch, step), ratio=ratio, noise=noise).loss}

    def export(self, model: nn.Module, directory: Path, weights: str) -> None:
        encoder, rest = split_state(model.state_dict())
        save_weights(exported_file(directory, "model", weights), encoder, self.describe(weights))
        decoder = {"objective": asdict(self.settings), "holds": "decoder and head", "weights": weights}
        save_weights(exported_file(directory, "pretraining", weights), rest, decoder)


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split an objective's state into the model's, in its own key names, and the decoder's and head's."""
    model: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for key, value in state.items():
        part = model if key.startswith(("tokenizer.", "encoder.")) else rest
        part[key.removeprefix("tokenizer.")] = value
    return model, rest


def load_objective(
    path: str | Path, kind: type[Settings], build: Callable[[Settings], MaskedAutoregression]
) -> tuple[MaskedAutoregression, Settings]:
    """Rebuild the whole objective of a pretraining run (encoder, decoder and head), and its settings.

    Args:
        path: The run's directory, or one of its encoder files (``model_ema.safetensors`` for the averaged weights).
        kind: The domain's settings of the objective.
        build: Makes the objective of its settings, with the model that the run describes.

    Raises:
        UserError: the run has no decoder (``pretraining.safetensors``) or no description of its model.
    """
    path = Path(path)
    model_file = path / MODEL_FILE if path.is_dir() else path
    decoder_file = model_file.with_name(model_file.name.replace("model", "pretraining", 1))
    description = read_description(decoder_file)
    if "name" not in read_description(path) or "objective" not in description:
        raise UserError(
            f"{path} has no {decoder_file.name} with its description beside it: reconstruction needs the decoder, "
            "which only the directory of a pretraining run holds"
        )
    settings = read_settings(kind, description["objective"], decoder_file)
    objective = build(settings)
    encoder = {
        key if key.startswith("encoder.") else f"tokenizer.{key}": value
        for key, value in read_weights(path).items()
    }
    objective.load_state_dict({**encoder, **read_weights(decoder_file)})
    return objective, settings


@torch.no_grad()
def hide_and_reconstruct(
    objective: MaskedAutoregression,
    inputs: Any,
    *,
    num_tokens: int,
    ratio: float | None = None,
    seed: int = 0,
) -> Reconstruction:
    """Run a batch through the objective in evaluation mode, as pictures show it.

    Args:
        objective: Left in the mode that it was in.
        inputs: A batch that its tokenizer reads.
        num_tokens: Of one sample.
        ratio: Share to hide; the objective's own when None.
        seed: Chooses the hidden tokens.
    """
    was_training = objective.training
    objective.eval()
    noise = mask_noise(seed, 0, slice(None), (len(inputs), num_tokens))
    try:
        return objective(inputs, ratio=ratio, noise=noise)
    finally:
        objective.train(was_training)


def inputs_to_draw(samples: MapStyleDataset, count: int = PICTURES) -> Tensor:
    """Stack the inputs of ``count`` samples spread evenly over the data set, so that every class has its chance."""
    chosen = range(0, len(samples), max(len(samples) // count, 1))[:count]
    return torch.stack([samples[i][0] for i in chosen])
