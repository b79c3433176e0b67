"""Random orders that read few shards at a time."""

import torch
from jaxtyping import Int64
from torch import Tensor


def in_windows(shard: Int64[Tensor, " n"], window: int, generator: torch.Generator) -> Int64[Tensor, " n"]:
    """An order of samples that takes its shards in a random order, and reads from ``window`` of them at a time.

    Every sample is drawn a place between the place of its shard among the shards and ``window`` places further, around
    the end of the epoch to its beginning. So at any moment samples come from ``window`` shards in equal parts, a new
    shard begins as an old one ends, and the shards at the epoch's beginning and end are the same.

    >>> in_windows(torch.tensor([0, 0, 1, 1]), 2, torch.Generator().manual_seed(0)).shape
    torch.Size([4])

    Args:
        shard: Of each sample.
        window: Shards to read from at a time; as many as there are, or more, give any order.
        generator: Of the order, which is a function of it.
    """
    shards = int(shard.max()) + 1
    place = torch.randperm(shards, generator=generator)[shard]
    later = torch.rand(len(shard), generator=generator, dtype=torch.float64) * min(window, shards)
    return ((place + later) % shards).argsort(stable=True)
