"""How fast is each implementation of the selective scan, and is it correct?

The outputs and gradients of every implementation available here are first compared with the definition; a wrong one
ends the run. Then all are timed, along with a plain PyTorch scan that materialises (b, d, l, n) tensors as reference
code does. "Forward" records no graph, "recorded" does, as in training; both sides of a ratio run in the same way.

    python benchmarks/scan.py --batch 32 --length 98                  the headline numbers
    python benchmarks/scan.py --batch 1 8 32 --length 98 196 1024     a grid
    python benchmarks/scan.py --both-ways --channels 1536 --batch 128 --dtype bfloat16
                                                                      both directions of a base block, on a GPU
    python benchmarks/scan.py --batch 1 --length 196 1024 4096 16384 --plot scan.png
                                                                      growth with length
"""

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from timing import median_seconds_within, peak_megabytes
from torch import Tensor

from map_core.ops import ScanInputs, bidirectional_selective_scan, scan_backends, selective_scan
from map_core.ops.registry import Request
from map_core.ops.scan.interface import REGISTRY

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-3}  # of the largest value, as in docs/numerics.md
MATERIALISED_STEPS = 512  # its backward writes whole tensors at every step: quadratic in the length


@dataclass(frozen=True)
class Contender:
    """Something to time: a call, and the tensors to differentiate with respect to."""

    call: Callable[[], Tensor]
    leaves: list[Tensor]


def arguments(
    batch: int, length: int, channels: int, state: int, device: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    values = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels) - 2,
        "A": -torch.arange(1.0, state + 1).expand(channels, state).contiguous(),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": torch.ones(channels),
        "z": normal(batch, length, channels),
        "delta_bias": 0.1 * normal(channels),
    }
    weights = {"A", "D", "delta_bias"}
    return {
        name: x.to(device, torch.float32 if name in weights else dtype).requires_grad_()
        for name, x in values.items()
    }


def materialised_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """The scan over whole (b, d, l, n) tensors, exp(delta A) and delta B u, left to autograd."""
    dtype = u.dtype
    u, delta, B, C = u.float(), delta.float(), B.float(), C.float()
    delta = torch.nn.functional.softplus(delta + delta_bias)
    decay = torch.exp(torch.einsum("bld,dn->bdln", delta, A))
    drive = torch.einsum("bld,bln,bld->bdln", delta, B, u)
    state = torch.zeros_like(decay[:, :, 0])
    outputs = []
    for t in range(u.shape[1]):
        state = decay[:, :, t] * state + drive[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, t]))
    y = torch.stack(outputs, dim=1) + D * u
    return (y * torch.nn.functional.silu(z.float())).to(dtype)


def scan(backend: str, both_ways: bool, values: dict[str, Tensor]) -> Tensor:
    """Run one direction, or the average of two that read the same inputs."""
    if not both_ways:
        return selective_scan(**values, delta_softplus=True, backend=backend)  # type: ignore[arg-type]
    inputs = ScanInputs(**{name: x for name, x in values.items() if name != "z"})
    return bidirectional_selective_scan(inputs, inputs, values["z"], backend=backend)


def supports(backend: str, values: dict[str, Tensor]) -> bool:
    request = Request(values["u"].device.type, values["u"].dtype, values["A"].shape[1])
    return backend != "reference" and REGISTRY[backend].unfit(request) is None


def contenders(values: dict[str, Tensor], both_ways: bool) -> dict[str, Contender]:
    """Return every implementation that supports these arguments, the slowest first."""
    leaves = list(values.values())
    by_name: dict[str, Contender] = {}
    if values["u"].shape[1] <= MATERIALISED_STEPS and not both_ways:
        by_name["materialised"] = Contender(lambda: materialised_scan(**values), leaves)
    for status in reversed(scan_backends()):
        if status.available and supports(status.name, values):
            by_name[status.name] = Contender(partial(scan, status.name, both_ways, values), leaves)
    return by_name


def check(device: str, dtype: torch.dtype, both_ways: bool) -> None:
    """Compare outputs and gradients with the definition.

    Raises:
        SystemExit: An implementation is wrong.
    """
    values = arguments(2, 130, 72, 16, device, dtype)
    leaves = list(values.values())
    y = scan("reference", both_ways, values)
    cotangent = torch.randn_like(y)
    expected = [y, *torch.autograd.grad(y, leaves, cotangent)]
    for name, contender in contenders(values, both_ways).items():
        y = contender.call()
        actual = [y, *torch.autograd.grad(y, leaves, cotangent)]
        for what, a, b in zip(["output", *values], actual, expected, strict=True):
            a, b = a.detach(), b.detach()
            error = float((a.double() - b.double()).abs().max() / b.double().abs().max())
            if not error <= TOLERANCE[dtype]:
                raise SystemExit(
                    f"{name} is wrong: {what} is off by {error:.1e} of its largest value; nothing timed"
                )
    print(f"checked against the definition: {', '.join(contenders(values, both_ways))}")


def copy_bandwidth(device: str) -> float:
    """Return the bytes per second, read and written, of a large copy."""
    source = torch.empty(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / median_seconds_within(lambda: target.copy_(source), 0.3, device)


def measure(
    values: dict[str, Tensor], options: argparse.Namespace, copy_rate: float
) -> list[tuple[str, dict[str, float]]]:
    """Time all implementations at one size, print rows, return (name, seconds by kind of pass)."""
    batch, length, channels = values["u"].shape
    operands = ["z", "u", *("u", "delta", "B", "C") * (2 if options.both_ways else 1)]  # first u: the output
    traffic = sum(values[name].numel() * values[name].element_size() for name in operands)
    candidates = contenders(values, options.both_ways)
    rows: list[tuple[str, dict[str, float]]] = []
    for name, contender in candidates.items():
        cotangent = torch.ones_like(contender.call())

        def forward(contender: Contender = contender) -> Tensor:
            with torch.no_grad():
                return contender.call()

        def both(contender: Contender = contender, cotangent: Tensor = cotangent) -> tuple[Tensor, ...]:
            y = contender.call()
            return (y, *torch.autograd.grad(y, contender.leaves, cotangent))

        passes: dict[str, Callable[[], object]] = {
            "forward": forward,
            "recorded": contender.call,
            "both": both,
        }
        durations = {
            kind: median_seconds_within(f, options.budget, options.device) for kind, f in passes.items()
        }
        rows.append((name, durations))
        times = " | ".join(f"{t * 1e3:.2f} | {rows[0][1][kind] / t:.3g}x" for kind, t in durations.items())
        achieved = traffic / durations["forward"]
        bandwidth = f"{achieved / 1e9:.1f} ({achieved / copy_rate:.0%})"
        print(
            f"| {batch} | {length} | {channels} | {name} | {times} | {peak_megabytes(both, options.device):.0f} "
            f"| {bandwidth} |",
            flush=True,
        )
    return rows


def plot(path: str, curves: dict[str, list[tuple[int, float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, points in curves.items():
        axes.loglog(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set(xlabel="tokens", ylabel="forward + backward, ms per sequence")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--length", type=int, nargs="+", default=[98, 196, 1024])
    parser.add_argument("--channels", type=int, default=384, help="inner width of the Mamba block")
    parser.add_argument("--state", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, default=1.0, help="seconds per measurement")
    parser.add_argument("--both-ways", action="store_true", help="time the average of both directions")
    parser.add_argument("--plot", metavar="FILE", help="draw forward + backward time against length")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)

    device_text = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} threads"
    )
    print(f"torch {torch.__version__}, {device_text}, {options.dtype}, state {options.state}")
    check(options.device, dtype, options.both_ways)
    copy_rate = copy_bandwidth(options.device)
    print(f"copy bandwidth {copy_rate / 1e9:.1f} GB/s\n")
    print(
        "| batch | length | channels | implementation | forward ms | | recorded ms | | forward + backward ms | "
        "| MB | forward GB/s (of copy) |"
    )
    print("|" + "---|" * 12)
    curves: dict[str, list[tuple[int, float]]] = {}
    for batch, length in itertools.product(options.batch, options.length):
        values = arguments(batch, length, options.channels, options.state, options.device, dtype)
        for name, durations in measure(values, options, copy_rate):
            curve = name if len(options.batch) == 1 else f"{name}, batch {batch}"
            curves.setdefault(curve, []).append((length, durations["both"] * 1e3 / batch))
    if options.plot:
        plot(options.plot, curves)


if __name__ == "__main__":
    main()
