"""Whole steps of HybridNet and ViT, tiny to base: images/s, peak memory, and model FLOPs utilisation (MFU).

MFU is the operations of one step (counted by ``torch.utils.flop_counter``, scan and convolution included; a
multiplication and an addition are two), over its time, over the maker's peak rate of this card in bfloat16 without
sparsity; if that is not listed here, over the measured rate of a product of large matrices. Other projects' kernels
(mamba_ssm, causal_conv1d) are not counted, so there is no MFU where they run.
"""

import gc
import itertools
import sys
from typing import Any

import torch
from pretrain_step import build, make_step
from report import Part
from timing import median_seconds
from torch.utils.flop_counter import FlopCounterMode

from map_core.ops.conv import interface as conv
from map_core.ops.scan import interface as scan
from map_core.runs.summary import peak_memory_bytes
from map_core.tasks.evaluation import choose_device

FAMILIES = ("hybridnet_{}_patch16_224", "map_vit_{}_patch16_224")
SIZES = ("tiny", "small", "base")
TASKS = ("pretrain", "inference", "finetune")
STATES, KERNEL = 16, 4  # of a Mamba mixer
OTHERS_KERNELS = {"mamba_ssm", "causal_conv1d"}
BFLOAT16_TFLOPS = {
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "L40S": 362,
    "A10": 125,
    "RTX 4090": 165,
}


def peak_tflops(device: torch.device, size: int) -> tuple[float, str]:
    """The card's peak TFLOP/s in bfloat16, and the source of the number."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for card, value in BFLOAT16_TFLOPS.items():
        if card in name:
            return value, "maker"
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / median_seconds(lambda: a @ a, 10, device) / 1e12, "measured"


def settings() -> list[tuple[str, str, str]]:
    """The settings to measure (task, model, torch.compile's mode or none), the most important first."""
    pretrain, *others = (
        [(task, family.format(size), "") for size in SIZES for family in FAMILIES] for task in TASKS
    )
    # last, as compiling takes up to two minutes
    compiled = [("pretrain", FAMILIES[0].format("tiny"), mode) for mode in ("default", "reduce-overhead")]
    return [*pretrain, *itertools.chain(*others), *compiled]


def kernels(device: torch.device) -> dict[str, str]:
    """The implementations that compute scan and convolution of a step."""
    registries = {"scan": (scan.REGISTRY, STATES), "convolution": (conv.REGISTRY, KERNEL)}
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return {
        name: registry.choose("auto", device.type, dtype, size)
        for name, (registry, size) in registries.items()
    }


def measure(
    task: str, name: str, mode: str, batch: int, device: torch.device, steps: int
) -> dict[str, float]:
    """Images per second, seconds per step, memory and operations of one setting."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    images = torch.randn(batch, 3, 224, 224, device=device)
    model, run = build(task, name, images)
    model.to(device)
    step = make_step(task, model, run, "bf16" if device.type == "cuda" else "fp32", device)
    with FlopCounterMode(display=False) as counter:
        step()
    if mode:
        model.compile(dynamic=False, mode=mode)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # that so far is of the step without compilation
    seconds = median_seconds(step, steps, device)
    return {
        "images/s": batch / seconds,
        "s a step": seconds,
        "peak GB": peak_memory_bytes(device) / 1e9,
        "GFLOP an image": counter.get_total_flops() / batch / 1e9,
    }


def main() -> int:
    part = Part(__doc__)
    device = choose_device("auto")
    limit, source = peak_tflops(device, 64 if part.quick else 8192)
    part.add(model="bfloat16 TFLOP/s at most", task=source, **{"images/s": limit})
    chosen = kernels(device)
    part.add(model="kernels", **chosen)
    counted = not OTHERS_KERNELS & set(chosen.values())
    batch, steps = (1, 1) if part.quick else (128, 5)
    runs = [("pretrain", FAMILIES[0].format("tiny"), "")] if part.quick else settings()
    for task, name, mode in runs:
        row: dict[str, Any] = {"model": name, "task": f"{task}, compiled ({mode})" if mode else task}
        if part.is_over:
            part.add(**row, failed="not reached")
            part.fail(f"{row['task']} of {name} was not reached")
            continue
        try:
            measures = measure(task, name, mode, batch, device, steps)
            if counted:
                measures["MFU %"] = measures["GFLOP an image"] * measures["images/s"] / limit / 10
            part.add(**row, **measures)
        except Exception as problem:  # out of memory, say: the others go on
            part.add(**row, failed=type(problem).__name__)
            part.fail(f"{task} of {name}: {problem}")
    return part.end()


if __name__ == "__main__":
    sys.exit(main())
