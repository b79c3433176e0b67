"""Attention with narrow heads against PyTorch's, with a mask of rows and without: ``python benchmarks/attention.py``.

    taskset -c 0 python benchmarks/attention.py --out runs/attention.json
    taskset -c 0 python benchmarks/attention.py --precision bf16    # as in mixed precision

Both read queries, keys and values in the layout of a projection, on one thread. They are timed alternately, and the
ratio is the median of the ratios of all rounds. The mask is the objective's (``map``, 14 regions), which hides half.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from results_file import save_results
from timing import seconds
from torch import Tensor

from map_core.ops import attention
from map_core.regions import region_attention_mask

SIZES = [  # sequences, heads, tokens, head dimension
    (128, 4, 32, 32),
    (64, 4, 64, 16),
    (8, 12, 98, 16),
    (8, 16, 196, 12),
    (8, 12, 196, 16),
    (8, 6, 196, 32),
    (8, 3, 196, 64),
    (2, 12, 1024, 16),
    (1, 12, 4096, 16),
    (1, 3, 4096, 64),
]
REGIONS = 14
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Time every size, both passes, with and without a mask."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure_row(size, arguments.precision, masked=masked, training=training, rounds=arguments.rounds)
        for size in SIZES
        for masked in (False, True)
        for training in (False, True)
    ]
    save_results(arguments.out, rows)


def measure_row(
    size: tuple[int, int, int, int], precision: str, *, masked: bool, training: bool, rounds: int
) -> dict[str, Any]:
    """The row of one size: milliseconds of both and their ratio."""
    batch, heads, tokens, width = size
    dtype = DTYPES[precision]
    parts = torch.randn(batch, tokens, 3, heads, width).to(dtype).unbind(2)
    q, k, v = (x.transpose(1, 2).requires_grad_(training) for x in parts)
    grad = torch.randn(batch, tokens, heads, width).to(dtype).transpose(1, 2)
    region = torch.arange(tokens).mul(REGIONS).div(tokens, rounding_mode="floor")[None]
    mask = region_attention_mask(region, "map") if masked else None

    def run(backend: str) -> tuple[Tensor, ...]:
        y = attention(q, k, v, mask, backend)
        return torch.autograd.grad(y, (q, k, v), grad) if training else (y,)

    tolerance = {"rtol": 1e-3, "atol": 1e-4} if precision == "fp32" else {"rtol": 0.1, "atol": 0.02}
    torch.testing.assert_close(run("native"), run("torch"), **tolerance)
    times = [[seconds(lambda name=name: run(name)) for name in ("torch", "native")] for _ in range(rounds)]
    theirs, ours = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    row = {
        "sequences x heads": f"{batch} x {heads}",
        "tokens": tokens,
        "head": width,
        "precision": precision,
        "mask": "map" if masked else "none",
        "pass": "both" if training else "forward",
        "PyTorch, ms": round(theirs, 2),
        "native, ms": round(ours, 2),
        "ratio": round(statistics.median(a / b for a, b in times), 2),
    }
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
