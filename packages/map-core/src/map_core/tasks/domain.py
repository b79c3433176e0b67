"""What a domain (images, point clouds) hands to the tasks and commands that are written once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.utils.data import default_collate

from map_core.errors import UserError
from map_core.objective import Objective
from map_core.reading import content_of
from map_core.runs.notes import tell
from map_core.runs.summary import to_serializable
from map_core.tasks.evaluation import Collate, EvaluationConfig, Gather, choose_device, collect
from map_core.tasks.trained_models import Models
from map_core.training.task import MapStyleDataset, require_map_style

Purpose = Literal["pretrain", "finetune", "evaluate", "features"]


@runtime_checkable
class Samples(Protocol):
    """Samples by index, each beginning with its input; names are files or whatever else identifies a sample."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    @property
    def names(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Skipped:
    """The unreadable samples met so far.

    Attributes:
        count: How many.
        note: A line that names some of them; empty if there are none.
    """

    count: int = 0
    note: str = ""


@dataclass(frozen=True)
class OpenedData:
    """The data of a run, opened for one purpose.

    Attributes:
        description: One line that says what was opened.
        classes: Class names in the order of the labels; () without labels.
        train: Training samples, augmented; None where there is no training split. Names are for messages and
            exports: a user's own data set need not have them.
        plain_train: The same without augmentation.
        evaluation: Samples to evaluate on, or None.
        evaluated_on: What ``evaluation`` is, for summaries.
        preprocessing: Entries of a model's description with which inputs are prepared as in training.
        identity: What else identifies the training data, such as a checksum.
        skipped: Counts the unreadable samples met so far.
    """

    description: str
    classes: tuple[str, ...]
    train: MapStyleDataset | None
    plain_train: MapStyleDataset | None
    evaluation: MapStyleDataset | None
    evaluated_on: str = "evaluation split"
    preprocessing: dict[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    skipped: Callable[[], Skipped] = Skipped


def required_training_samples(data: OpenedData) -> MapStyleDataset:
    """The training samples.

    Raises:
        UserError: there is an evaluation split only.
    """
    if data.train is None:
        raise UserError(
            f"no training split, which this needs, in {data.description}: pass --data.train_split"
        )
    return data.train


def refuse_other_samples(samples: Any, *, labelled: bool) -> None:
    """Read one sample of a user's data set before anything is trained or measured on it.

    Args:
        samples: The data set.
        labelled: Whether a label must follow the input.

    Raises:
        UserError: it has no samples, or they do not have the form that tasks read.
    """
    require_map_style(samples)
    if not len(samples):
        raise UserError(f"{type(samples).__name__} has no samples; give a data set that has some")
    sample = samples[0]
    parts = sample if isinstance(sample, tuple | list) else (sample,)
    if isinstance(parts[0], Tensor) and (not labelled or (len(parts) > 1 and is_label(parts[1]))):
        return
    form = "(input tensor, whole number)" if labelled else "an input tensor, or a tuple that begins with one"
    part_types = ", ".join(type(part).__name__ for part in parts)
    raise UserError(
        f"a sample must be {form}; sample 0 of {type(samples).__name__} is {part_types}; change its __getitem__"
    )


def is_label(value: Any) -> bool:
    """Whether a value is a whole number, plain or as a tensor."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point()
    return isinstance(value, Integral)


# data stay the same wherever they lie and however they are read; the content of statistics is in the preprocessing
NOT_IDENTIFYING = ("root", "cache", "on_error", "statistics", "shard_cache", "shard_cache_size")


def data_settings(config: Any, preprocessing: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The settings that identify data, by name, so that a run is resumed on the same data.

    Args:
        config: The data section. Where it leaves a setting to ``preprocessing``, the resolved value counts.
        preprocessing: As in :class:`OpenedData`.
        more: Further entries, such as the classes.
    """
    settings = {key: value for key, value in to_serializable(config).items() if key not in NOT_IDENTIFYING}
    if settings.get("labels") is not None:  # this file may have moved as well; its bytes count
        settings["labels"] = content_of(settings["labels"])
    return {**settings, **to_serializable(dict(preprocessing)), **to_serializable(more)}


@runtime_checkable
class OpenData(Protocol):
    """Opens the data of a run for a purpose; ``trained`` is the :attr:`OpenedData.preprocessing` of the training."""

    def __call__(
        self, config: Any, model: Any, purpose: Purpose, trained: Mapping[str, Any] = ...
    ) -> OpenedData: ...


@runtime_checkable
class OpenFiles(Protocol):
    """Opens files and folders as samples without labels."""

    def __call__(
        self, paths: str | list[str], config: Any, model: Any, trained: Mapping[str, Any] = ...
    ) -> Samples: ...


@runtime_checkable
class DrawPicture(Protocol):
    """Writes a picture of an objective's reconstructions of inputs."""

    def __call__(
        self,
        objective: Objective,
        inputs: Tensor,
        path: Path,
        *,
        data: OpenedData,
        ratio: float | None = None,
        seed: int = 0,
    ) -> None: ...


Thumbnail = Callable[[Samples, int, Mapping[str, Any]], UInt8[np.ndarray, "h w 3"]]
DataDefaults = Callable[[dict[str, Any], dict[str, Any], Mapping[str, str]], dict[str, Any]]
OtherInputs = Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]


def unchanged(
    values: dict[str, Any], description: dict[str, Any], options: Mapping[str, str]
) -> dict[str, Any]:
    """A run's data settings, unchanged."""
    return values


Logits = tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]


def plain_logits(
    model: nn.Module,
    samples: Samples,
    config: EvaluationConfig,
    *,
    collate: Collate,
    title: str,
    labelled: bool = True,
    gather: Gather = collect,
) -> Logits:
    """Logits and labels of all samples, in order, as ``gather`` collects them; missing labels are zeros."""
    device = choose_device(config.device)
    model = model.to(device).eval()
    return gather(model, samples, config, device, collate=collate, title=title)


@dataclass(frozen=True, eq=False)
class Domain:
    """One domain.

    Attributes:
        program: Name of its command line.
        recipes: Package that holds its recipes.
        sample: The word for one sample, such as "image"; ``--images`` then names files to run.
        models: See :class:`~map_core.tasks.trained_models.Models`.
        data, classification, evaluation: Sections of its recipes.
        objectives: The section of each objective, by its ``method``; the first is the default.
        open_data, open_files: Open samples for the data section and the model section.
        data_defaults: Turns a run's data section, its description and the options of the command line into the
            data settings that commands start from.
        other_inputs: Says how inputs, by their :attr:`OpenedData.preprocessing`, differ from those that described
            weights were trained with; None where they do not.
        rows: Rows of a picture of reconstructions.
        evaluators: Measure runs that are not classifiers, by the ``holds`` of their description.
        builders: Build models of further kinds from the model section and the rest of the description, by its
            ``holds``.
        build_objective: Builds the objective that a section describes around a backbone, which it shares.
        draw_picture: Draws the picture of a pretraining run.
        thumbnail: Draws a small picture of one of the samples, by its index, with the inputs' preparation from a
            model's description.
        example: A batch of one sample that fits a model section, to count operations on.
        size_axes: Axes of inputs that make up a sample's size, with their names.
        any_size: Whether exported programs leave that size free by default.
        outputs: Classes of the classifiers whose sizes ``info`` prints.
        collate: Makes a batch of samples.
        logits: Runs a classifier over samples, ``labelled`` or not; the plain way, or with a domain's voting
            protocols.
        protocol: What the evaluation section measures, in words, for summaries; None for the plain way.
        info: Lines of the command ``info`` besides versions and models.
        timm_config: Makes the ``config.json`` from which ``timm.create_model`` makes the model, from a model section
            and its description; None for a domain whose models timm does not know.
    """

    program: str
    recipes: str
    sample: str
    models: Models[Any]
    data: type
    objectives: Mapping[str, type]
    classification: type
    open_data: OpenData
    open_files: OpenFiles
    build_objective: Callable[[nn.Module, Any], Objective]
    draw_picture: DrawPicture
    thumbnail: Thumbnail
    example: Callable[[Any], Tensor]
    outputs: int
    data_defaults: DataDefaults = unchanged
    other_inputs: OtherInputs = lambda prepared, trained: None
    rows: int = 8
    evaluators: Mapping[str, Callable[[Any], dict[str, Any]]] = field(default_factory=dict)
    builders: Mapping[str, Callable[[Any, Mapping[str, Any]], nn.Module]] = field(default_factory=dict)
    evaluation: type[EvaluationConfig] = EvaluationConfig
    collate: Collate = default_collate
    logits: Callable[..., Logits] = plain_logits
    protocol: Callable[[Any], str | None] = lambda config: None
    info: Callable[[], list[str]] = list
    timm_config: Callable[[Any, Mapping[str, Any]], dict[str, Any]] | None = None
    size_axes: Mapping[int, str] = field(default_factory=dict)
    any_size: bool = False

    @property
    def objective(self) -> type:
        """The section of the default objective."""
        return next(iter(self.objectives.values()))

    @property
    def module(self) -> str:
        """The package that ``python -m`` runs."""
        return self.recipes.split(".")[0]


def report_skipped(domain: Domain, data: OpenedData, summary: dict[str, Any]) -> None:
    """Say which unreadable samples were skipped, if any, and put their number into the summary."""
    skipped = data.skipped()
    if skipped.count:
        summary[f"skipped_{domain.sample}s"] = skipped.count
        tell(skipped.note)
