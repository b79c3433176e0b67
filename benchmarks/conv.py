"""Check and time every depthwise causal convolution available on this machine: ``python benchmarks/conv.py``.

    python benchmarks/conv.py --shape 8x98x384 --dtype float32           # batch, tokens, channels
    python benchmarks/conv.py --device cuda --dtype bfloat16              # the shapes of docs/performance.md

Width 4, bias and SiLU, as in a Mamba block; x is half of a projection, so its rows are not contiguous. GPU times are
device times (events, the cache flushed before each), without the launch; forward + backward computes the gradients of
all inputs.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from timing import median_seconds_within
from torch import Tensor

from map_core.ops import depthwise_causal_conv1d
from map_core.ops.conv.interface import REGISTRY
from map_core.ops.registry import Request
from map_core.runs.summary import commit, device_name, versions

SHAPES = ["128x98x1536", "128x98x384", "256x32x256", "128x196x1536", "8x1024x1536", "1x16384x1536"]
TAPS = 4
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}  # of the norm


def arguments(batch: int, length: int, channels: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs that require gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    projection = normal(batch, length, 2 * channels).to(dtype)
    values = {
        "x": projection[..., :channels],
        "weight": normal(channels, TAPS) / 2,
        "bias": normal(channels),
    }
    return {name: x.requires_grad_() for name, x in values.items()}


def both(call: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """The output and all gradients."""
    y = call()
    return (y, *torch.autograd.grad(y, leaves, grad))


def milliseconds(call: Callable[[], object], device: str, budget: float) -> float:
    """The median time of a call."""
    if device == "cpu":
        return 1e3 * median_seconds_within(call, budget)
    from triton.testing import do_bench  # only where there is a GPU

    return do_bench(call, rep=int(1e3 * budget), return_mode="median")


def relative_error(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest error of the output or a gradient, relative to its norm."""
    pairs = zip(actual, expected, strict=True)
    errors = [(a.float() - b.float()).detach().norm() / b.float().detach().norm() for a, b in pairs]
    return float(torch.stack(errors).max())  # unlike Python's max, NaN if one is


def main() -> None:
    """Print a row for each implementation and shape.

    Raises:
        SystemExit: an implementation is wrong.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs="+", default=SHAPES, help="batch x tokens x channels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--budget", type=float, default=0.1, help="seconds per measurement")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    print(f"{device_name(torch.device(options.device))}  torch {versions()['torch']}  commit {commit()}")
    print("| shape | implementation | off by | forward, ms | forward + backward, ms |\n" + "|---" * 5 + "|")
    for shape in options.shape:
        values = arguments(*map(int, shape.split("x")), options.device, dtype)
        leaves, float32_values = list(values.values()), {name: x.float() for name, x in values.items()}
        grad = torch.ones_like(values["x"])
        request = Request(options.device, dtype, TAPS)
        expected = both(
            partial(depthwise_causal_conv1d, **float32_values, activation="silu", backend="reference"),
            leaves,
            grad.float(),
        )
        for status in REGISTRY.statuses():
            if not status.available or REGISTRY[status.name].unfit(request) is not None:
                continue
            call = partial(depthwise_causal_conv1d, **values, activation="silu", backend=status.name)
            error = relative_error(both(call, leaves, grad), expected)
            if not error <= TOLERANCE[dtype]:
                raise SystemExit(f"{status.name} is off by {error:.1e} of the norm at {shape}")
            with torch.no_grad():
                forward_ms = milliseconds(call, options.device, options.budget)
            both_ms = milliseconds(partial(both, call, leaves, grad), options.device, options.budget)
            print(f"| {shape} | {status.name} | {error:.1e} | {forward_ms:.3f} | {both_ms:.3f} |", flush=True)


if __name__ == "__main__":
    main()
