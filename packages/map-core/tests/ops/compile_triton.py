"""Compile the Triton kernels for GPUs that need not be present: the compiler may refuse what the interpreter accepts.

    python compile_triton.py 80 90       compute capabilities, e.g. 80 (A100) and 90 (H100)

Prints each kernel's instruction count in PTX. The scan without its optional arguments is compiled for the first only.
test_triton.py sets --chunk to short chunks, which compile faster.
"""

import argparse
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from map_core.ops.conv.triton import conv
from map_core.ops.scan.triton import grid, loading, scan


class FakeDriver:
    """Reports a GPU of the given capability; nothing is launched on it."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.capability  # a kernel keeps the target that it first saw on a device

    def get_current_stream(self, device: int) -> int:
        return 0


class CompileOnly:
    """Stands in for a kernel, and compiles it instead of launching it."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile_kernel(*arguments: Any, **sizes: Any) -> None:
            compiled = self.kernel.warmup(*arguments, grid=grid, **sizes)
            assert compiled.asm["cubin"]
            target = compiled.metadata.target
            assert target == driver.active.get_current_target()
            lines = len(compiled.asm["ptx"].splitlines())
            print(f"{self.kernel.__name__} for {target.arch}: {lines} lines of PTX")

        return compile_kernel


def main(capabilities: list[int], chunk: int) -> None:
    kernels = loading.kernels()
    grid.CHUNK = chunk
    stand_in = SimpleNamespace(**{name: CompileOnly(getattr(kernels, name)) for name in kernels.__all__})
    scan.kernels = lambda: stand_in  # type: ignore[assignment, return-value]
    convolutions = conv.kernels()
    conv_kernels = {name: CompileOnly(getattr(convolutions, name)) for name in convolutions.__all__}
    conv.kernels = lambda: SimpleNamespace(**conv_kernels)  # type: ignore[assignment, return-value]
    sequence, weight = torch.zeros(2, 9, 96, dtype=torch.bfloat16), torch.zeros(96)
    projection = torch.zeros(2, 9, 16, dtype=torch.bfloat16)
    full = [sequence, sequence, torch.zeros(96, 16), projection, projection, weight, weight]
    scans: tuple[tuple[Any, ...], ...] = (
        (2, sequence, [*full, *full], [1] * 14, [1, 1], [0, 1]),
        (1, None, full[:5], [1] * 5 + [0] * 2, [0], [1]),
    )
    taps = torch.zeros(96, 4)
    for capability in capabilities:
        driver.set_active(FakeDriver(capability))
        for cut, z, tensors, present, softplus, reverse in scans[: 2 if capability == capabilities[0] else 1]:
            grid.segments_of = lambda length, programs, processors, cut=cut: cut  # type: ignore[misc]
            scan._forward(tensors, z, present, softplus, reverse)
            scan._backward(sequence, tensors, z, present, softplus, reverse)
        for bias, silu, back in ((weight, True, False), (None, False, True)):
            conv._forward(sequence, taps, bias, silu, back)
            conv._backward(sequence, sequence, taps, bias, silu, back)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("capabilities", nargs="+", type=int)
    parser.add_argument("--chunk", type=int, default=grid.CHUNK)
    main(**vars(parser.parse_args()))
