"""The environment: card, versions, commit, and the implementations of each op available on this machine."""

import importlib.util
import os
import sys

import torch
from report import Part

from map_core.commands.environment import describe_environment
from map_core.runs.summary import commit, device_name, versions
from map_core.tasks.evaluation import choose_device

OPTIONAL = ("triton", "mamba_ssm", "causal_conv1d")


def main() -> int:
    part = Part(__doc__)
    device = choose_device("auto")
    part.add(what="device", value=device_name(device))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        part.add(what="compute capability", value=f"{properties.major}.{properties.minor}")
        part.add(what="GB", value=properties.total_memory / 1e9)
        part.add(what="CUDA or ROCm", value=torch.version.cuda or torch.version.hip)
    elif not part.quick:
        part.fail("no GPU")
    part.add(what="CPU cores", value=os.cpu_count())
    part.add(what="commit", value=commit())
    for name, version in versions().items():
        part.add(what=name, value=version)
    for name in OPTIONAL:
        part.add(what=f"{name} can be imported", value=importlib.util.find_spec(name) is not None)
    print(describe_environment())
    return part.end()


if __name__ == "__main__":
    sys.exit(main())
