"""What the training loop asks of a job: a model, data, a loss, and what to do with the result."""

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from accelerate import Accelerator
from torch import nn

from map_core.errors import UserError
from map_core.objective import Terms
from map_core.randomness import Draw
from map_core.training.config import TrainingConfig
from map_core.training.optimizer import default_parameter_groups


@runtime_checkable
class MapStyleDataset(Protocol):
    """Samples by index.

    One that is read best in an order of its own has ``shuffled(generator)``, too: the numbers of all its samples, each
    once, in a random order that is a function of the generator.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def refuse_other_data_sets(data: Any) -> None:
    """Raise a :class:`UserError` for what has no length and no samples by index, such as an iterable data set."""
    if not isinstance(data, MapStyleDataset):
        raise UserError(
            f"training data must be map-style, with __len__ and __getitem__; {type(data).__name__} is not: which "
            "samples a step sees, and so an exact resume, are functions of their numbers"
        )


def exported_file(directory: Path, name: str, weights: str) -> Path:
    """Where a task exports ``name``: ``name.safetensors``, or ``name_ema.safetensors`` for averaged weights.

    Args:
        directory: Of the run.
        name: Such as ``model``.
        weights: 'raw', 'ema' or 'best'.
    """
    return directory / f"{name}{'' if weights == 'raw' else f'_{weights}'}.safetensors"


class Task(abc.ABC):
    """A pretraining, finetuning or probing job, as the training loop sees it.

    A subclass sets ``model`` (what is optimized, in float32) and ``train_data`` in its constructor.
    ``train_data[index]`` may draw from the global torch, numpy and random generators: the loop seeds them
    by (seed, epoch, index) before every sample, and by (seed, step, micro-step, process) before every loss.
    The loop calls ``model.train()``; a model with frozen parts overrides ``train`` to keep them in eval mode.
    """

    name: ClassVar[str]
    model: nn.Module
    train_data: MapStyleDataset
    collate: Callable[[list[Any]], Any] | None = None
    keep_best: str | None = None  # the measure by which the best weights so far are exported, as 'best'
    mixes_pairs: bool = False  # whether the loss pairs the samples of a micro-batch, which must then be even

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Any, draw: Draw) -> Terms:
        """Return the loss (the mean over the micro-batch) and other scalars to log.

        ``model`` is ``self.model``, wrapped for distributed training: call it, not its submodules.
        """

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Return metrics of ``model`` (unwrapped, eval mode, no gradients), the same on every process."""
        return {}

    def export(self, model: nn.Module, directory: Path, weights: str) -> None:  # noqa: B027 (optional)
        """Write the trained weights of ``model`` (``weights`` is 'raw', 'ema' or 'best'); main process only."""

    def data_description(self) -> str:
        """Return one line that says which data were opened, and what is evaluated on."""
        return ""

    def data_settings(self) -> dict[str, Any]:
        """Return, by name, what makes the data what they are (classes, augmentation, ...): a resumed run shares it."""
        return {}

    def starts_from(self) -> str | None:
        """Say what the weights start from, such that it is known again elsewhere; None: new weights."""
        return None

    @property
    def unfit_for_sharding(self) -> str | None:
        """Why it cannot be trained under FSDP; None where it can."""
        return getattr(self.model, "unfit_for_sharding", None)

    def current_name(self, name: str) -> str:
        """Today's name of a parameter that a checkpoint of an earlier version calls ``name``."""
        return name

    def parameter_groups(self, config: TrainingConfig) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups, with ``lr_scale`` where a group is slower."""
        return default_parameter_groups(self.model, config.weight_decay, config.layer_decay)

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:  # noqa: B027 (optional)
        """Do what comes after the export, such as pictures; may add to ``summary``; main process only."""
