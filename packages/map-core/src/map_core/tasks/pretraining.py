"""Pretraining as a task of the training engine, whatever the domain and the objective."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from map_core.errors import UserError, near_matches
from map_core.objective import LossOutput, Objective, ReconstructingObjective, Reconstruction
from map_core.objectives.settings import Mixer, Settings
from map_core.positions import resamples
from map_core.randomness import Draw
from map_core.tasks.domain import (
    Domain,
    OpenedData,
    data_settings,
    refuse_other_samples,
    report_skipped,
    required_training_samples,
)
from map_core.tasks.evaluation import input_of
from map_core.tasks.families import family_of
from map_core.tasks.monitors import Monitor, open_monitor
from map_core.tasks.weights import (
    model_file,
    read_description,
    read_settings,
    read_weights,
    save_weights,
    weights_file,
    weights_identity,
)
from map_core.training import Task
from map_core.training.processes import launched_processes, resolved_training
from map_core.training.recomputation import recompute_activations
from map_core.training.task import MapStyleDataset, exported_file

PICTURES = 6  # rows of a run's reconstructions.png
BACKBONE = "backbone."
ENCODER, DECODER = "model", "pretraining"  # file names
OTHER_SIZES = "does not fit this objective; set model and objective as there, or leave --init_decoder out"
WITH_DECODER = ", with its decoder"  # in the identity of weights
REPEAT, HEADS = "decoder_repeat_position", "decoder_heads"  # settings that no shape of a decoder reveals


class PretrainTask(Task):
    """Train an objective, and export its backbone.

    Args:
        domain: The domain of the samples.
        config: The run's configuration: sections data, model, objective, monitor, training, and ``init``.
        data: Opened data, from ``config.data`` when None.
    """

    name = "pretrain"
    model: Objective

    def __init__(self, domain: Domain, config: Any, data: OpenedData | None = None) -> None:
        self.domain, self.config = domain, config
        if data is not None:
            refuse_other_samples(required_training_samples(data), labelled=False)
        self.collate = domain.collate

        # the model: its initial weights depend on the seed alone, whatever was drawn before
        torch.manual_seed(config.training.seed)
        backbone = domain.models.create_backbone(config.model)
        recompute_activations(backbone, config.training)
        self.model = domain.build_objective(backbone, config.objective)

        # the weights that it starts from
        domain.models.refuse_other_settings(
            config.model, config.init, may_differ=config.init_may_differ, is_classifier=False
        )
        if config.init is not None:
            domain.models.start_from(backbone, config.model, config.init)
        if config.init_decoder:
            load_decoder(domain, self.model, config.objective, config.init)

        # the data: by their number a sample_budget becomes epochs and a batch, which must split evenly
        self.data = data or domain.open_data(config.data, config.model, "pretrain")
        samples = len(required_training_samples(self.data))
        self.mixer: Mixer | None = config.objective.mixer()
        self.mixes_pairs = self.mixer is not None
        training = resolved_training(config.training, samples, pairs=self.mixes_pairs)
        self.config = config = replace(config, training=training)
        micro_batch = training.micro_batch(launched_processes())
        self.train_data = config.objective.training_samples(
            self.data, batch_size=training.batch_size, micro_batch=micro_batch
        )

        # only now, as a momentum encoder starts as a copy of the loaded weights
        steps_per_epoch = len(self.train_data) // training.batch_size
        self.model.begin(training.epochs * steps_per_epoch)

        # where data is None, the monitor opens the splits itself, not augmented
        self.monitor: Monitor | None = open_monitor(domain, config, self.model, data)
        self.keep_best = config.monitor.keep_best

    def data_description(self) -> str:
        return self.data.description

    def data_settings(self) -> dict[str, Any]:
        return data_settings(self.config.data, self.data.preprocessing, **self.data.identity)

    def init_identity(self) -> str | None:
        start = weights_identity(self.config.init)
        return f"{start}{WITH_DECODER}" if self.config.init_decoder else start

    @property
    def reason_not_to_shard(self) -> str | None:
        if self.monitor is not None:
            return "monitor.samples asks the encoder alone, of which FSDP keeps parts"
        return super().reason_not_to_shard

    def loss(self, model: nn.Module, batch: Any, draw: Draw) -> LossOutput:
        inputs = input_of(batch)
        if self.mixer is not None:
            inputs, _ = self.mixer(
                inputs, torch.zeros(len(inputs), dtype=torch.long, device=inputs.device), draw
            )
        return model(inputs, draw)

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        assert isinstance(model, Objective)
        return {} if self.monitor is None else self.monitor.measure(model, accelerator.device)

    def current_name(self, name: str) -> str:
        # up to version 0.1 the objective held tokenizer and encoder separately
        if name.startswith("tokenizer."):
            return BACKBONE + name.removeprefix("tokenizer.")
        return BACKBONE + name if name.startswith("encoder.") else name

    def export(self, model: nn.Module, directory: Path, weights: str) -> None:
        assert isinstance(model, Objective)
        description = self.domain.models.describe(
            self.config.model, task=self.name, holds="encoder", weights=weights, **self.data.preprocessing
        )
        save_weights(exported_file(directory, ENCODER, weights), model.backbone.state_dict(), description)
        save_decoder(exported_file(directory, DECODER, weights), model, self.config.objective, weights)

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:
        if isinstance(model, ReconstructingObjective):
            plain = self.data.plain_train
            inputs = inputs_to_draw(required_training_samples(self.data) if plain is None else plain)
            self.domain.draw_picture(model, inputs, directory / "reconstructions.png", data=self.data)
        report_skipped(self.domain, self.data, summary)


def decoder_state(objective: nn.Module) -> dict[str, Tensor]:
    """An objective's state without its backbone's: the decoder's and the head's."""
    return {key: value for key, value in objective.state_dict().items() if not key.startswith(BACKBONE)}


def save_decoder(file: Path, objective: Objective, settings: Any, weights: str) -> None:
    """Write the decoder and the head of an objective, with the settings that they were made with.

    Args:
        file: The weights file; the settings go beside it.
        objective: The objective.
        settings: Its section.
        weights: 'raw', 'ema' or 'best'.
    """
    description = {"objective": asdict(settings), "holds": "decoder and head", "weights": weights}
    save_weights(file, decoder_state(objective), description)


@dataclass(frozen=True)
class TrainedObjective:
    """The whole objective of a pretraining run, and the sections that it was built from."""

    objective: Objective
    model: Any
    settings: Any


def load_objective(domain: Domain, path: str | Path) -> TrainedObjective:
    """Rebuild the whole objective of a pretraining run: encoder, decoder and head.

    Args:
        domain: The domain of the run.
        path: The run's directory, or one of its encoder files (``model_ema.safetensors`` for the averaged weights).

    Raises:
        UserError: the run has no decoder (``pretraining.safetensors``) or no description of its model.
    """
    weights_file(path)  # of a run that has finished
    decoder_file = decoder_beside(path)
    description, model = read_description(decoder_file), domain.models.read_model_config(path)
    if model is None or "objective" not in description:
        raise UserError(
            f"{path} has no {decoder_file.name} with its description beside it: reconstruction needs the decoder, "
            "which only the directory of a pretraining run holds"
        )
    settings = read_objective_settings(domain, description["objective"], decoder_file)
    backbone = domain.models.create_backbone(model)
    objective = domain.build_objective(backbone, settings)
    domain.models.load_init(backbone, path)
    load_decoder_state(objective, read_weights(decoder_file), decoder_file)
    return TrainedObjective(objective, model, settings)


def decoder_beside(path: str | Path) -> Path:
    """The file in which a pretraining run keeps decoder and head, beside its encoder."""
    file = model_file(path)
    return file.with_name(file.name.replace(ENCODER, DECODER, 1))


def load_decoder(domain: Domain, objective: Objective, settings: Settings, path: str | None) -> None:
    """Start decoder and head from a pretraining run, or from another project's checkpoint that has them.

    Raises:
        UserError: no run or file, one without decoder, or a decoder of other sizes or with other settings.
    """
    if path is None:
        raise UserError("init_decoder needs a run or file to start from: give --init")
    file = decoder_beside(path)
    if file.is_file() and file != weights_file(path):
        refuse_another_decoder(settings, read_description(file).get("objective", {}), file)
        load_decoder_state(objective, read_weights(file), file, OTHER_SIZES)
        return
    state = read_weights(path)
    family = family_of(state, domain.models.families)
    converted = None if family is None else family.convert_file_state(state, path)
    if converted is None or not converted.decoder_state:
        raise UserError(f"{path} has no decoder to start from; leave --init_decoder out")
    # the number of heads is only a guess
    trained = {name: value for name, value in converted.objective.items() if name != HEADS}
    refuse_another_decoder(settings, trained, weights_file(path))
    load_decoder_state(objective, converted.decoder_state, weights_file(path), OTHER_SIZES)


def refuse_another_decoder(settings: Settings, trained: Mapping[str, Any], source: Path) -> None:
    """Compare the settings that no shape of a decoder reveals with those of the weights that it starts from.

    Raises:
        UserError: a setting differs.
    """
    for name in () if getattr(settings, "decoder", None) == "mamba" else (REPEAT, HEADS):
        before, now = trained.get(name), getattr(settings, name, None)
        if None not in (before, now) and before != now:
            raise UserError(
                f"the decoder of {source} was trained with objective.{name} {before!r}, this one has {now!r}: its "
                f"weights fit, but would mean something else; set --objective.{name} {str(before).lower()}, or leave "
                "--init_decoder out"
            )


def read_objective_settings(domain: Domain, values: Mapping[str, Any], source: Path) -> Any:
    """Build an objective's section from a description's values; up to version 0.1 there was only one method.

    Raises:
        UserError: values that no objective of the domain has.
    """
    method = values.get("method", next(iter(domain.objectives)))
    if method not in domain.objectives:
        raise UserError(
            f"{source} describes objective.method {method!r}, which {domain.program} does not have; "
            f"{near_matches(str(method), domain.objectives)}"
        )
    return read_settings(domain.objectives[method], values, source)


def load_decoder_state(
    objective: Objective,
    state: Mapping[str, Tensor],
    source: Path,
    mismatch: str = "does not fit the objective that it describes",
) -> tuple[str, ...]:
    """Load the state that :func:`decoder_state` returned, and return the keys of positions that were resampled.

    Args:
        objective: What is loaded into.
        state: Parameters by name, without the backbone's.
        source: Where the state is from.
        mismatch: What an error says about the source where names or shapes differ.

    Raises:
        UserError: names differ, or shapes other than a position table's grid.
    """
    expected = decoder_state(objective)
    other_shape = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    resampled = [key for key in other_shape if resamples(key, state[key], expected[key])]
    wrong = (expected.keys() ^ state.keys()) | (set(other_shape) - set(resampled))
    if wrong:
        raise UserError(f"{source} {mismatch}: {', '.join(sorted(wrong)[:5])}")
    objective.load_state_dict(dict(state), strict=False)
    return tuple(resampled)


def hide_and_reconstruct(
    objective: ReconstructingObjective, inputs: Any, *, ratio: float | None = None, seed: int = 0
) -> Reconstruction:
    """Run a batch through the objective in evaluation mode, as pictures show it.

    Args:
        objective: Its mode stays as it was.
        inputs: A batch that its backbone tokenizes.
        ratio: Share to hide; the objective's when None.
        seed: Chooses the hidden tokens.

    Raises:
        UserError: a ratio, although the objective draws no mask.
    """
    was_training, masking = objective.training, objective.masking
    if ratio is not None and masking is None:
        raise UserError(f"{type(objective).__name__} hides no share of tokens: leave --mask_ratio out")
    objective.eval()
    try:
        if ratio is not None and masking is not None:
            objective.masking = replace(masking, ratio=ratio, ratio_std=None)
        return objective.reconstruct(inputs, Draw.of_batch(len(inputs), seed=seed))
    finally:
        objective.train(was_training)
        objective.masking = masking


def inputs_to_draw(samples: MapStyleDataset, count: int = PICTURES) -> Tensor:
    """Stack the inputs of ``count`` samples spread evenly over the data set, so that every class has its chance."""
    indices = range(0, len(samples), max(len(samples) // count, 1))[:count]
    return torch.stack([input_of(samples[i]) for i in indices])
