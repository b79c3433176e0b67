"""Pretraining as a task of the training engine, whatever the domain and the objective."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from map_core.decoder import RegionDecoder
from map_core.encoder import Backbone
from map_core.errors import UserError
from map_core.masking import Masking, MaskScope, MaskStrategy
from map_core.objective import Loss, MaskedAutoregression, Objective, Reconstruction, Terms
from map_core.ops import Linear
from map_core.paths import expanded
from map_core.randomness import Draw
from map_core.regions import AttentionMaskKind, RegionRule
from map_core.tasks.classification import Mixer, report_skipped, required_training_samples
from map_core.tasks.domain import Domain, OpenedData, data_settings, input_of, refuse_other_samples
from map_core.tasks.weights import MODEL_FILE, read_description, read_settings, read_weights, save_weights
from map_core.training import Task
from map_core.training.task import MapStyleDataset, exported_file

PICTURES = 6  # rows of a run's reconstructions.png
BACKBONE = "backbone."


@dataclass
class ObjectiveConfig:
    """What is hidden, and how it is reconstructed.

    Args:
        mask_ratio: Share of tokens hidden from the encoder, inside (0, 1).
        mask_ratio_std: Draw the ratio of each step from a normal around mask_ratio with this deviation,
            truncated to mask_ratio_bounds (the authors' code: .25); fixed when not given.
        mask_ratio_bounds: Lowest and highest drawn ratio.
        mask_strategy: Which tokens are hidden.
        mask_scope: Choose among all tokens, or within each region.
        attention: Decoder mask: map, mae, local_mae or ar.
        decoder_depth: Transformer blocks of the decoder.
        decoder_dim: Width of the decoder.
        decoder_heads: Attention heads of the decoder.
        decoder_mlp_ratio: MLP width over decoder_dim.
    """

    mask_ratio: float = 0.5
    mask_ratio_std: float | None = None
    mask_ratio_bounds: tuple[float, float] = (0.3, 0.7)
    mask_strategy: MaskStrategy = "random"
    mask_scope: MaskScope = "all"
    attention: AttentionMaskKind = "map"
    decoder_depth: int = 4
    decoder_dim: int = 192
    decoder_heads: int = 16
    decoder_mlp_ratio: float = 4.0

    def validate(self) -> None:
        """Check what can be checked before any data is read.

        Raises:
            UserError: naming the field, its value and the rule.
        """
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"objective.mask_ratio must lie inside (0, 1); got {self.mask_ratio}")
        low, high = self.mask_ratio_bounds
        if self.mask_ratio_std is not None and not 0 < low < high < 1:
            raise UserError(f"objective.mask_ratio_bounds must satisfy 0 < low < high < 1; got {low}, {high}")
        if self.mask_ratio_std is not None and self.mask_ratio_std <= 0:
            raise UserError(f"objective.mask_ratio_std must be positive; got {self.mask_ratio_std}")
        for name in ("decoder_depth", "decoder_dim", "decoder_heads"):
            if getattr(self, name) < 1:
                raise UserError(f"objective.{name} must be at least 1; got {getattr(self, name)}")
        if self.decoder_dim % self.decoder_heads:
            raise UserError(
                f"objective.decoder_dim ({self.decoder_dim}) must be a multiple of objective.decoder_heads "
                f"({self.decoder_heads})"
            )

    @property
    def masking(self) -> Masking:
        """How many tokens are hidden, and which."""
        return Masking(
            self.mask_ratio, self.mask_ratio_std, self.mask_ratio_bounds, self.mask_strategy, self.mask_scope
        )

    def mixer(self) -> Mixer | None:
        """What mixes the inputs of a batch with one another; None where nothing does."""
        return None


def assemble_objective(
    backbone: nn.Module,
    config: ObjectiveConfig,
    *,
    position: nn.Module,
    target_dim: int,
    loss: Loss,
    regions: RegionRule,
) -> MaskedAutoregression:
    """Put a domain's backbone under the objective that ``config`` describes; it stays shared.

    Args:
        backbone: A :class:`~map_core.encoder.Backbone`.
        config: Masking, attention and the decoder's sizes.
        position: The decoder's positions, of width ``config.decoder_dim``.
        target_dim: Values of a token's target.
        loss: Of (prediction, target).
        regions: Which tokens are predicted together.
    """
    assert isinstance(backbone, Backbone)
    decoder = RegionDecoder(
        backbone.embed_dim,
        position,
        embed_dim=config.decoder_dim,
        depth=config.decoder_depth,
        num_heads=config.decoder_heads,
        mlp_ratio=config.decoder_mlp_ratio,
    )
    return MaskedAutoregression(
        backbone,
        decoder,
        Linear(config.decoder_dim, target_dim),
        loss=loss,
        masking=config.masking,
        regions=regions,
        attention=config.attention,
    )


class PretrainTask(Task):
    """Train an objective, and export its backbone.

    Args:
        domain: Of the samples.
        config: The run's configuration: sections data, model, objective, training, and ``init``.
        data: Opened data, from ``config.data`` when None.
    """

    name = "pretrain"
    model: Objective

    def __init__(self, domain: Domain, config: Any, data: OpenedData | None = None) -> None:
        self.domain, self.config = domain, config
        if data is not None:
            refuse_other_samples(required_training_samples(data), labelled=False)
        self.collate = domain.collate
        torch.manual_seed(config.training.seed)
        backbone = domain.models.create_backbone(config.model)
        backbone.set_grad_checkpointing(config.training.activation_checkpointing)  # type: ignore[operator]
        self.model = domain.build_objective(backbone, config.objective)
        if config.init is not None:
            domain.models.refuse_other_settings(config.model, config.init, may_differ=config.init_may_differ)
            domain.models.load_init(backbone, config.init)
        self.data = data or domain.open_data(config.data, config.model, "pretrain")
        self.train_data = required_training_samples(self.data)
        self.mixer: Mixer | None = config.objective.mixer()

    def data_description(self) -> str:
        return self.data.description

    def data_settings(self) -> dict[str, Any]:
        return data_settings(self.config.data, self.data.preprocessing)

    def loss(self, model: nn.Module, batch: Any, draw: Draw) -> Terms:
        inputs = input_of(batch)
        if self.mixer is not None:
            inputs, _ = self.mixer(
                inputs, torch.zeros(len(inputs), dtype=torch.long, device=inputs.device), draw
            )
        return model(inputs, draw)

    def current_name(self, name: str) -> str:
        # up to version 0.1 the objective held tokenizer and encoder apart
        if name.startswith("tokenizer."):
            return BACKBONE + name.removeprefix("tokenizer.")
        return BACKBONE + name if name.startswith("encoder.") else name

    def export(self, model: nn.Module, directory: Path, weights: str) -> None:
        assert isinstance(model, Objective)
        description = self.domain.models.describe(
            self.config.model, task=self.name, holds="encoder", weights=weights, **self.data.preprocessing
        )
        save_weights(exported_file(directory, "model", weights), model.backbone.state_dict(), description)
        settings = {
            "objective": asdict(self.config.objective),
            "holds": "decoder and head",
            "weights": weights,
        }
        save_weights(exported_file(directory, "pretraining", weights), rest_of_state(model), settings)

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:
        assert isinstance(model, Objective)
        samples = self.train_data if self.data.plain_train is None else self.data.plain_train
        self.domain.draw(model, inputs_to_draw(samples), directory / "reconstructions.png", data=self.data)
        report_skipped(self.domain, self.data, summary)


def rest_of_state(objective: nn.Module) -> dict[str, Tensor]:
    """An objective's state without its backbone's: the decoder's and the head's."""
    return {key: value for key, value in objective.state_dict().items() if not key.startswith(BACKBONE)}


@dataclass(frozen=True)
class TrainedObjective:
    """The whole objective of a pretraining run, and what it was built of."""

    objective: Objective
    model: Any
    settings: Any


def load_objective(domain: Domain, path: str | Path) -> TrainedObjective:
    """Rebuild the whole objective of a pretraining run: encoder, decoder and head.

    Args:
        domain: Of the run.
        path: The run's directory, or one of its encoder files (``model_ema.safetensors`` for the averaged weights).

    Raises:
        UserError: the run has no decoder (``pretraining.safetensors``) or no description of its model.
    """
    path = expanded(path)
    model_file = path / MODEL_FILE if path.is_dir() else path
    decoder_file = model_file.with_name(model_file.name.replace("model", "pretraining", 1))
    description, model = read_description(decoder_file), domain.models.described(path)
    if model is None or "objective" not in description:
        raise UserError(
            f"{path} has no {decoder_file.name} with its description beside it: reconstruction needs the decoder, "
            "which only the directory of a pretraining run holds"
        )
    settings: Any = read_settings(domain.objective, description["objective"], decoder_file)
    backbone = domain.models.create_backbone(model)
    objective = domain.build_objective(backbone, settings)
    domain.models.load_init(backbone, path)
    load_rest(objective, read_weights(decoder_file), decoder_file)
    return TrainedObjective(objective, model, settings)


def load_rest(objective: Objective, state: Mapping[str, Tensor], source: Path) -> None:
    """Load what :func:`rest_of_state` gave.

    Raises:
        UserError: names or shapes differ.
    """
    shapes = {key: tuple(value.shape) for key, value in rest_of_state(objective).items()}
    wrong = [
        key
        for key in shapes.keys() | state.keys()
        if tuple(getattr(state.get(key), "shape", ())) != shapes.get(key)
    ]
    if wrong:
        raise UserError(
            f"{source} does not fit the objective that it describes: {', '.join(sorted(wrong)[:5])}"
        )
    objective.load_state_dict(dict(state), strict=False)


@torch.no_grad()
def hide_and_reconstruct(
    objective: MaskedAutoregression, inputs: Any, *, ratio: float | None = None, seed: int = 0
) -> Reconstruction:
    """Run a batch through the objective in evaluation mode, as pictures show it.

    Args:
        objective: Left in the mode that it was in.
        inputs: A batch that its backbone tokenizes.
        ratio: Share to hide; the objective's own when None.
        seed: Chooses the hidden tokens.
    """
    was_training, masking = objective.training, objective.masking
    objective.eval()
    if ratio is not None:
        objective.masking = Masking(ratio, strategy=masking.strategy, scope=masking.scope)
    try:
        return objective(inputs, Draw.of_batch(len(inputs), seed=seed))
    finally:
        objective.train(was_training)
        objective.masking = masking


def inputs_to_draw(samples: MapStyleDataset, count: int = PICTURES) -> Tensor:
    """Stack the inputs of ``count`` samples spread evenly over the data set, so that every class has its chance."""
    chosen = range(0, len(samples), max(len(samples) // count, 1))[:count]
    return torch.stack([input_of(samples[i]) for i in chosen])
