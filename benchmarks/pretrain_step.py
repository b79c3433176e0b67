"""How fast and in how much memory one pretraining step runs on this machine.

    python benchmarks/pretrain_step.py                              # the tiny model, batch 8, float32
    python benchmarks/pretrain_step.py --model hybridnet_base_patch16_224 --batch-size 128 --precision bf16
    python benchmarks/pretrain_step.py --backend torch              # without the native kernel

A step is forward, backward, gradient clipping and AdamW, on images in memory. Peak memory is the process's on a CPU
(libraries included) and the allocator's on a GPU.
"""

import argparse
import datetime
import time
from contextlib import ExitStack

import torch

from map_core.ops import scan_backends
from map_core.training.optimizer import default_parameter_groups
from map_core.training.summary import commit, device_name, peak_memory_bytes, versions
from map_vision.evaluation import autocast, choose_device
from map_vision.factory import ModelConfig, create_backbone
from map_vision.models import MODEL_NAMES
from map_vision.pretraining import ImageObjectiveConfig, build_objective


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="hybridnet_tiny_patch16_224", choices=MODEL_NAMES)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--profile", action="store_true", help="print where the time of a step goes")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    model = build_objective(create_backbone(ModelConfig(arguments.model)), ImageObjectiveConfig()).to(device)
    optimizer = torch.optim.AdamW(default_parameter_groups(model, 0.05), lr=1e-4, betas=(0.9, 0.95))
    size = model.tokenizer.patch_embed.patch_size[0] * model.encoder.position.table.shape[0]
    images = torch.randn(arguments.batch_size, 3, size, size, device=device)

    def step() -> None:
        with autocast(device, arguments.precision):
            loss = model(images).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(2):
        step()
    seconds = []
    for _ in range(arguments.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    median = sorted(seconds)[len(seconds) // 2]
    backend = next(status.name for status in scan_backends() if status.available)
    print(f"{datetime.date.today()}  {device_name(device)}  torch {versions()['torch']}  commit {commit()}")
    print("| model | batch | precision | scan | images/s | s a step | peak memory GB |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {arguments.model} | {arguments.batch_size} | {arguments.precision} | {backend} "
        f"| {arguments.batch_size / median:.2f} | {median:.3f} | {peak_memory_bytes(device) / 1e9:.2f} |"
    )
    if arguments.profile:
        with ExitStack() as stack:
            profile = stack.enter_context(torch.profiler.profile())
            step()
        print(
            profile.key_averages().table(
                sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50
            )
        )


if __name__ == "__main__":
    main()
