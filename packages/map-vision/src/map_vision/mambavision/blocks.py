"""The two kinds of blocks in MambaVision, and its mixer; parameters have the published names."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn

from map_core.blocks import Mlp
from map_core.blocks.transformer import mlp_width
from map_core.ops import Linear, depthwise_conv1d, linear, selective_scan


class Mixer(nn.Module):
    """A selective scan of one half of the channels beside a plain convolution of the other half.

    Source: MambaVision (arXiv 2407.08083), section 3.2. Both convolutions are centred, the scan runs
    forward only, and the halves are concatenated where Mamba would gate. The published models add the bias of the time
    step twice, in its projection and in the scan; their weights are wrong otherwise.

    Args:
        embed_dim: Width, even.
        state_dim: States per channel.
        conv_width: Taps of the depthwise convolutions.
    """

    def __init__(self, embed_dim: int, *, state_dim: int = 8, conv_width: int = 3) -> None:
        super().__init__()
        half = embed_dim // 2
        self.state_dim, self.dt_rank = state_dim, math.ceil(embed_dim / 16)
        self.scan_backend = self.conv_backend = "auto"
        self.in_proj = Linear(embed_dim, embed_dim, bias=False)
        # these two only hold the weights
        self.conv1d_x = nn.Conv1d(half, half, conv_width, groups=half, bias=False)
        self.conv1d_z = nn.Conv1d(half, half, conv_width, groups=half, bias=False)
        self.x_proj = Linear(half, self.dt_rank + 2 * state_dim, bias=False)
        self.dt_proj = Linear(self.dt_rank, half)
        states = torch.arange(1, state_dim + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(torch.log(states).repeat(half, 1))
        self.D = nn.Parameter(torch.ones(half))
        self.out_proj = Linear(embed_dim, embed_dim, bias=False)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        # one convolution serves both halves
        taps = torch.cat([self.conv1d_x.weight, self.conv1d_z.weight]).squeeze(1)
        mixed = depthwise_conv1d(self.in_proj(x), taps, activation="silu", backend=self.conv_backend)
        u, z = mixed.chunk(2, dim=-1)  # (b, l, d) -> 2 x (b, l, d/2)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
        y = selective_scan(
            u=u,
            delta=linear(dt, self.dt_proj.weight, backend=self.dt_proj.backend),
            A=-torch.exp(self.A_log.float()),
            B=B,
            C=C,
            D=self.D.float(),
            delta_bias=2 * self.dt_proj.bias.float(),
            delta_softplus=True,
            backend=self.scan_backend,
        )
        return self.out_proj(torch.cat([y, z], dim=-1))


class TokenBlock(nn.Module):
    """``x + mixer(norm1(x))``, then ``x + mlp(norm2(x))``; each branch may have a scale per channel.

    Args:
        embed_dim: Width.
        mixer: Token mixer: a :class:`Mixer` or attention.
        mlp_ratio: MLP width over ``embed_dim``.
        layer_scale: Initial value of the scales; None for no scales.
        drop_path: Stochastic depth rate; each window drops independently.
    """

    def __init__(
        self,
        embed_dim: int,
        mixer: nn.Module,
        *,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.mixer = mixer
        self.mlp = Mlp(embed_dim, mlp_width(embed_dim, mlp_ratio))
        self.gamma_1: nn.Parameter | None = None
        self.gamma_2: nn.Parameter | None = None
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((embed_dim,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((embed_dim,), layer_scale))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        mixed = self.mixer(self.norm1(x))
        x = x + self.drop_path(mixed if self.gamma_1 is None else self.gamma_1 * mixed)
        mixed = self.mlp(self.norm2(x))
        return x + self.drop_path(mixed if self.gamma_2 is None else self.gamma_2 * mixed)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to their input.

    Args:
        embed_dim: Channels.
        drop_path: Stochastic depth rate.
    """

    def __init__(self, embed_dim: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(embed_dim, embed_dim, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(embed_dim), nn.BatchNorm2d(embed_dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        y = F.gelu(self.norm1(self.conv1(x)), approximate="tanh")
        return x + self.drop_path(self.norm2(self.conv2(y)))
