"""What is installed, and what it can do here."""

import torch

from map_core.ops import conv_backends, linear_backends, scan_backends
from map_core.runs.summary import device_name, versions


def describe_environment() -> str:
    """Versions, devices, and the implementations of each op with the reason of each refusal."""
    lines = ["versions", *(f"  {name:14} {version}" for name, version in versions().items())]
    lines += ["devices", f"  {device_name(torch.device('cpu'))}"]
    lines += [f"  cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    ops = {"selective scan": scan_backends(), "causal conv1d": conv_backends(), "linear": linear_backends()}
    for title, statuses in ops.items():
        lines.append(title)
        for status in statuses:
            state = "available" if status.available else f"refused: {status.reason}"
            lines.append(f"  {status.name:14} {state}")
    return "\n".join(lines)
