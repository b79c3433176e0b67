"""Randomness is keyed, not streamed: every draw is a function of a seed and of its purpose.

So two processes with eight samples each draw the same numbers as one with sixteen (except for drop path, dropout,
diffusion noise and mixup pairs, which are drawn per micro-batch), and a resumed run draws exactly the same numbers.
"""

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def derive_seed(*keys: int | str) -> int:
    """Hash ``keys`` (a seed, then the purpose of the draw) to a 63-bit seed, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed_generator(*keys: int | str) -> torch.Generator:
    """Return a CPU generator seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*keys))


@dataclass(frozen=True)
class Draw:
    """The source of what an objective draws in one step of one process (masks, diffusion noise), and of mixed pairs.

    Dropout and drop path draw from torch's generators, which the training loop seeds for each micro-step and process
    (:meth:`map_core.training.plan.RunPlan.step_seed`). Processes that hold different samples of a global batch get
    different rows of the same random numbers.

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

    @torch.compiler.disable  # the step is a Python number, which the graph would hold as a constant
    def generator(self, what: str) -> torch.Generator:
        """A generator for the purpose ``what`` (a name), the same in every process of the step."""
        return keyed_generator(self.seed, what, self.step)

    @torch.compiler.disable
    def scalar(self, what: str) -> float:
        """One uniform number in [0, 1), the same for the whole global batch."""
        return float(torch.rand((), generator=self.generator(what), dtype=torch.float64))

    @torch.compiler.disable
    def uniform(self, what: str, length: int, device: torch.device | None = None) -> Float[Tensor, "s l"]:
        """Uniform numbers in [0, 1), one row for each sample that this process holds."""
        batch_noise = torch.rand((self.global_batch, length), generator=self.generator(what), device="cpu")
        noise = batch_noise[self.samples]
        return noise if device is None else copy_to_device(noise, device)


def copy_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy values drawn on the host to ``device`` without making the host wait."""
    if device.type == "cpu":
        return values
    if device.type == "cuda":
        values = values.pin_memory()  # a copy from pageable memory would wait
    return values.to(device, non_blocking=True)
