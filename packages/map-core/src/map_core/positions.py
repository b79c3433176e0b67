"""Position embeddings as functions of coordinates, the same for grids of patches and for sets of points.

Each maps raw coordinates (b or 1, l, p), and the grid where there is one, to embeddings (b or 1, l, d).
"""

import logging
import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from map_core.errors import UserError, unknown_name
from map_core.ops import Linear
from map_core.tokens import Tokens
from map_core.tracing import fx_leaf

PositionKind = Literal["learned", "sincos", "fourier", "mlp"]
MlpActivation = Literal["gelu", "silu"]
MLP_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}
MAX_PERIOD = 10000.0  # of the sin-cos positions, as in "Attention is all you need"
log = logging.getLogger(__name__)


def make_position(
    kind: PositionKind, embed_dim: int, *, grid: tuple[int, int] | None = None, coordinates: int = 2
) -> nn.Module:
    """Return a position embedding: a learned table, fixed sin-cos, Fourier features or an MLP of coordinates.

    >>> centres = torch.rand(2, 64, 3)  # for a batch of clouds, which have no grid
    >>> make_position("fourier", 32, coordinates=3)(centres, None).shape
    torch.Size([2, 64, 32])

    Args:
        kind: ``learned`` (needs a grid), ``sincos``, ``fourier`` or ``mlp``.
        embed_dim: Width.
        grid: Rows and columns of the learned table.
        coordinates: Number of coordinates of a token, p.

    Raises:
        UserError: an unknown kind, a learned table without a grid, or a width that does not suit the kind.
    """
    if kind == "learned":
        if grid is None:
            raise UserError("learned positions need tokens on a grid; use 'mlp', 'fourier' or 'sincos'")
        return LearnedPosition(grid, embed_dim)
    if kind == "sincos":
        return SinCosPosition(embed_dim, coordinates)
    if kind == "fourier":
        return FourierPosition(embed_dim, coordinates)
    if kind == "mlp":
        return MlpPosition(embed_dim, coordinates=coordinates)
    raise unknown_name("position embedding", kind, get_args(PositionKind))


def embed_positions(
    position: nn.Module, tokens: Tokens, front: Float[Tensor, "n d"] | None
) -> Float[Tensor, "#b l d"]:
    """Embed the positions of tokens by a module of (raw coordinates, grid).

    Args:
        position: The module.
        tokens: The tokens.
        front: Learned positions of the global tokens, which have no coordinates; None where the module covers them.
    """
    if front is None:
        return position(tokens.position, tokens.grid)
    n = tokens.num_global
    others = position(tokens.position[:, n:], tokens.grid)
    front = front.to(others.dtype).expand(others.shape[0], -1, -1)  # (n, d) -> (b or 1, n, d)
    return torch.cat([front, others], dim=1)


@fx_leaf
def resize_table(table: Float[Tensor, "rows cols d"], grid: tuple[int, int]) -> Tensor:
    """Resample a table of positions to another grid (bicubic, antialiased, in float32)."""
    is_static = all(isinstance(side, int) for side in grid)  # else a program for any size is being exported
    if is_static and tuple(table.shape[:2]) == grid:
        return table
    resized = F.interpolate(table.float().permute(2, 0, 1)[None], size=grid, mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).to(table.dtype)


def look_up(
    table: Float[Tensor, "rows cols d"], position: Float[Tensor, "#b l 2"]
) -> Float[Tensor, "#b l d"]:
    """Pick the entries at (row, column) positions."""
    row, col = position.long().unbind(-1)
    return F.embedding(row * table.shape[1] + col, table.flatten(0, 1))


@fx_leaf
def unit_coordinates(
    position: Float[Tensor, "#b l p"], grid: tuple[int, int] | None
) -> Float[Tensor, "#b l p"]:
    """Coordinates within about [-1, 1]: the centres of a grid's cells; coordinates of points stay as they are."""
    if grid is None:
        return position
    # axis by axis, as copying the grid's size to the device would wait for the device
    axes = [(axis + 0.5) * (2.0 / size) - 1.0 for axis, size in zip(position.unbind(-1), grid, strict=True)]
    return torch.stack(axes, dim=-1)


def resamples(key: str, source: Tensor, parameter: Tensor) -> bool:
    """Whether ``parameter`` is a table of a :class:`LearnedPosition`, which loading resamples from another grid."""
    return key.endswith("position.table") and source.ndim == 3 and source.shape[2] == parameter.shape[2]


class LearnedPosition(nn.Module):
    """A learned table over the grid, resampled for another grid at run time and when weights are loaded.

    Args:
        grid: Rows and columns of patches.
        embed_dim: Width.
    """

    def __init__(self, grid: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(*grid, embed_dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, position: Float[Tensor, "#b l 2"], grid: tuple[int, int]) -> Float[Tensor, "#b l d"]:
        return look_up(resize_table(self.table, grid), position)

    def resize(self, grid: tuple[int, int]) -> None:
        """Resample the table to another grid permanently."""
        resized = resize_table(self.table.detach(), grid).contiguous()  # as weight files require
        self.table = nn.Parameter(resized, self.table.requires_grad)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = prefix + "table"
        source, (rows, cols, width) = state_dict.get(key), self.table.shape
        if (
            source is not None
            and source.ndim == 3
            and source.shape[2] == width
            and tuple(source.shape[:2]) != (rows, cols)
        ):
            log.warning("%s: positions resampled from %dx%d to %dx%d", key, *source.shape[:2], rows, cols)
            state_dict[key] = resize_table(source, (rows, cols)).contiguous()  # as weight files require
        super()._load_from_state_dict(state_dict, prefix, *args)


@fx_leaf
def sincos(position: Float[Tensor, "#b l p"], bands: int) -> Float[Tensor, "#b l d"]:
    """Sines and cosines of coordinates at ``bands`` geometrically decreasing frequencies."""
    exponent = torch.arange(bands, device=position.device, dtype=torch.float32) / bands
    angle = position.float().unsqueeze(-1) * (1.0 / MAX_PERIOD**exponent)  # (b, l, p) -> (b, l, p, bands)
    return torch.cat([angle.sin(), angle.cos()], dim=2).flatten(2)


@fx_leaf
def octave_sincos(position: Float[Tensor, "#b l p"], octaves: int) -> Float[Tensor, "#b l d"]:
    """Sines and cosines of coordinates at ``octaves`` frequencies, the lowest with half a period over [-1, 1]."""
    frequency = math.pi / 2 * 2.0 ** torch.arange(octaves, device=position.device)
    angle = (position.float().unsqueeze(-1) * frequency).flatten(2)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class SinCosPosition(nn.Module):
    """Fixed sines and cosines of every coordinate; on a grid the same as timm's ``build_sincos2d_pos_embed``.

    Args:
        embed_dim: Width; a multiple of twice the number of coordinates.
        coordinates: Number of coordinates of a token, p.
    """

    def __init__(self, embed_dim: int, coordinates: int = 2) -> None:
        super().__init__()
        if embed_dim % (2 * coordinates):
            raise UserError(
                f"embed_dim ({embed_dim}) must be a multiple of {2 * coordinates} for sin-cos positions; "
                "use 'learned' on a grid, or 'mlp'"
            )
        self.bands = embed_dim // (2 * coordinates)

    def forward(
        self, position: Float[Tensor, "#b l p"], grid: tuple[int, int] | None = None
    ) -> Float[Tensor, "#b l d"]:
        return sincos(position, self.bands)


class FourierPosition(nn.Module):
    """A linear map of sines and cosines of the coordinates, at octaves from half a period over [-1, 1] upwards.

    Source: the encoding of NeRF (arXiv 2003.08934, section 5.1). The same for patches and points.

    Args:
        embed_dim: Width.
        coordinates: Number of coordinates of a token, p.
        octaves: Number of frequencies of each coordinate.
    """

    def __init__(self, embed_dim: int, coordinates: int = 2, *, octaves: int = 6) -> None:
        super().__init__()
        self.octaves = octaves
        self.project = Linear(2 * octaves * coordinates, embed_dim)

    def forward(
        self, position: Float[Tensor, "#b l p"], grid: tuple[int, int] | None = None
    ) -> Float[Tensor, "#b l d"]:
        waves = octave_sincos(unit_coordinates(position, grid), self.octaves)
        return self.project(waves.to(self.project.weight.dtype))


class MlpPosition(nn.Module):
    """An MLP of the coordinates.

    Args:
        embed_dim: Width of the output.
        coordinates: Number of coordinates of a token, p.
        hidden_dim: Width of the hidden layer.
        activation: Activation between the layers: ``gelu`` or ``silu``.

    Raises:
        UserError: an unknown activation.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int = 128,
        *,
        coordinates: int = 3,
        activation: MlpActivation = "gelu",
    ) -> None:
        super().__init__()
        if activation not in MLP_ACTIVATIONS:
            known = get_args(MlpActivation)
            raise unknown_name("activation", activation, known)
        self.mlp = nn.Sequential(
            Linear(coordinates, hidden_dim), MLP_ACTIVATIONS[activation](), Linear(hidden_dim, embed_dim)
        )

    def forward(
        self, position: Float[Tensor, "#b l p"], grid: tuple[int, int] | None = None
    ) -> Float[Tensor, "#b l d"]:
        return self.mlp(unit_coordinates(position, grid).to(next(self.mlp.parameters()).dtype))
