"""What is installed, and what this machine can do with it."""

import torch

from map_core.cpu import describe_bf16
from map_core.ops.attention.interface import REGISTRY as ATTENTION
from map_core.ops.conv.interface import REGISTRY as CONV
from map_core.ops.linear.interface import REGISTRY as LINEAR
from map_core.ops.linear.onednn import describe_choice
from map_core.ops.scan.interface import REGISTRY as SCAN
from map_core.runs.summary import device_name, versions


def describe_environment() -> str:
    """Versions, devices, and the implementations of each op, with the reason why one is unavailable."""
    lines = ["versions", *(f"  {name:14} {version}" for name, version in versions().items())]
    lines += ["devices", f"  {device_name(torch.device('cpu'))}", f"  {'bf16 on it':14} {describe_bf16()}"]
    lines += [f"  cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    ops = {"selective scan": SCAN, "causal conv1d": CONV, "attention": ATTENTION, "linear": LINEAR}
    lines += [line for title, registry in ops.items() for line in registry.describe(title)]
    lines.append(f"  {'auto takes':14} {describe_choice()}")
    lines += [
        "floating-point operations",
        "  info --flops --model.name NAME prints those of a model, scan and attention included;",
        "  torch.utils.flop_counter.FlopCounterMode counts those of any model here, the scan included;",
        "  map_core.ops.jit_flops.jit_flop_handles() gives the formulas to fvcore",
    ]
    return "\n".join(lines)
