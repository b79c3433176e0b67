"""HybridNet and its relatives, from Mamba-only to Transformer-only: one class, in timm's vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from timm.layers import to_2tuple
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from map_core import (
    Features,
    HybridEncoder,
    LayerFeatures,
    Regions,
    Registers,
    TokenMask,
    Tokens,
    UserError,
    make_position,
)
from map_core.blocks import FourWayBlock, MambaBlock, TransformerBlock, make_norm
from map_core.blocks.norm import NormKind
from map_core.encoder import Wiring
from map_core.errors import unknown_name
from map_core.initialization import init_weights, undecayed_parameters
from map_core.orders import ScanOrder
from map_core.positions import LearnedPosition, PositionKind
from map_core.tokens import undo_scan, with_global_tokens
from map_vision.patches import PatchEmbed
from map_vision.pretrained import record_input_size
from map_vision.tokenizer import tokenize_images
from map_vision.weights import convert_state

GlobalPool = Literal["register", "avg", ""]


class RegisterNeck(nn.Module):
    """Turn n registers into one feature: reduce each, concatenate, normalise (as in Mamba-R's classifier).

    Args:
        embed_dim: Width.
        num_registers: Registers, n.
        reduction: Width of a register over its width in the feature; 1 only concatenates.

    Raises:
        UserError: a reduction below 1 or above the width.
    """

    def __init__(self, embed_dim: int, num_registers: int, reduction: int) -> None:
        super().__init__()
        if not 1 <= reduction <= embed_dim:
            raise UserError(f"neck_reduction must lie in 1 to embed_dim ({embed_dim}); got {reduction}")
        self.out_features = num_registers * (embed_dim // reduction)
        self.reduce: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if reduction > 1:
            self.reduce = nn.Linear(embed_dim, embed_dim // reduction, bias=False)
            self.norm = make_norm("rms", self.out_features)

    def forward(self, registers: Float[Tensor, "b n d"]) -> Float[Tensor, "b f"]:
        return self.norm(self.reduce(registers).flatten(1))


class HybridNet(nn.Module):
    """An image model whose encoder stacks Mamba and Transformer blocks by a layout.

    ``forward_features`` returns the registers, then the patches in raster order whatever the scan order.

    Args:
        img_size: Height and width in pixels that the positions are made for; other sizes work at run time.
        patch_size: Height and width of a patch.
        in_chans: Image channels.
        num_classes: Classes; 0 for features.
        global_pool: What the head reads: ``register``, ``avg`` (the mean patch) or ``''`` (all tokens).
        embed_dim: Width.
        layout: Layers, see :func:`map_core.expand_layout`: M (Mamba), T (Transformer), F (four scans and a SwiGLU, as
            ARM finetunes).
        num_heads, mlp_ratio: Heads and MLP ratio of the Transformer blocks; ratio 0 leaves their MLP out.
        num_registers, spread_registers: Global tokens, spread through the sequence or all in front. Those in front are
            global tokens in pretraining as well.
        neck_reduction: See :class:`RegisterNeck`.
        final_norm: Norm of the encoder's output: ``rms`` or ``layer``.
        norm_eps: Epsilon of the Transformer blocks' norms and the final norm.
        bidirectional: Scan both ways in Mamba blocks.
        order: Scan order of the patches, see :func:`map_core.scan_order`.
        block_size: Rows and columns of patches in a block, for order ``block``.
        position: Kind of position embedding, see :func:`map_core.make_position`.
        wiring: ``residual``, or ``branch`` as in the code of MAP's authors, see
            :class:`~map_core.encoder.HybridEncoder`; there Transformer blocks have no stochastic depth.
        pool_norm: Normalise the mean patch (MAE's finetuned form), not the encoder's output; for ``avg``.
        patch_stride: Step from one patch to the next, ``patch_size`` when None; a smaller one makes patches overlap,
            for classification only.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last layer, growing linearly from 0.

    Raises:
        UserError: an image size that does not fit the patch, a layout that does not parse, ``register`` pooling
            without registers, ``pool_norm`` without ``avg`` pooling.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: GlobalPool = "register",
        *,
        embed_dim: int = 192,
        layout: str = "(MMMT)x8",
        num_heads: int = 12,
        mlp_ratio: float = 2.0,
        num_registers: int = 12,
        spread_registers: bool = True,
        neck_reduction: int = 1,
        final_norm: NormKind = "rms",
        norm_eps: float = 1e-5,
        bidirectional: bool = True,
        order: ScanOrder = "row",
        block_size: Sequence[int] = (4, 4),
        position: PositionKind = "learned",
        wiring: Wiring = "residual",
        pool_norm: bool = False,
        patch_stride: int | Sequence[int] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check_pool(global_pool, num_registers=num_registers, pool_norm=pool_norm)
        if order not in get_args(ScanOrder):
            raise unknown_name("scan order", order, get_args(ScanOrder))
        self.num_classes, self.global_pool = num_classes, global_pool
        self.num_features = self.embed_dim = embed_dim
        self.num_prefix_tokens = num_registers
        self.num_global = 0 if spread_registers else num_registers
        self.patch_size: tuple[int, int] = to_2tuple(patch_size)
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.in_chans = in_chans
        self.order: ScanOrder = order
        self.block_size: tuple[int, int] = to_2tuple(block_size)
        self.patch_embed = PatchEmbed(
            self.patch_size,
            in_chans,
            embed_dim,
            stride=None if patch_stride is None else to_2tuple(patch_stride),
        )
        # settings with which the same weights compute something else
        overlapping_stride = None if self.patch_embed.stride == self.patch_size else self.patch_embed.stride
        self.invisible_settings = {
            "wiring": wiring,
            "order": order,
            "num_heads": num_heads,
            "pool_norm": pool_norm,
            "patch_stride": overlapping_stride,
        }
        grid = self.patch_embed.grid_of(self.img_size)
        self.encoder = HybridEncoder(
            embed_dim,
            layout,
            block_makers={
                "M": lambda dim, drop_path: MambaBlock(dim, drop_path=drop_path, bidirectional=bidirectional),
                "T": lambda dim, drop_path: TransformerBlock(
                    dim,
                    num_heads=num_heads,
                    mlp_ratio=mlp_ratio,
                    norm_eps=norm_eps,
                    drop_path=drop_path if wiring == "residual" else 0.0,
                ),
                "F": lambda dim, drop_path: FourWayBlock(dim, drop_path=drop_path),
            },
            position=make_position(position, embed_dim, grid=grid),
            norm=nn.Identity() if pool_norm else make_norm(final_norm, embed_dim, norm_eps),
            drop_path_rate=drop_path_rate,
            registers=Registers(num_registers, embed_dim, spread=spread_registers) if num_registers else None,
            wiring=wiring,
        )
        self.pool_norm = make_norm(final_norm, embed_dim, norm_eps) if pool_norm else None
        self.neck = (
            RegisterNeck(embed_dim, num_registers, neck_reduction) if global_pool == "register" else None
        )
        self.head_hidden_size = self.neck.out_features if self.neck else embed_dim
        self.head_drop = nn.Dropout(drop_rate)
        self.head = self._make_head(num_classes)
        stride = max(self.patch_embed.stride)
        self.feature_info = [
            {"module": f"encoder.blocks.{i}", "num_chs": embed_dim, "reduction": stride}
            for i in range(len(self.encoder.blocks))
        ]
        self.apply(init_weights)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l d"]:
        """Registers, then patches in raster order, after the final norm."""
        tokens = self.tokenize(x)
        return self._prefix_first(self.encoder.normalize(self.encoder.last_layer(tokens)), tokens)

    def forward_head(self, x: Float[Tensor, "b l d"], pre_logits: bool = False) -> Tensor:
        """Pool the output of :meth:`forward_features` and classify it."""
        if self.neck is not None:
            x = self.neck(x[:, : self.num_prefix_tokens])
        elif self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(dim=1)
            x = x if self.pool_norm is None else self.pool_norm(x)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Set the model's image size: positions are resampled once, not in every forward pass.

        Raises:
            UserError: a size that does not fit the patch.
        """
        size: tuple[int, int] = to_2tuple(img_size)
        grid = self.patch_embed.grid_of(size)
        self.img_size = size
        if isinstance(self.encoder.position, LearnedPosition):
            self.encoder.position.resize(grid)
        record_input_size(self, size)

    def forward_intermediates(
        self,
        x: Float[Tensor, "b c h w"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features after chosen layers, as timm's models return them.

        Args:
            x: Images.
            indices: Layers; the last n if an integer, all if None.
            return_prefix_tokens: Return (patches, registers) for each layer.
            norm: Apply the final norm to each.
            stop_early: Do not run layers after the last chosen one (with ``intermediates_only``).
            output_fmt: ``NCHW`` or ``NLC``.
            intermediates_only: Return the list alone instead of (final features, list).
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UserError(f"output_fmt must be 'NCHW' or 'NLC'; got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.encoder.blocks), indices)
        tokens, outputs = self.tokenize(x), []
        for i, features in enumerate(self.encoder.layer_outputs(tokens)):
            if i in take_indices:
                layer_features = self.encoder.normalize(features) if norm else features
                outputs.append(self._prefix_first(layer_features, tokens))
            if stop_early and intermediates_only and i == max_index:
                break
        rows, cols = self.patch_embed.grid(x)
        n = self.num_prefix_tokens

        def to_output_format(tokens: Tensor) -> Any:
            patches = tokens[:, n:]
            if output_fmt == "NCHW":
                patches = patches.reshape(-1, rows, cols, self.embed_dim).permute(0, 3, 1, 2).contiguous()
            return (patches, tokens[:, :n]) if return_prefix_tokens else patches

        intermediates = [to_output_format(tokens) for tokens in outputs]
        if intermediates_only:
            return intermediates
        return self._prefix_first(self.encoder.normalize(features), tokens), intermediates

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers after the last chosen one, and the norm and head if requested (``features_only``)."""
        take_indices, max_index = feature_take_indices(len(self.encoder.blocks), indices)
        del self.encoder.blocks[max_index + 1 :]
        if prune_norm:
            self.encoder.norm = nn.Identity()
            self.invisible_settings.pop("pool_norm", None)
        if prune_head:
            # neck and norm would get no gradient
            self.neck, self.pool_norm, self.global_pool = None, None, ""
            self.head_hidden_size = self.embed_dim
            self.reset_classifier(0)
        return take_indices

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: GlobalPool | None = None) -> None:
        """Replace the head; ``global_pool`` may change between ``avg`` and ``''``, not to or from registers.

        Raises:
            UserError: any other change of pooling; pooling other than ``avg`` with ``pool_norm``.
        """
        if global_pool is not None and global_pool != self.global_pool:
            _check_pool(
                global_pool, num_registers=self.num_prefix_tokens, pool_norm=self.pool_norm is not None
            )
            if "register" in (global_pool, self.global_pool):
                raise UserError(
                    f"global_pool cannot change from {self.global_pool!r} to {global_pool!r}; "
                    "create the model with it"
                )
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = self._make_head(num_classes).to(self.patch_embed.proj.weight)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load our own weights, or those of another project's family where the shapes match, under its names."""
        return super().load_state_dict(convert_state(state_dict, self), strict, assign)

    def no_weight_decay(self) -> set[str]:
        return undecayed_parameters(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups in the order of layer decay: embeddings, then one per layer, Mamba or Transformer."""
        return {
            "stem": r"^patch_embed|^encoder\.(?:position|registers)",  # a capturing group would give a layer number
            "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True, *, every: int = 1) -> None:
        """Recompute every n-th block in the backward pass instead of storing its activations; ``every=1`` is all.

        Raises:
            UserError: ``every`` below 1.
        """
        self.encoder.set_grad_checkpointing(enable, every=every)

    def tokenize(self, inputs: Float[Tensor, "b c h w"], *, targets: bool = False) -> Tokens:
        """Tokens of images in scan order, with their pixels as targets on request; registers in front are global."""
        tokens = tokenize_images(
            inputs, self.patch_embed, order=self.order, block_size=self.block_size, targets=targets
        )
        if self.encoder.registers is None or not self.num_global:
            return tokens
        return with_global_tokens(tokens, self.encoder.registers.token, self.num_global)

    def encode(self, tokens: Tokens, mask: TokenMask | None = None) -> Features:
        """Features of the visible patches after the final norm."""
        return self.encoder.encode(tokens, mask)

    def encode_causally(self, tokens: Tokens, regions: Regions, mask: TokenMask | None = None) -> Features:
        """Features of the visible patches, of tokens in region order; no patch reads a later region."""
        return self.encoder.encode_causally(tokens, regions, mask)

    def _make_head(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity()

    def _prefix_first(self, features: LayerFeatures, tokens: Tokens) -> Float[Tensor, "b l d"]:
        """Registers, then patches in raster order."""
        patches = undo_scan(features.patches.embedding, tokens)
        return patches if features.registers is None else torch.cat([features.registers, patches], dim=1)


def _check_pool(global_pool: str, *, num_registers: int, pool_norm: bool) -> None:
    if global_pool not in ("register", "avg", ""):
        raise UserError(
            "global_pool must be 'register' (the registers, a class token among them), 'avg' or ''; got "
            f"{global_pool!r}"
        )
    if global_pool == "register" and num_registers == 0:
        raise UserError("global_pool='register' needs num_registers > 0; got 0: use global_pool='avg'")
    if pool_norm and global_pool != "avg":
        raise UserError(f"pool_norm needs global_pool='avg', whose mean it normalises; got {global_pool!r}")
