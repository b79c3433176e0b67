"""The Mamba block with a one-directional or bidirectional selective scan."""

import math

import torch
from jaxtyping import Bool, Float
from timm.layers import DropPath
from torch import Tensor, nn

from map_core.blocks.norm import NormKind, make_norm
from map_core.errors import UserError
from map_core.initialization import init_time_step_, keep_init
from map_core.ops import (
    Linear,
    ScanInputs,
    bidirectional_selective_scan,
    depthwise_causal_conv1d,
    linear,
    selective_scan,
)
from map_core.tracing import fx_leaf


@fx_leaf
def _widened(x: Tensor) -> Tensor:
    """Return x in float32, or in float64 if it has that dtype."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class ScanDirection(nn.Module):
    """The parameters of one direction of a mixer: conv, the projections to dt, B and C, and the diagonal A and D.

    Args:
        inner_dim: Channels that are scanned.
        state_dim: States of a channel (mamba_ssm: ``d_state``).
        dt_rank: Rank of the time-step projection.
        conv_width: Taps of the depthwise convolution (``d_conv``).
        reverse: Scan from the last token to the first.
    """

    def __init__(
        self, inner_dim: int, *, state_dim: int, dt_rank: int, conv_width: int, reverse: bool
    ) -> None:
        super().__init__()
        self.state_dim, self.dt_rank, self.reverse = state_dim, dt_rank, reverse
        self.conv1d = nn.Conv1d(inner_dim, inner_dim, conv_width, groups=inner_dim)  # holds the weights only
        self.x_proj = Linear(inner_dim, dt_rank + 2 * state_dim, bias=False)
        self.dt_proj = Linear(dt_rank, inner_dim)
        states = torch.arange(1, state_dim + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(torch.log(states).repeat(inner_dim, 1))
        self.D = nn.Parameter(torch.ones(inner_dim))
        init_time_step_(self.dt_proj.weight, self.dt_proj.bias)
        keep_init(self.dt_proj)  # the general rule must not overwrite the time steps

    def forward(self, x: Float[Tensor, "b l e"], conv_backend: str = "auto") -> ScanInputs:
        """Compute the arguments of the selective scan of x."""
        u = depthwise_causal_conv1d(
            x,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            activation="silu",
            reverse=self.reverse,
            backend=conv_backend,
        )
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
        return ScanInputs(
            u=u,
            # the bias is added in float32, inside the scan
            delta=linear(dt, self.dt_proj.weight, backend=self.dt_proj.backend),
            A=-torch.exp(_widened(self.A_log)),
            B=B,
            C=C,
            D=_widened(self.D),
            delta_bias=_widened(self.dt_proj.bias),
            delta_softplus=True,
        )


class MambaMixer(nn.Module):
    """Gated selective scan; with two directions, both share the in and out projections and are averaged.

    Source: Mamba (arXiv 2312.00752); the averaged bidirectional form is the paper's.

    Args:
        embed_dim: Width.
        state_dim: States of a channel (mamba_ssm: ``d_state``).
        expand: Ratio of scanned channels to ``embed_dim``.
        conv_width: Taps of the depthwise convolution (``d_conv``).
        dt_rank: Rank of the time-step projection; ceil(embed_dim / 16) when None.
        bidirectional: Scan in both directions; False scans in sequence order only.

    ``scan_backend`` and ``conv_backend`` name the implementations of the two ops; set them to measure one.

    Raises:
        UserError: ``dt_rank`` is below 1.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        state_dim: int = 16,
        expand: int = 2,
        conv_width: int = 4,
        dt_rank: int | None = None,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.scan_backend = self.conv_backend = "auto"
        inner_dim = expand * embed_dim
        rank = dt_rank if dt_rank is not None else math.ceil(embed_dim / 16)
        if rank < 1:
            raise UserError(f"dt_rank ({rank}) must be at least 1")

        def direction(reverse: bool) -> ScanDirection:
            return ScanDirection(
                inner_dim, state_dim=state_dim, dt_rank=rank, conv_width=conv_width, reverse=reverse
            )

        self.in_proj = Linear(embed_dim, 2 * inner_dim, bias=False)
        self.scan_forward = direction(reverse=False)
        self.scan_backward = direction(reverse=True) if bidirectional else None
        self.out_proj = Linear(inner_dim, embed_dim, bias=False)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (b, l, d) -> 2 x (b, l, e)
        if self.scan_backward is None:
            y = selective_scan(
                **vars(self.scan_forward(x, self.conv_backend)), z=z, backend=self.scan_backend
            )
        else:
            forward, backward = (
                scan(x, self.conv_backend) for scan in (self.scan_forward, self.scan_backward)
            )
            y = bidirectional_selective_scan(forward, backward, z, backend=self.scan_backend)
        return self.out_proj(y)


class MambaBlock(nn.Module):
    """``x + mixer(norm(x))``.

    Args:
        embed_dim: Width.
        norm, norm_eps: See :func:`make_norm`.
        drop_path: Stochastic depth rate.
        state_dim, expand, conv_width, bidirectional: See :class:`MambaMixer`.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        norm: NormKind = "rms",
        norm_eps: float = 1e-5,
        drop_path: float = 0.0,
        state_dim: int = 16,
        expand: int = 2,
        conv_width: int = 4,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.norm = make_norm(norm, embed_dim, norm_eps)
        self.mixer = MambaMixer(
            embed_dim, state_dim=state_dim, expand=expand, conv_width=conv_width, bidirectional=bidirectional
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "b l d"],
        position: Float[Tensor, "#b n p"] | None = None,
        attention_mask: Bool[Tensor, "#b l l"] | None = None,
        *,
        residual: bool = True,
    ) -> Float[Tensor, "b l d"]:
        """Mix all tokens. ``attention_mask`` is for other layers: a scan reads what its direction allows.

        Without ``residual`` return only what the block adds to x.
        """
        update = self.drop_path(self.mixer(self.norm(x)))
        return x + update if residual else update
