"""The keys that queries are compared with: those of all processes' batches, and a queue of earlier ones."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def process_rank() -> int:
    """The rank of this process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather_keys(keys: Float[Tensor, "b d"]) -> Float[Tensor, "n d"]:
    """The keys of all processes, by rank; they carry no gradient, as keys come from a momentum encoder."""
    if not (dist.is_available() and dist.is_initialized()):
        return keys
    parts = [torch.empty_like(keys) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, keys.contiguous())
    return torch.cat(parts)


class Queue(nn.Module):
    """The latest keys, the oldest replaced first; part of the state, so that a resumed run has the same ones.

    Args:
        size: Number of keys.
        dim: Width of a key.
    """

    keys: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def put(self, keys: Float[Tensor, "n d"]) -> None:
        """Replace the oldest keys."""
        size = len(self.keys)
        index = (self.place + torch.arange(len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, index, keys.to(self.keys.dtype))
        self.place.copy_((self.place + len(keys)) % size)
