"""Randomness is keyed, not streamed: every draw is a function of a seed and of what it is drawn for.

So two processes of eight samples draw what one of sixteen draws (but for drop path, dropout, the noise of diffusion and
the pairs of mixup, which are drawn for each micro-batch), and a resumed run redraws exactly its own numbers.
"""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def derive_seed(*keys: int | str) -> int:
    """Hash ``keys`` (a seed, then what the draw is for) to a 63-bit seed, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_generator(*keys: int | str) -> torch.Generator:
    """Return a CPU generator seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*keys))


@dataclass(frozen=True)
class Draw:
    """All that is random in one step of one process, asked for once the tokens exist.

    Two processes that hold different samples of one global batch draw different parts of the same numbers.

    >>> Draw.of_batch(2, seed=0).uniform("mask", 4).shape
    torch.Size([2, 4])

    Attributes:
        seed: The run's seed.
        step: The optimizer step, from 0.
        samples: Which samples of the global batch this process holds.
        global_batch: Samples in the global batch.
    """

    seed: int
    step: int
    samples: slice
    global_batch: int

    @classmethod
    def of_batch(cls, batch_size: int, *, seed: int = 0, step: int = 0) -> "Draw":
        """The draw of one process that holds a whole batch of ``batch_size``."""
        return cls(seed, step, slice(0, batch_size), batch_size)

    @torch.compiler.disable  # a number of the host's that differs each step would be a constant of the graph
    def generator(self, what: str) -> torch.Generator:
        """A generator for ``what`` (a name), the same on every process of the step."""
        return keyed_generator(self.seed, what, self.step)

    @torch.compiler.disable
    def scalar(self, what: str) -> float:
        """One uniform number in [0, 1), the same for the whole global batch."""
        return float(torch.rand((), generator=self.generator(what), dtype=torch.float64))

    @torch.compiler.disable
    def uniform(self, what: str, length: int, device: torch.device | None = None) -> Float[Tensor, "s l"]:
        """Uniform numbers in [0, 1), a row for each sample that this process holds."""
        whole = torch.rand((self.global_batch, length), generator=self.generator(what), device="cpu")
        noise = whole[self.samples]
        return noise if device is None else copied(noise, device)


def copied(values: Tensor, device: torch.device) -> Tensor:
    """What the host drew, on ``device``, for which the host does not wait."""
    if device.type == "cpu":
        return values
    if device.type == "cuda":
        values = values.pin_memory()  # a copy from pageable memory would wait
    return values.to(device, non_blocking=True)
