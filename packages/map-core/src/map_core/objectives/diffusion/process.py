"""Gaussian diffusion with a learned range of variances: noising, the loss of a step, and a step back.

Sources: DDPM (arXiv 2006.11239) and Improved DDPM (arXiv 2102.09672), with the cosine schedule of the latter. The
notation is theirs: ``x_0`` is data, ``x_t`` noisy data, alpha-bar the share of the signal's power that is left.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def cosine_betas(steps: int, *, offset: float = 0.008, highest: float = 0.999) -> Float[Tensor, " t"]:
    """Variances of the noise of each step, in float64 (Improved DDPM, equation 17)."""
    place = torch.arange(steps + 1, dtype=torch.float64) / steps
    level = torch.cos((place + offset) / (1 + offset) * math.pi / 2).square()
    return (1 - level[1:] / level[:-1]).clamp(max=highest)


def respaced(steps: int, count: int) -> list[int]:
    """``count`` of ``steps`` steps, evenly spread from the first to the last."""
    stride = (steps - 1) / (count - 1) if count > 1 else 1.0
    return [round(i * stride) for i in range(count)]


class Process(nn.Module):
    """A diffusion over some steps; all of its numbers are buffers that no file stores.

    Attributes:
        step: For each step, its number in the whole process.

    Args:
        betas: Variance of the noise of each step, float64.
        steps: For each step, its number in the whole process, as the network knows it; all of them when None.
    """

    step: Tensor

    def __init__(self, betas: Float[Tensor, " t"], steps: Sequence[int] | None = None) -> None:
        super().__init__()
        alpha_bar = torch.cumprod(1 - betas, dim=0)
        alpha_bar_prev = F.pad(alpha_bar[:-1], (1, 0), value=1.0)
        variance = betas * (1 - alpha_bar_prev) / (1 - alpha_bar)
        # that of the first step is 0, which has no logarithm: the second's stands in
        floor = variance[1] if len(betas) > 1 else betas[0]
        numbers = {
            "signal": alpha_bar.sqrt(),
            "noise": (1 - alpha_bar).sqrt(),
            "to_start": alpha_bar.rsqrt(),
            "to_start_noise": (1 / alpha_bar - 1).sqrt(),
            "mean_of_start": betas * alpha_bar_prev.sqrt() / (1 - alpha_bar),
            "mean_of_now": (1 - alpha_bar_prev) * (1 - betas).sqrt() / (1 - alpha_bar),
            "log_variance": torch.cat([floor[None], variance[1:]]).log(),
            "log_beta": betas.log(),
        }
        for name, value in numbers.items():
            self.register_buffer(name, value.float(), persistent=False)
        step = torch.arange(len(betas)) if steps is None else torch.tensor(list(steps))
        self.register_buffer("step", step, persistent=False)

    @classmethod
    def cosine(cls, steps: int = 1000) -> "Process":
        """The whole process with the cosine schedule."""
        return cls(cosine_betas(steps))

    @classmethod
    def shortened(cls, count: int, steps: int = 1000) -> "Process":
        """``count`` steps of the whole process, at the same levels of noise, to sample faster."""
        timesteps = respaced(steps, count)
        alpha_bar = torch.cumprod(1 - cosine_betas(steps), dim=0)[timesteps]
        return cls(1 - alpha_bar / F.pad(alpha_bar[:-1], (1, 0), value=1.0), timesteps)

    def __len__(self) -> int:
        return len(self.step)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Process":
        """Follow the model to another device, but not to another dtype: bf16 cannot tell the lowest levels of noise."""

        def move(value: Tensor) -> Tensor:
            moved = fn(value)
            return moved if moved.dtype == value.dtype else value.to(moved.device)

        return super()._apply(move, recurse)

    def add_noise(
        self, x_0: Float[Tensor, "n c"], t: Int[Tensor, " n"], noise: Float[Tensor, "n c"]
    ) -> Float[Tensor, "n c"]:
        """Noisy data at step t."""
        return self._at("signal", t) * x_0 + self._at("noise", t) * noise

    def loss(
        self,
        output: Float[Tensor, "n both"],
        x_0: Float[Tensor, "n c"],
        x_t: Float[Tensor, "n c"],
        t: Int[Tensor, " n"],
        noise: Float[Tensor, "n c"],
    ) -> Float[Tensor, " n"]:
        """The error of the predicted noise, plus the variational bound of the step, which trains the variance alone."""
        predicted, variance_share = output.chunk(2, dim=-1)
        bound = self.bound(predicted.detach(), variance_share, x_0, x_t, t)
        return (noise - predicted).square().mean(-1) + bound

    def bound(
        self,
        predicted: Float[Tensor, "n c"],
        variance_share: Float[Tensor, "n c"],
        x_0: Float[Tensor, "n c"],
        x_t: Float[Tensor, "n c"],
        t: Int[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """Bits per value: divergence of the model's step back from the true one; at t = 0, the data's code length."""
        true_mean, true_log = self._posterior_mean(x_0, x_t, t), self._at("log_variance", t)
        mean = self._posterior_mean(self._predict_x_0(predicted, x_t, t), x_t, t)
        log_variance = self._log_variance(variance_share, t)
        divergence = 0.5 * (
            log_variance - true_log - 1 + (true_log - log_variance).exp()
            + (true_mean - mean).square() * (-log_variance).exp()
        )  # fmt: skip
        data = -log_likelihood(x_0, mean, 0.5 * log_variance)
        return torch.where(t == 0, data.mean(-1), divergence.mean(-1)) / math.log(2)

    def step_back(
        self,
        output: Float[Tensor, "n both"],
        x_t: Float[Tensor, "n c"],
        t: Int[Tensor, " n"],
        noise: Float[Tensor, "n c"],
        limit: float = math.inf,
    ) -> Float[Tensor, "n c"]:
        """The data with one step less noise; the last step adds no noise.

        Args:
            output: Output of the network.
            x_t, t: Noisy data and their steps.
            noise: Fresh noise.
            limit: A bound on the values of the data. Where next to nothing of the data is left, estimating them
                multiplies the network's error by thousands.
        """
        predicted, variance_share = output.chunk(2, dim=-1)
        x_0 = self._predict_x_0(predicted, x_t, t).clamp(-limit, limit)
        mean = self._posterior_mean(x_0, x_t, t)
        spread = (0.5 * self._log_variance(variance_share, t)).exp() * (t > 0).unsqueeze(-1)
        return mean + spread * noise

    def _at(self, name: str, t: Tensor) -> Tensor:
        return getattr(self, name)[t].unsqueeze(-1)

    def _predict_x_0(self, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return self._at("to_start", t) * x_t - self._at("to_start_noise", t) * noise

    def _posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return self._at("mean_of_start", t) * x_0 + self._at("mean_of_now", t) * x_t

    def _log_variance(self, variance_share: Tensor, t: Tensor) -> Tensor:
        """Between the posterior's variance (share -1) and the forward step's (share 1), on a logarithmic scale."""
        part = (variance_share + 1) / 2
        return part * self._at("log_beta", t) + (1 - part) * self._at("log_variance", t)


def log_likelihood(
    x: Float[Tensor, "n c"],
    mean: Float[Tensor, "n c"],
    log_scale: Float[Tensor, "n c"],
    *,
    half_bin: float = 1 / 255,
) -> Float[Tensor, "n c"]:
    """Logarithm of the probability of the bin around each value, under a Gaussian; the outermost bins are open.

    Source: DDPM, equation 13: 256 levels of pixels scaled to [-1, 1].
    """
    inverse = (-log_scale).exp()
    above, below = (normal_cdf(inverse * (x - mean + offset)) for offset in (half_bin, -half_bin))
    open_above = (1 - below).clamp(min=1e-12).log()
    inside = torch.where(x > 0.999, open_above, (above - below).clamp(min=1e-12).log())
    return torch.where(x < -0.999, above.clamp(min=1e-12).log(), inside)


def normal_cdf(x: Tensor) -> Tensor:
    """The standard normal's distribution function, by the tanh approximation known from GELU."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
