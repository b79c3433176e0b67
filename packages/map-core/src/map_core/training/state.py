"""The model, its optimizer and its moving average: what a checkpoint holds."""

import copy
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from map_core.errors import UserError
from map_core.runs.checkpoint import Writer, read_pickle, read_tensors, write_pickle, write_tensors
from map_core.training.compilation import compile_model
from map_core.training.config import TrainingConfig
from map_core.training.optimizer import build_optimizer
from map_core.training.processes import is_sharded
from map_core.training.state_dicts import (
    gather_model,
    gather_optimizer,
    refuse_differences,
    scatter_model,
    scatter_optimizer,
)
from map_core.training.task import Task

MODEL, OPTIMIZER, EMA = "model.safetensors", "optimizer.pt", "ema.safetensors"


class TrainingState:
    """What training changes.

    Attributes:
        model: the task's model as the loss calls it, wrapped for distributed training.
        raw: the same model without the wrapper.
        ema: the moving average of its weights, if any.
        optimizer: the optimizer, unwrapped.
    """

    def __init__(self, task: Task, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        model = task.model.to(accelerator.device)
        refuse_low_precision(model)
        sharded = is_sharded(accelerator)
        if sharded and config.ema_decay is not None:
            raise UserError("training.ema_decay is not supported with FSDP; set --training.ema_decay null")
        if sharded and (reason := task.reason_not_to_shard):
            raise UserError(f"{reason}; train without FSDP")
        # Copies are taken before Accelerate rebinds forward, which a copy would share with the original.
        self._whole = copy.deepcopy(model).cpu() if sharded else None
        self.ema = None if config.ema_decay is None else ModelEmaV3(model, decay=config.ema_decay)
        optimizer = build_optimizer(task.parameter_groups(config), config)
        self.model, prepared = accelerator.prepare(model, optimizer)
        self.optimizer: torch.optim.Optimizer = prepared.optimizer
        self.raw: nn.Module = accelerator.unwrap_model(self.model)
        if self.ema is not None:
            self.ema.set(self.raw)
        compile_model(self.raw, config, accelerator.device)

    def update_average(self) -> None:
        """Update the moving average of the weights, if there is one."""
        if self.ema is not None:
            self.ema.update(self.raw)

    def weights(self) -> dict[str, nn.Module]:
        """Return the sets of weights that are evaluated and exported: 'raw', and 'ema' if there is one."""
        return {"raw": self.raw} | ({} if self.ema is None else {"ema": self.ema.module})

    def whole_weights(self) -> dict[str, nn.Module]:
        """Return :meth:`weights` as plain modules, gathered from all shards; all processes call this."""
        if self._whole is None:
            return self.weights()
        state = gather_model(self.raw)
        if state:
            self._whole.load_state_dict(state)
        return {"raw": self._whole}

    def writers(self) -> dict[str, Writer]:
        """Gather the state and return writers of its files; all processes call this."""
        files = {
            MODEL: write_tensors(gather_model(self.raw)),
            OPTIMIZER: write_pickle(gather_optimizer(self.raw, self.optimizer)),
        }
        if self.ema is not None:
            files[EMA] = write_tensors(self.ema.module.state_dict())
        return files

    def load(self, checkpoint: Path) -> None:
        """Load what :meth:`writers` wrote.

        Raises:
            UserError: the checkpoint belongs to another model or optimizer, or cannot be trusted.
        """
        scatter_optimizer(self.raw, self.optimizer, self._read_optimizer(checkpoint), str(checkpoint))
        scatter_model(self.raw, self._read_tensors(checkpoint / MODEL), str(checkpoint))
        if self.ema is not None:
            average = self._read_tensors(checkpoint / EMA)
            expected = {name: tuple(value.shape) for name, value in self.ema.module.state_dict().items()}
            refuse_differences(
                expected, {n: tuple(v.shape) for n, v in average.items()}, str(checkpoint / EMA)
            )
            self.ema.module.load_state_dict(average)

    def _read_tensors(self, path: Path) -> dict[str, Tensor]:
        return {self.task.current_name(name): value for name, value in read_tensors(path).items()}

    def _read_optimizer(self, checkpoint: Path) -> dict[str, Any]:
        saved, rename = read_pickle(checkpoint / OPTIMIZER), self.task.current_name
        try:
            groups = [
                {**group, "params": [rename(name) for name in group["params"]]}
                for group in saved["param_groups"]
            ]
            return {
                "state": {rename(name): value for name, value in saved["state"].items()},
                "param_groups": groups,
            }
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{checkpoint / OPTIMIZER} does not hold the state of an optimizer ({type(error).__name__}: {error}); "
                "use another checkpoint"
            ) from error


def refuse_low_precision(model: nn.Module) -> None:
    """Raise a :class:`TypeError` unless every floating-point parameter is float32."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise TypeError(f"parameter {name} is {parameter.dtype}; master weights must be float32")
