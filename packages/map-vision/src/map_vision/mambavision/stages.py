"""Stem and stages of MambaVision; parameters have the published names."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from map_core.blocks import Attention, residual_stream
from map_vision.mambavision.blocks import ConvBlock, Mixer, TokenBlock
from map_vision.mambavision.windows import cut_windows, join_windows
from map_vision.patches import require_channels


def halving_conv(in_chans: int, out_chans: int) -> nn.Conv2d:
    """A 3x3 convolution of stride 2, without bias; sides come out as ceil(side / 2)."""
    return nn.Conv2d(in_chans, out_chans, 3, stride=2, padding=1, bias=False)


class Stem(nn.Module):
    """Images to features of a quarter of the resolution.

    Args:
        in_chans: Image channels.
        stem_dim: Channels between the two convolutions.
        embed_dim: Channels of the first stage.
    """

    def __init__(self, in_chans: int, stem_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.conv_down = nn.Sequential(
            halving_conv(in_chans, stem_dim),
            nn.BatchNorm2d(stem_dim, eps=1e-4),
            nn.ReLU(),
            halving_conv(stem_dim, embed_dim),
            nn.BatchNorm2d(embed_dim, eps=1e-4),
            nn.ReLU(),
        )

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d rows cols"]:
        return self.conv_down(require_channels(images, self.in_chans))


class Downsample(nn.Module):
    """From one stage to the next: half the resolution, twice the channels."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.reduction = nn.Sequential(halving_conv(embed_dim, 2 * embed_dim))

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 2*d rows cols"]:
        return self.reduction(x)


class Stage(nn.Module):
    """Blocks over maps, or over the tokens of windows, which are cut once for all blocks.

    Args:
        blocks: They map (b, d, h, w), or with ``window_size`` tokens (windows, tokens, d), to the same shape.
        window_size: Rows and columns of a window; None for blocks of maps.
        downsample: Applied by the model after the blocks; None in the last stage.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], *, window_size: int | None, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.window_size, self.downsample = window_size, downsample
        self.activation_checkpointing = False
        self.recompute_every = 1

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        x = residual_stream(x)
        if self.window_size is None:
            return self._run(x)
        windows = self._run(cut_windows(x, self.window_size))
        return join_windows(windows, self.window_size, x.shape[2], x.shape[3])

    def _run(self, x: Tensor) -> Tensor:
        # A second pass through a convolution block would count its batch twice in the running statistics.
        recompute = self.activation_checkpointing and self.training and self.window_size is not None
        for i, block in enumerate(self.blocks):
            recompute_block = recompute and i % self.recompute_every == 0
            x = checkpoint(block, x, use_reentrant=False) if recompute_block else block(x)
        return x


def conv_stage(embed_dim: int, drop_path_rates: Sequence[float]) -> Stage:
    """Convolution blocks, one for each rate."""
    blocks = [ConvBlock(embed_dim, drop_path=rate) for rate in drop_path_rates]
    return Stage(blocks, window_size=None, downsample=Downsample(embed_dim))


def token_stage(
    embed_dim: int,
    drop_path_rates: Sequence[float],
    *,
    num_heads: int,
    window_size: int,
    mlp_ratio: float,
    layer_scale: float | None,
    last: bool = False,
) -> Stage:
    """Token blocks in windows, one for each rate: the first half, rounded up, with Mamba mixers, the rest attention."""
    depth = len(drop_path_rates)
    mixers = [Mixer(embed_dim) for _ in range(depth - depth // 2)]
    attention = [Attention(embed_dim, num_heads) for _ in range(depth // 2)]
    blocks = [
        TokenBlock(embed_dim, mixer, mlp_ratio=mlp_ratio, layer_scale=layer_scale, drop_path=rate)
        for mixer, rate in zip([*mixers, *attention], drop_path_rates, strict=True)
    ]
    return Stage(blocks, window_size=window_size, downsample=None if last else Downsample(embed_dim))
