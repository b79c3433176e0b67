"""What the training loop asks of a job: a model, data, a loss, and what to do with the result."""

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from accelerate import Accelerator
from torch import nn

from map_core.errors import UserError
from map_core.objective import LossOutput
from map_core.randomness import Draw
from map_core.training.config import TrainingConfig
from map_core.training.optimizer import default_parameter_groups


@runtime_checkable
class MapStyleDataset(Protocol):
    """Samples by index.

    One that reads best in a particular order also has ``shuffled(generator)``: the numbers of all its samples, each
    once, in a random order that is a function of the generator.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def require_map_style(data: Any) -> None:
    """Raise a :class:`UserError` for what has no length and no samples by index, such as an iterable data set."""
    if not isinstance(data, MapStyleDataset):
        raise UserError(
            f"training data must be map-style, with __len__ and __getitem__; {type(data).__name__} is not: which "
            "samples a step sees, and so an exact resume, are functions of their numbers"
        )


def exported_file(directory: Path, name: str, weights: str) -> Path:
    """Where a task exports ``name``: ``name.safetensors``, or ``name_ema.safetensors`` for averaged weights.

    Args:
        directory: Directory of the run.
        name: What is exported, such as ``model``.
        weights: 'raw', 'ema' or 'best'.
    """
    return directory / f"{name}{'' if weights == 'raw' else f'_{weights}'}.safetensors"


class Task(abc.ABC):
    """A pretraining, finetuning or probing job, as the training loop sees it.

    A subclass sets ``model`` (what is optimized, in float32) and ``train_data`` in its constructor.
    ``train_data[index]`` may draw from the global torch, numpy and random generators: the loop seeds them
    by (seed, epoch, index, repeat) before every sample, and by (seed, step, micro-step, process) before every loss.
    The loop calls ``model.train()``; a model with frozen parts overrides ``train`` to keep them in eval mode.
    """

    name: ClassVar[str]
    model: nn.Module
    train_data: MapStyleDataset
    collate: Callable[[list[Any]], Any] | None = None
    keep_best: str | None = None  # metric by which the best weights so far are exported, as 'best'
    mixes_pairs: bool = False  # whether the loss pairs the samples of a micro-batch, which must then be even

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Any, draw: Draw) -> LossOutput:
        """Return the loss (the mean over the micro-batch) and other scalars to log.

        ``model`` is ``self.model``, wrapped for distributed training: call it, not its submodules.
        """

    def evaluate(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Return metrics of ``model`` (unwrapped, eval mode, no gradients), the same on every process."""
        return {}

    def export(self, model: nn.Module, directory: Path, weights: str) -> None:  # noqa: B027 (optional)
        """Write the trained weights of ``model`` (``weights`` is 'raw', 'ema' or 'best'); main process only."""

    def data_description(self) -> str:
        """Return one line that names the data that were opened, and those that are evaluated on."""
        return ""

    def data_settings(self) -> dict[str, Any]:
        """Return, by name, what defines the data (classes, augmentation, ...), which a resumed run must share."""
        return {}

    def init_identity(self) -> str | None:
        """Return an identity, the same on every machine, of what the weights start from; None: new weights."""
        return None

    @property
    def reason_not_to_shard(self) -> str | None:
        """Why the task cannot be trained under FSDP; None where it can."""
        return getattr(self.model, "reason_not_to_shard", None)

    def current_name(self, name: str) -> str:
        """Return the current name of a parameter that a checkpoint of an earlier version calls ``name``."""
        return name

    def parameter_groups(self, config: TrainingConfig) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups, with ``lr_scale`` where a group is slower."""
        return default_parameter_groups(self.model, config.weight_decay, config.layer_decay)

    def finish(self, model: nn.Module, directory: Path, summary: dict[str, Any]) -> None:  # noqa: B027 (optional)
        """Do what follows the export, such as pictures; may add to ``summary``; main process only."""
