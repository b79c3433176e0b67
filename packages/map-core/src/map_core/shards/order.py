"""Random sample orders that read from few shards at a time."""

import torch
from jaxtyping import Int64
from torch import Tensor


def in_windows(shard: Int64[Tensor, " n"], window: int, generator: torch.Generator) -> Int64[Tensor, " n"]:
    """An order of samples that visits the shards in a random order and reads from ``window`` of them at a time.

    Each sample gets a random position between that of its shard among the shuffled shards and ``window`` further,
    wrapping around the end of the epoch. So at any moment samples come from ``window`` shards in equal parts, a new
    shard begins as an old one ends, and the epoch ends with the shards that it began with.

    >>> in_windows(torch.tensor([0, 0, 1, 1]), 2, torch.Generator().manual_seed(0)).shape
    torch.Size([4])

    Args:
        shard: Shard number of each sample.
        window: Number of shards to read from at a time; with all of them, or more, any order can come out.
        generator: Random generator, which determines the order.
    """
    shards = int(shard.max()) + 1
    start = torch.randperm(shards, generator=generator)[shard]
    offset = torch.rand(len(shard), generator=generator, dtype=torch.float64) * min(window, shards)
    return ((start + offset) % shards).argsort(stable=True)
