"""The network that denoises the values of a token, given a decoder's features of its surroundings.

Source: MAR (arXiv 2406.11838, section 3.2), under the published parameter names.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from map_core.initialization import keep_init
from map_core.objectives.diffusion.process import Process
from map_core.ops import Linear

NUM_FREQUENCIES = 128  # of a step's embedding
MAX_PERIOD = 10000.0
EPS = 1e-6


class StepEmbedding(nn.Module):
    """An MLP of cosines and sines of the step.

    Args:
        width: Width of the embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(2 * NUM_FREQUENCIES, width), nn.SiLU(), Linear(width, width))

    def forward(self, step: Int[Tensor, " n"]) -> Float[Tensor, "n w"]:
        exponent = torch.arange(NUM_FREQUENCIES, device=step.device, dtype=torch.float32) / NUM_FREQUENCIES
        angle = step.float().unsqueeze(-1) * torch.exp(-math.log(MAX_PERIOD) * exponent)
        wave = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return self.mlp(wave.to(next(self.parameters()).dtype))


class ModulatedBlock(nn.Module):
    """``x + gate * mlp(norm(x) * (1 + scale) + shift)``, where all three are computed from the condition.

    Args:
        width: Width of the network.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 3 * width))

    def forward(self, x: Float[Tensor, "n w"], condition: Float[Tensor, "n w"]) -> Float[Tensor, "n w"]:
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class ModulatedOutput(nn.Module):
    """A modulated norm, then a linear layer to the noise and the variance share.

    Args:
        width: Width of the network.
        target_dim: Number of values in a token.
    """

    def __init__(self, width: int, target_dim: int) -> None:
        super().__init__()
        self.linear = Linear(width, 2 * target_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: Float[Tensor, "n w"], condition: Float[Tensor, "n w"]) -> Float[Tensor, "n both"]:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift)


class DenoisingMlp(nn.Module):
    """Predicts the noise in noisy values and their variance share, from the values, the step and the condition.

    Args:
        target_dim: Number of values in a token.
        condition_dim: Width of the condition.
        depth, width: Size of the network.
    """

    def __init__(self, target_dim: int, condition_dim: int, *, depth: int, width: int) -> None:
        super().__init__()
        self.time_embed = StepEmbedding(width)
        self.cond_embed = Linear(condition_dim, width)
        self.input_proj = Linear(target_dim, width)
        self.res_blocks = nn.ModuleList(ModulatedBlock(width) for _ in range(depth))
        self.final_layer = ModulatedOutput(width, target_dim)
        self._initialize()

    def forward(
        self, x_t: Float[Tensor, "n c"], step: Int[Tensor, " n"], condition: Float[Tensor, "n z"]
    ) -> Float[Tensor, "n both"]:
        dtype = self.input_proj.weight.dtype
        y = self.time_embed(step) + self.cond_embed(condition.to(dtype))
        x = self.input_proj(x_t.to(dtype))
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y)

    def _initialize(self) -> None:
        """Start from blocks that do nothing and an output of 0."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                keep_init(layer)
                if "adaLN" in name or name == "final_layer.linear":
                    nn.init.zeros_(layer.weight)
                elif name.startswith("time_embed"):
                    nn.init.normal_(layer.weight, std=0.02)
                else:
                    nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)


class DiffusionHead(nn.Module):
    """The distribution of a token's values given a condition, learned and sampled by diffusion.

    >>> head = DiffusionHead(4, 8, width=16, sampling_steps=5)
    >>> condition, values = torch.randn(6, 8), torch.randn(6, 4)
    >>> head.loss(values, condition, torch.randint(1000, (6,)), torch.randn(6, 4)).shape
    torch.Size([6])
    >>> head.sample(condition).shape
    torch.Size([6, 4])

    Args:
        target_dim: Number of values in a token.
        condition_dim: Width of the condition.
        depth, width: Size of the network.
        sampling_steps: Steps from noise to values.
        limit: Bound on sampled values; those of normalised patches stay within the default.
    """

    def __init__(
        self,
        target_dim: int,
        condition_dim: int,
        *,
        depth: int = 3,
        width: int = 1024,
        sampling_steps: int = 100,
        limit: float = 5.0,
    ) -> None:
        super().__init__()
        self.target_dim, self.limit = target_dim, limit
        self.net = DenoisingMlp(target_dim, condition_dim, depth=depth, width=width)
        self.process, self.sampler = Process.cosine(), Process.shortened(sampling_steps)

    def loss(
        self,
        values: Float[Tensor, "n c"],
        condition: Float[Tensor, "n z"],
        t: Int[Tensor, " n"],
        noise: Float[Tensor, "n c"],
    ) -> Float[Tensor, " n"]:
        """The loss of each token at its step t, in float32."""
        x_t = self.process.add_noise(values, t, noise)
        return self.process.loss(self.net(x_t, t, condition).float(), values, x_t, t, noise)

    @torch.no_grad()
    def sample(
        self, condition: Float[Tensor, "n z"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "n c"]:
        """Sample values; ``generator`` is a generator of the CPU."""
        shape, device = (len(condition), self.target_dim), condition.device
        x = torch.randn(shape, generator=generator).to(device)
        for place in reversed(range(len(self.sampler))):
            t = torch.full(shape[:1], place, device=device)
            noise = torch.randn(shape, generator=generator).to(device)
            output = self.net(x, self.sampler.step[t], condition).float()
            x = self.sampler.step_back(output, x, t, noise, self.limit)
        return x
