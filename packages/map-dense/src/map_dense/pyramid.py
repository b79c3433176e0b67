"""Feature pyramids over the single scale of a plain backbone: UperNet's four maps, and ViTDet's simple pyramid.

A plain backbone returns maps of one stride, its patch size. Heads expect strides 4, 8, 16, 32: finer ones come from
transposed convolutions, coarser ones from max pooling. At patch size 16 the factors are 4, 2, 1 and 1/2.
"""

from collections.abc import Sequence

from jaxtyping import Float
from timm.layers import LayerNorm2d as ChannelLayerNorm
from torch import Tensor, nn

from map_core.errors import UserError

STRIDES = (4, 8, 16, 32)


def rescale_steps(patch_size: int, stride: int) -> int:
    """Doublings (positive) or halvings (negative) that turn a map of stride ``patch_size`` into ``stride``.

    Raises:
        UserError: their ratio is not a power of two.
    """
    fine, coarse = sorted((patch_size, stride))
    ratio = coarse // fine if fine > 0 and coarse % fine == 0 else 0
    if ratio == 0 or ratio & (ratio - 1):
        raise UserError(
            f"patch_size ({patch_size}) and stride ({stride}) of a pyramid level must differ by a power of two; "
            "use patch size 4, 8, 16 or 32, or set strides to patch_size times powers of two"
        )
    steps = ratio.bit_length() - 1
    return steps if patch_size > stride else -steps


def _halve(steps: int) -> nn.Module:
    """Max pooling by 2 ** steps; a partial window at the border is pooled too."""
    return nn.MaxPool2d(2**steps, 2**steps, ceil_mode=True)


class UperNetPyramid(nn.Module):
    """Bring one map per level from the backbone's stride to strides 4, 8, 16, 32; channels stay.

    A factor of 4 is ConvTranspose-norm-GELU-ConvTranspose, of 2 one ConvTranspose, of 1/2 a max pooling, as in
    the segmentation code of Vim (arXiv 2401.09417) and BEiT (arXiv 2106.08254).

    Args:
        embed_dim: Channels of every map.
        patch_size: Stride of every map.
        strides: Strides to produce, one per map.
        norm: ``batch``, or ``sync`` across the processes of a GPU job (PyTorch has no synchronised norm for CPUs).

    Raises:
        UserError: a stride that is not a power of two away from the patch size, or an unknown norm.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        patch_size: int = 16,
        strides: Sequence[int] = STRIDES,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        norms = {"batch": nn.BatchNorm2d, "sync": nn.SyncBatchNorm}
        if norm not in norms:
            raise UserError(f"norm must be 'batch' or 'sync'; got {norm!r}")
        self.patch_size = patch_size
        self.out_channels = [embed_dim] * len(strides)
        self.levels = nn.ModuleList()
        for stride in strides:
            steps = rescale_steps(patch_size, stride)
            layers: list[nn.Module] = [] if steps >= 0 else [_halve(-steps)]
            for step in range(steps):
                if step > 0:
                    layers += [norms[norm](embed_dim), nn.GELU()]
                layers.append(nn.ConvTranspose2d(embed_dim, embed_dim, 2, 2))
            self.levels.append(nn.Sequential(*layers))

    def forward(self, features: Sequence[Float[Tensor, "b d _ _"]]) -> list[Float[Tensor, "b d _ _"]]:
        """Rescale the i-th map by the i-th level.

        Raises:
            UserError: the number of maps is not the number of levels.
        """
        if len(features) != len(self.levels):
            raise UserError(
                f"this pyramid has {len(self.levels)} levels but got {len(features)} feature map(s): "
                "give the backbone as many out_indices"
            )
        return [level(feature) for level, feature in zip(self.levels, features, strict=True)]


class SimpleFeaturePyramid(nn.Module):
    """Make all levels from the backbone's last map (ViTDet, arXiv 2203.16527, section 3 and appendix A.2).

    Each level is rescaled (transposed convolutions halve the channels, with norm and GELU between two of them),
    then a 1x1 and a 3x3 convolution, each with a LayerNorm over channels. The extra level takes every second
    pixel of the coarsest one.

    Args:
        in_channels: Channels of the backbone's map.
        out_channels: Channels of every level.
        patch_size: Stride of the backbone's map.
        strides: Strides to produce, finest first.
        extra_level: Append a level of twice the coarsest stride (for the region proposals of large objects).

    Raises:
        UserError: a stride that is not a power of two away from the patch size; channels that cannot be halved
            that often.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        *,
        patch_size: int = 16,
        strides: Sequence[int] = STRIDES,
        extra_level: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.extra_level = extra_level
        self.out_channels = out_channels
        self.levels = nn.ModuleList()
        for stride in strides:
            steps = rescale_steps(patch_size, stride)
            if steps > 0 and in_channels % 2**steps:
                raise UserError(
                    f"in_channels ({in_channels}) must be a multiple of {2**steps} to reach stride {stride} "
                    f"from patch_size {patch_size}"
                )
            layers: list[nn.Module] = [] if steps >= 0 else [_halve(-steps)]
            channels = in_channels
            for step in range(steps):
                if step > 0:
                    layers += [ChannelLayerNorm(channels), nn.GELU()]
                layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
                channels //= 2
            layers += [
                nn.Conv2d(channels, out_channels, 1, bias=False),
                ChannelLayerNorm(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                ChannelLayerNorm(out_channels),
            ]
            self.levels.append(nn.Sequential(*layers))

    def forward(self, features: Sequence[Float[Tensor, "b _ _ _"]]) -> tuple[Float[Tensor, "b _ _ _"], ...]:
        """Make the levels, finest first, from the last of ``features``.

        Raises:
            UserError: no feature map.
        """
        if not features:
            raise UserError(
                "a simple feature pyramid needs a feature map; got none: set the backbone's out_indices"
            )
        maps = [level(features[-1]) for level in self.levels]
        if self.extra_level:
            maps.append(maps[-1][:, :, ::2, ::2])
        return tuple(maps)
