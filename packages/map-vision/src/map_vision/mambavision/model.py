"""MambaVision in timm's vocabulary, and as a backbone that paints hidden cells."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.layers import to_2tuple
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from map_core import Features, TokenMask, Tokens, UserError
from map_core.initialization import init_weights, undecayed_parameters
from map_vision.mambavision.stages import Stage, Stem, conv_stage, token_stage
from map_vision.patches import patchify, unpatchify
from map_vision.pretrained import record_input_size
from map_vision.tokenizer import grid_position
from map_vision.weights import convert_state

NUM_STAGES = 4
CELL = 32  # pixels on a side of what one position of the last stage stands for


class MambaVision(nn.Module):
    """A pyramid: two stages of convolutions, then two of Mamba mixers that end in attention.

    Source: MambaVision (arXiv 2407.08083). Each stage halves the sides and doubles the channels; stages three and
    four run within windows. Images of any size are read; only pretraining needs sides of multiples of 32.

    A pyramid cannot drop tokens. As a :class:`~map_core.encoder.Backbone` its tokens are cells of 32x32 pixels, one
    for each position of the last stage, and hidden cells are painted with a learned cell of pixels before the stem.
    After the stem would be too late: its convolutions overlap, so visible positions next to a hidden cell have already
    read its pixels.

    Args:
        img_size: Height and width in pixels that an objective's positions are made for; no weight depends on it.
        in_chans: Image channels.
        num_classes: Classes; 0 for features.
        global_pool: What the head reads: ``avg`` (the mean position) or ``''`` (all positions, in raster order).
        embed_dim: Width of the last stage; the stages before it have a half, a quarter and an eighth of it.
        stem_dim: Channels inside the stem.
        depths: Blocks of the four stages; of d blocks in stages three and four the last d // 2 are attention.
        num_heads: Attention heads of stages three and four; one number for both.
        window_size: Rows and columns of a window in stages three and four; one number for both.
        mlp_ratio: MLP width over the stage's width.
        layer_scale: Initial layer scale of the blocks in stages three and four; None for no layer scale.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last block, growing linearly from 0 at the first.
        mask_token: Learn a mask token, the cell that hidden cells are painted with, for pretraining.

    Raises:
        UserError: a width that is not a multiple of 8, heads that do not divide the width of their stage, a number of
            depths other than four, heads or windows that are neither one number nor two, windows or an MLP without
            size, an unknown pooling.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Literal["avg", ""] = "avg",
        *,
        embed_dim: int = 640,
        stem_dim: int = 32,
        depths: Sequence[int] = (1, 3, 8, 4),
        num_heads: int | Sequence[int] = (8, 16),
        window_size: int | Sequence[int] = (14, 7),
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        heads = _stage_pair("num_heads", num_heads)
        windows = _stage_pair("window_size", window_size)
        _check_sizes(embed_dim, depths, windows, mlp_ratio)
        # settings with which the same weights compute something else
        self.invisible_settings = {"num_heads": heads, "window_size": windows}
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.num_features = self.head_hidden_size = embed_dim
        self.num_prefix_tokens = self.num_global = 0
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.patch_size, self.in_chans = (CELL, CELL), in_chans
        self.global_pool = _checked_pool(global_pool)

        widths = [embed_dim // 2 ** (NUM_STAGES - 1 - i) for i in range(NUM_STAGES)]
        self.patch_embed = Stem(in_chans, stem_dim, widths[0])
        rates = [drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        stage_rates = [rates[sum(depths[:i]) : sum(depths[: i + 1])] for i in range(NUM_STAGES)]
        options: Any = {"mlp_ratio": mlp_ratio, "layer_scale": layer_scale}
        self.levels = nn.ModuleList(
            [
                conv_stage(widths[0], stage_rates[0]),
                conv_stage(widths[1], stage_rates[1]),
                token_stage(widths[2], stage_rates[2], num_heads=heads[0], window_size=windows[0], **options),
                token_stage(
                    widths[3],
                    stage_rates[3],
                    num_heads=heads[1],
                    window_size=windows[1],
                    last=True,
                    **options,
                ),
            ]
        )
        self.norm: nn.Module = nn.BatchNorm2d(embed_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head(num_classes)
        self.mask_token: nn.Parameter | None = None
        if mask_token:
            self.mask_token = nn.Parameter(torch.empty(CELL * CELL * in_chans))
            nn.init.normal_(self.mask_token, std=0.02)
        self.feature_info = [
            {"module": f"levels.{i}", "num_chs": width, "reduction": 2 ** (i + 2)}
            for i, width in enumerate(widths)
        ]
        self.apply(init_weights)

    @property
    def stages(self) -> list[Stage]:
        """The stages, typed; checkpoints call them levels."""
        return [stage for stage in self.levels if isinstance(stage, Stage)]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d rows cols"]:
        """The map after the last stage, normalised; its sides are ceil(side / 32)."""
        *_, last = self._stages(x)
        return self.norm(last)

    def forward_head(self, x: Float[Tensor, "b d rows cols"], pre_logits: bool = False) -> Tensor:
        """Pool the output of :meth:`forward_features` and classify it."""
        x = x.flatten(2).mT  # (b, d, rows, cols) -> (b, l, d)
        x = self.head_drop(x.mean(dim=1) if self.global_pool == "avg" else x)
        return x if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Float[Tensor, "b c h w"],
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps after chosen stages, before downsampling, as timm's models return them.

        Args:
            x: Images.
            indices: Stages; the last n if an integer, all if None.
            norm: Apply the final norm to the last stage's map; the other stages have none.
            stop_early: Do not run stages after the last chosen one (with ``intermediates_only``).
            output_fmt: ``NCHW``.
            intermediates_only: Return the list alone instead of (final features, list).
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt must be 'NCHW'; got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.levels), indices)
        intermediates = []
        for i, stage in enumerate(self._stages(x)):
            if i in take_indices:
                intermediates.append(self.norm(stage) if norm and i == NUM_STAGES - 1 else stage)
            if stop_early and intermediates_only and i == max_index:
                break
        return intermediates if intermediates_only else (self.norm(stage), intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last chosen one, and the norm and head if requested (``features_only``)."""
        take_indices, max_index = feature_take_indices(len(self.levels), indices)
        del self.levels[max_index + 1 :]
        self.levels[max_index].downsample = None
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return take_indices

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Literal["avg", ""] | None = None) -> None:
        """Replace the head, and what it reads if ``global_pool`` says so."""
        if global_pool is not None:
            self.global_pool = _checked_pool(global_pool)
        self.num_classes = num_classes
        self.head = self._make_head(num_classes).to(next(self.patch_embed.parameters()))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load our weights or the published ones, which have the same names."""
        return super().load_state_dict(convert_state(state_dict, self), strict, assign)

    def no_weight_decay(self) -> set[str]:
        return undecayed_parameters(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups in the order of layer decay: stem, then one per block; a downsampling goes with the block after it."""
        if coarse:
            return {
                "stem": r"^patch_embed|^mask_token",
                "blocks": [(r"^levels\.(\d+)", None), (r"^norm", (99999,))],
            }
        to_next = [(rf"^levels\.{i}\.downsample", (i + 1, 0)) for i in range(NUM_STAGES - 1)]
        return {
            "stem": r"^patch_embed|^mask_token",
            "blocks": [*to_next, (r"^levels\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Set the image size that an objective's positions are made for; no weight depends on it."""
        self.img_size = to_2tuple(img_size)
        record_input_size(self, self.img_size)

    def set_grad_checkpointing(self, enable: bool = True, *, every: int = 1) -> None:
        """Recompute every n-th block of stages three and four in the backward pass instead of storing activations.

        Raises:
            UserError: ``every`` below 1.
        """
        if every < 1:
            raise UserError(f"every must be at least 1, which recomputes every block; got {every}")
        for stage in self.stages:
            stage.activation_checkpointing, stage.recompute_every = enable, every

    def tokenize(self, inputs: Float[Tensor, "b c h w"], *, targets: bool = False) -> Tokens:
        """Cells of images in raster order; a cell's pixels are both its embedding and its target."""
        cells = patchify(inputs, self.patch_size)
        grid = inputs.shape[2] // CELL, inputs.shape[3] // CELL
        return Tokens(cells, grid_position(grid, inputs.device), cells if targets else None, grid)

    def encode(self, tokens: Tokens, mask: TokenMask | None = None) -> Features:
        """Features of every cell after the final norm; hidden cells are painted over first.

        Raises:
            UserError: a mask, but a model without a mask token.
        """
        assert tokens.grid is not None
        cells = tokens.embedding
        if mask is not None:
            if self.mask_token is None:
                raise UserError(
                    "hidden cells are painted with a learned one: create the model with mask_token=True"
                )
            cells = torch.where(mask.hidden.unsqueeze(-1), self.mask_token.to(cells.dtype), cells)
        features = self.forward_features(unpatchify(cells, tokens.grid, self.patch_size))
        all_cells = torch.arange(tokens.length, device=cells.device).unsqueeze(0)
        return Features(features.flatten(2).mT, all_cells)

    def _stages(self, x: Float[Tensor, "b c h w"]) -> Iterator[Tensor]:
        """Yield the map after each stage in turn, before downsampling."""
        x = self.patch_embed(x)
        for stage in self.stages:
            x = stage(x)
            yield x
            x = x if stage.downsample is None else stage.downsample(x)

    def _make_head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()


def _checked_pool(global_pool: str) -> str:
    if global_pool not in ("avg", ""):
        raise UserError(f"global_pool must be 'avg' or '' for MambaVision; got {global_pool!r}")
    return global_pool


def _stage_pair(name: str, value: Any) -> tuple[int, int]:
    """A setting of stages three and four; one number is for both."""
    pair = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(pair) != 2 or not all(isinstance(number, Integral) for number in pair):
        raise UserError(
            f"{name} must be one number for stages three and four, or one for each; got {value!r}: of four published "
            "numbers give the last two, as stages one and two have neither heads nor windows"
        )
    return pair


def _check_sizes(
    embed_dim: int, depths: Sequence[int], window_size: tuple[int, int], mlp_ratio: float
) -> None:
    if embed_dim < 8 or embed_dim % 8:
        raise UserError(f"embed_dim ({embed_dim}) must be a multiple of 8: three stages double the width")
    if len(depths) != NUM_STAGES or min(depths) < 1:
        raise UserError(
            f"depths must be {NUM_STAGES} numbers of blocks, each at least 1; got {tuple(depths)}"
        )
    if min(window_size) < 1:
        raise UserError(f"window_size must be at least 1 in both stages; got {window_size}")
    if mlp_ratio <= 0:
        raise UserError(f"mlp_ratio of a pyramid must be positive; got {mlp_ratio}")
