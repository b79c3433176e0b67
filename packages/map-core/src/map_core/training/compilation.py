"""``training.compile``: the whole model, or each of its blocks, by ``torch.compile`` with static shapes."""

import shutil
from collections.abc import Iterator

import torch
from torch import nn

from map_core.errors import UserError
from map_core.training.config import TrainingConfig

BACKEND = "inductor"
CPU_COMPILERS = ("g++", "clang++")


def compile_model(model: nn.Module, config: TrainingConfig, device: torch.device) -> None:
    """Compile a model in place, as ``config.compile`` says, at its first call.

    Modules, their names and their state stay as they are. Only their calls are compiled: methods such as
    ``forward_features`` are not.

    Raises:
        UserError: the model has no blocks, or a CPU has no C++ compiler.
    """
    if config.compile == "none":
        return
    if device.type == "cpu" and BACKEND == "inductor" and not any(map(shutil.which, CPU_COMPILERS)):
        raise UserError(
            f"training.compile {config.compile} needs a C++ compiler on a CPU, and none of {', '.join(CPU_COMPILERS)} "
            "is there; install one, or set --training.compile none"
        )
    parts = [model] if config.compile == "model" else list(blocks_of(model))
    if not parts:
        raise UserError(
            f"training.compile blocks needs a model with blocks, which {type(model).__name__} has not; "
            "set --training.compile model"
        )
    # Blocks share their code, and what differs between them, such as a drop-path rate, makes another graph of it;
    # beyond its limit PyTorch would run them as they are.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 4 * len(parts))
    options = {"mode": config.compile_mode} if BACKEND == "inductor" else {}
    for part in parts:
        part.compile(dynamic=False, backend=BACKEND, **options)


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of every stack in a model: what its lists called ``blocks`` hold."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "blocks":
            yield from module
