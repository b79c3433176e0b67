"""Speed and memory of training and inference steps on this machine.

    python benchmarks/pretrain_step.py                               # tiny, batch 8, float32: a pretraining step
    python benchmarks/pretrain_step.py --scan torch --conv torch     # without the native kernels
    python benchmarks/pretrain_step.py --profile                     # where the time goes
    python benchmarks/pretrain_step.py --model map_mambavision_tiny  # a pyramid: mask tokens instead of hidden patches
    python benchmarks/pretrain_step.py --task finetune inference --model all --batch-size 128 \
        --precision bf16                                             # compared with the paper's Table 8, on a GPU
    python benchmarks/pretrain_step.py --batch-size 128 --precision bf16 --compile model \
        --compile-mode reduce-overhead                               # CUDA graphs, on a GPU

A training step is forward, backward, gradient clipping and AdamW, on images in memory. Peak memory is the process's on
a CPU (libraries included) and the allocator's on a GPU; every setting is measured in a separate process, and one that
fails (out of memory, say) leaves a row that says so.
"""

import argparse
import datetime
import itertools
import subprocess
import sys
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from timing import median_seconds
from torch import Tensor, nn

from map_core import Draw
from map_core.blocks.attention import Attention
from map_core.blocks.four_way import FourWayMixer
from map_core.commands.tables import read_tables
from map_core.ops import Linear
from map_core.ops.scan.interface import REGISTRY
from map_core.runs.summary import commit, device_name, peak_memory_bytes, versions
from map_core.tasks.evaluation import autocast, choose_device
from map_core.training import TrainingConfig
from map_core.training.compilation import compile_model
from map_core.training.optimizer import default_parameter_groups
from map_vision.domain import DOMAIN
from map_vision.factory import ModelConfig, create_backbone, input_size
from map_vision.pretraining import ImageObjectiveConfig, build_objective
from map_vision.registry import MODEL_NAMES

HYBRIDNETS = [f"hybridnet_{size}_patch16_224" for size in ("tiny", "small", "base", "large")]


def build(task: str, name: str, images: Tensor) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The module of a task, and the loss (or output) of one pass."""
    if task == "pretrain":
        objective = build_objective(create_backbone(ModelConfig(name)), ImageObjectiveConfig())
        steps = itertools.count()
        return objective, lambda model: model(images, Draw.of_batch(len(images), step=next(steps))).loss
    classifier = timm.create_model(name, num_classes=1000)
    if task == "inference":
        return classifier.eval(), lambda model: model(images)
    labels = torch.arange(len(images), device=images.device)
    return classifier, lambda model: F.cross_entropy(model(images).float(), labels)


def make_step(
    task: str, model: nn.Module, run: Callable[[nn.Module], Tensor], precision: str, device: torch.device
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(
        default_parameter_groups(model, 0.05), lr=1e-4, betas=(0.9, 0.95), fused=True
    )

    def train_step() -> None:
        with autocast(device, precision):
            loss = run(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def inference_step() -> None:
        with autocast(device, precision):
            run(model)

    return inference_step if task == "inference" else train_step


def paper_row(task: str, model: str, batch_size: int) -> str:
    """Images/s and GB in the paper's Table 8, of the classifier, which reads every token.

    The paper does not say whether they are of training or of inference.
    """
    if task == "pretrain" or batch_size != 128 or model not in HYBRIDNETS:
        return ""
    (table,) = (table for table in read_tables(DOMAIN) if table.name == "8")
    figures = {cell.row: cell.paper.split(", ") for cell in table.cells}
    column = HYBRIDNETS.index(model)
    return f"{figures['HybridNet-T to L, images/s'][column]}, {figures['HybridNet-T to L, GB'][column]}"


def choose_implementations(model: nn.Module, name: str, arguments: argparse.Namespace) -> None:
    """Give the model's modules the implementations that the options name.

    Raises:
        SystemExit: no module of the model takes one.
    """
    modules = list(model.modules())
    takers = {
        "scan": [(module, "scan_backend") for module in modules if hasattr(module, "scan_backend")],
        "conv": [(module, "conv_backend") for module in modules if hasattr(module, "conv_backend")],
        "attention": [(module, "backend") for module in modules if isinstance(module, Attention)],
        "linear": [(module, "backend") for module in modules if isinstance(module, Linear)],
    }
    for option, places in takers.items():
        backend = getattr(arguments, option)
        if backend != "auto" and not places:
            raise SystemExit(f"--{option} {backend} has no effect on {name}: leave it out")
        for module, attribute in places:
            setattr(module, attribute, backend)


def measure(arguments: argparse.Namespace, task: str, name: str) -> None:
    """Print the table row of one setting, and its profile if asked."""
    device = choose_device(arguments.device)
    images = torch.randn(arguments.batch_size, *input_size(ModelConfig(name)), device=device)
    model, run = build(task, name, images)
    model.to(device)
    choose_implementations(model, name, arguments)
    compiled = TrainingConfig(compile=arguments.compile, compile_mode=arguments.compile_mode)
    compile_model(model, compiled, device)
    step = make_step(task, model, run, arguments.precision, device)
    seconds = median_seconds(step, arguments.steps, device)
    scans = any(
        hasattr(module, "scan_backend") or isinstance(module, FourWayMixer) for module in model.modules()
    )
    scan = REGISTRY.choose(arguments.scan, device.type, torch.float32, 16) if scans else "-"
    print(
        f"| {task} | {name} | {arguments.batch_size} | {arguments.precision} | {scan} "
        f"| {arguments.batch_size / seconds:.2f} | {seconds:.3f} | {peak_memory_bytes(device) / 1e9:.2f} "
        f"| {paper_row(task, name, arguments.batch_size)} |",
        flush=True,
    )
    if arguments.profile:
        with torch.profiler.profile() as profile:
            step()
        table = profile.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50
        )
        print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--task", nargs="+", default=["pretrain"], choices=("pretrain", "finetune", "inference")
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=["hybridnet_tiny_patch16_224"],
        choices=["all", *MODEL_NAMES],
        metavar="NAME",
        help="'all': HybridNet tiny to large",
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--scan", default="auto", help="implementation of the selective scan")
    parser.add_argument("--conv", default="auto", help="implementation of the convolution")
    parser.add_argument("--attention", default="auto", help="implementation of attention")
    parser.add_argument("--linear", default="auto", help="implementation of linear layers")
    parser.add_argument("--compile", default="none", help="none, model or blocks, as training.compile")
    parser.add_argument("--compile-mode", default="default", help="as training.compile_mode")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--profile", action="store_true", help="print where the time of a step goes")
    parser.add_argument("--row", action="store_true", help="print no heading (how the script calls itself)")
    arguments = parser.parse_args()
    models = HYBRIDNETS if "all" in arguments.model else arguments.model
    settings = list(itertools.product(arguments.task, models))
    if not arguments.row:
        device = choose_device(arguments.device)
        print(
            f"{datetime.date.today()}  {device_name(device)}  torch {versions()['torch']}  commit {commit()}"
        )
        print(
            "| task | model | batch | precision | scan | images/s | s a step | peak memory GB | paper, A100 |"
        )
        print("|" + "---|" * 9, flush=True)
    if len(settings) == 1:
        measure(arguments, *settings[0])
        return
    for task, name in settings:
        options = ["--row", "--task", task, "--model", name]  # of a repeated option, the last one counts
        result = subprocess.run([sys.executable, *sys.argv, *options], check=False)
        if result.returncode:
            print(
                f"| {task} | {name} | {arguments.batch_size} | {arguments.precision} | failed | | | | |",
                flush=True,
            )


if __name__ == "__main__":
    main()
