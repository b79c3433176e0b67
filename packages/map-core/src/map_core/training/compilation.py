"""``training.compile``: ``torch.compile`` of the whole model, or of each of its blocks, with static shapes."""

import shutil
from collections.abc import Iterator

import torch
from torch import nn

from map_core.errors import UserError
from map_core.training.config import TrainingConfig

BACKEND = "inductor"
CPU_COMPILERS = ("g++", "clang++")


def compile_model(model: nn.Module, config: TrainingConfig, device: torch.device) -> None:
    """Compile a model in place, as ``config.compile`` says; compilation happens at the first call.

    Modules, their names and their state stay as they are. Only calls of the modules are compiled, not methods such
    as ``forward_features``.

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
    modules = [model] if config.compile == "model" else list(blocks_of(model))
    if not modules:
        raise UserError(
            f"training.compile blocks needs a model with blocks, which {type(model).__name__} lacks; "
            "set --training.compile model"
        )
    # Blocks share their code, and whatever differs between them, such as a drop-path rate, makes another graph of it;
    # beyond its limit of graphs PyTorch would run them uncompiled.
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 4 * len(modules))
    options = {"mode": config.compile_mode} if BACKEND == "inductor" else {}
    for module in modules:
        module.compile(dynamic=False, backend=BACKEND, **options)


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of every stack in a model: the items of its lists called ``blocks``."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "blocks":
            yield from module
