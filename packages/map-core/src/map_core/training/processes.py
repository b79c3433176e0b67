"""Accelerate, set up from the configuration, and what processes do together."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from map_core.errors import UserError
from map_core.training.config import TrainingConfig
from map_core.training.workers import STOPPING_SIGNALS

Result = TypeVar("Result")
OTHER_ENGINES = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM"}


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """Start Accelerate on ``config.device``, alone or as one of the launcher's processes.

    Raises:
        UserError: the device is missing, FSDP is asked for on one where Accelerate would not shard, or the launcher
            asks for another engine or for compilation.
    """
    device = config.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device is cuda but torch sees no CUDA device; set --training.device auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("training.device is mps but torch sees no Apple GPU; set --training.device auto")
    if device in ("cuda", "mps") and parse_flag_from_env("ACCELERATE_USE_CPU"):
        raise UserError(
            f"training.device is {device}, but Accelerate was told to use the CPU (ACCELERATE_USE_CPU, or accelerate "
            "launch --cpu); drop one of them"
        )
    for variable, engine in OTHER_ENGINES.items():
        if parse_flag_from_env(variable):
            raise UserError(
                f"{engine} is not supported ({variable} is {os.environ[variable]}); launch with DDP, or with FSDP and "
                "--fsdp_version 2"
            )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise UserError(
            f"Accelerate was told to compile (ACCELERATE_DYNAMO_BACKEND is {backend}), which would wrap the model once "
            "more; drop it, and set --training.compile blocks"
        )
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or (device == "auto" and not has_gpu)
    # A process may train several times, one run after the other, with other settings each time.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    GradientState._reset_state()
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        rng_types=[],
        # the loop sums micro-batches; without this a launcher's setting would divide gradients a second time
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and accelerator.distributed_type != DistributedType.FSDP:
        raise UserError(
            f"FSDP was asked for, but Accelerate does not shard on {accelerator.device.type} with "
            f"{accelerator.num_processes} process(es) "
            "and would train with DDP; launch on GPUs, or without FSDP"
        )
    if is_sharded(accelerator) and int(os.environ.get("FSDP_VERSION", "1")) != 2:
        raise UserError("FSDP version 1 is not supported; launch with --fsdp_version 2")
    return accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether parameters are sharded over the processes."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def on_main_process(accelerator: Accelerator, function: Callable[[], Result]) -> Result:
    """Run ``function`` on the main process and return its result, or raise its :class:`UserError`, on all."""
    return Peers(accelerator.process_index, accelerator.num_processes).on_main(function)


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give all processes the main one's floating-point buffers, such as batch normalisation's statistics.

    Each process updates them with its own samples; DDP shares them only before a step's forward pass, FSDP never.
    """
    if accelerator.num_processes == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point() and not isinstance(buffer, DTensor):  # FSDP shards parameters alone
            contiguous = buffer.contiguous()
            torch.distributed.broadcast(contiguous, src=0)
            if contiguous is not buffer:
                buffer.copy_(contiguous)


def sum_over_processes(accelerator: Accelerator, totals: Tensor) -> Tensor:
    """Return the sum of each process's totals, in float32 on the CPU."""
    return accelerator.reduce(totals.float().to(accelerator.device)).cpu()


def mean_over_processes(accelerator: Accelerator, values: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean of each scalar over all processes, in one reduction; waits for the device."""
    if not values:
        return {}
    stacked = torch.stack([value.detach().reshape(()) for value in values.values()])
    if accelerator.num_processes > 1:
        stacked = accelerator.reduce(stacked, reduction="mean")
    return dict(zip(values, stacked.tolist(), strict=True))


def signal_of_any_process(accelerator: Accelerator, received: signal.Signals | None) -> signal.Signals | None:
    """Return the signal that any process received, SIGTERM before SIGINT; all processes call this."""
    if accelerator.num_processes == 1:
        return received
    flags = [float(received == number) for number in STOPPING_SIGNALS]
    counts = accelerator.reduce(torch.tensor(flags, device=accelerator.device)).tolist()
    return next((number for number, count in zip(STOPPING_SIGNALS, counts, strict=True) if count), None)


@dataclass(frozen=True)
class Peers:
    """The processes that run a command together.

    Attributes:
        rank: Rank of this process.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    def on_main(self, function: Callable[[], Result]) -> Result:
        """Run ``function`` on the main process and return its result, or raise its :class:`UserError`, on all.

        The main process raises the error itself, with its type, cause and traceback; the others raise its message.
        """
        outcome: list[Any] = [None, None]  # result, error message
        failure: UserError | None = None
        if self.rank == 0:
            try:
                outcome[0] = function()
            except UserError as error:
                failure, outcome[1] = error, str(error)
        if self.count > 1:
            torch.distributed.broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise UserError(outcome[1])
        return outcome[0]

    def barrier(self) -> None:
        """Wait until all processes get here."""
        if self.count > 1:
            torch.distributed.barrier()


def launched_processes() -> int:
    """Return how many processes the launcher started, known before they have joined; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def resolved_training(config: TrainingConfig, samples: int, *, pairs: bool = False) -> TrainingConfig:
    """The settings for ``samples`` training samples in the processes that the launcher started.

    Args:
        config: A ``sample_budget`` becomes epochs and what they set.
        samples: Number of training samples.
        pairs: Whether samples of a micro-batch are mixed in pairs, so that it must be even.

    Raises:
        UserError: the batch does not split evenly over the processes, or not into whole pairs.
    """
    processes = launched_processes()
    training = config.resolved_for(samples, processes=processes, pairs=pairs)
    training.micro_batch(processes, samples, pairs=pairs)  # raises if it does not split
    return training


def join_peers() -> Peers:
    """Join the processes that a launcher such as torchrun started, if any; each takes a GPU, if there are any.

    They exchange Python objects, not tensors, for which gloo works on every machine. The launcher stops them all if
    one fails, so they can wait for one another however long one of them reads.
    """
    if launched_processes() == 1:
        return Peers()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))
    return Peers(torch.distributed.get_rank(), torch.distributed.get_world_size())
