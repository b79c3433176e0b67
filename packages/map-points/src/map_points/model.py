"""Point models, as encoders for pretraining and as classifiers: this project's own and published ones."""

from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from map_core import Features, HybridEncoder, Regions, Registers, TokenMask, Tokens
from map_core.blocks import MambaBlock, TransformerBlock, make_norm
from map_core.errors import UserError, unknown_name
from map_core.initialization import init_weights, undecayed_parameters
from map_core.positions import MlpPosition
from map_core.ranges import check, require
from map_points.blocks import Mamba3DBlock, ScanKind
from map_points.conventions import CONVENTIONS, Conventions, pool_patches
from map_points.patches import PatchEmbedding
from map_points.tokenizer import (
    PointOrder,
    concatenate_scans,
    require_point_order,
    scan_again,
    tokenize_clouds,
)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mamba3d": {"layout": "Mx12"},
    # after every third Mamba block an attention-only T: one of two readings that fit the paper's 19.3M
    "hybridnet3d": {"layout": "(MMMT)x4"},
    "hybridnet3d_nano": {
        "layout": "MMMT",
        "embed_dim": 128,
        "patch_hidden_dim": 64,
        "num_heads": 4,
        "num_patches": 32,
        "order": "hilbert",
    },
    "mamba3d_authors": {
        "layout": "Mx12",
        "num_patches": 128,
        "scan": "channel_flip",
        "position_activation": "silu",
        "local_spread": "deviation",
        "local_class_token": True,
        "skip_origin": True,
    },
    "point_mae": {"layout": "Tx12", "mlp_ratio": 4.0, "pool": "max", "skip_origin": True},
    "point_mamba": {
        "layout": "Sx12",
        "order": "hilbert_cells",
        "second_order": "hilbert_cells_swapped",
        "class_token": False,
        "repeat_position": False,
        "pool": "mean",
        "skip_origin": True,
        "order_scale": True,
    },
}
MODEL_NAMES = tuple(ARCHITECTURES)


class ClassificationHead(nn.Sequential):
    """Two hidden layers with batch normalisation and dropout, then class scores.

    Args:
        in_features: Width of the pooled features.
        num_classes: Number of classes.
        hidden_dim: Width of the hidden layers.
        dropout: Dropout rate after each hidden layer.
    """

    def __init__(
        self, in_features: int, num_classes: int, *, hidden_dim: int = 256, dropout: float = 0.5
    ) -> None:
        def hidden(width: int) -> list[nn.Module]:
            return [
                nn.Linear(width, hidden_dim),
                nn.BatchNorm1d(hidden_dim),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
            ]

        super().__init__(*hidden(in_features), *hidden(hidden_dim), nn.Linear(hidden_dim, num_classes))


class OrderScale(nn.Module):
    """``scale * x + shift``: distinguishes tokens that are read in one order from those read in another.

    Args:
        embed_dim: Width.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(embed_dim))
        self.shift = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        return torch.addcmul(self.shift, x, self.scale)


class HybridNet3D(nn.Module):
    """A point model whose encoder stacks Mamba3D, Transformer and plain Mamba blocks by a layout.

    Pooled features are the class token joined to the pooled patches (in this project the sum of their maximum and
    mean), or the pooled patches alone where there is no class token.

    Args:
        num_classes: Number of classes; 0 for features.
        embed_dim: Width.
        patch_hidden_dim: Width inside the patch embedding, where most of a small model's work is.
        in_chans: Values of a point: 3 coordinates, and one for each further channel.
        layout: Layers, see :func:`map_core.expand_layout`: M is Mamba3D, T Transformer, S a scan alone.
        num_heads, mlp_ratio: Settings of the Transformer blocks; ratio 0 is attention only.
        neighbors: Patches that the local norm pools.
        scan: See :func:`~map_points.blocks.make_mixer`.
        num_patches, patch_size: Patches of a cloud, and points of a patch.
        order: Scan order of the patches.
        second_order: Read all patches a second time, in this order, after the first; for classification only.
        class_token: Whether there is a class token; pretraining has none.
        linear_head: Classify by one linear layer, as a probe does, instead of :class:`ClassificationHead`.
        head_dim: Width of the head's hidden layers.
        drop_rate: Dropout in the head.
        drop_path_rate: Stochastic depth of the last layer, growing linearly from 0.
        conventions: Further choices on which projects differ.

    Raises:
        UserError: an unknown order.
    """

    def __init__(
        self,
        num_classes: int = 40,
        *,
        embed_dim: int = 384,
        patch_hidden_dim: int = 256,
        in_chans: int = 3,
        layout: str = "(MMMT)x4",
        num_heads: int = 6,
        mlp_ratio: float = 0.0,
        neighbors: int = 4,
        scan: ScanKind = "both",
        num_patches: int = 64,
        patch_size: int = 32,
        order: PointOrder = "fps",
        second_order: PointOrder | None = None,
        class_token: bool = True,
        linear_head: bool = False,
        head_dim: int = 256,
        drop_rate: float = 0.5,
        drop_path_rate: float = 0.0,
        conventions: Conventions | None = None,
    ) -> None:
        super().__init__()
        require_point_order("order", order)
        if second_order is not None:
            require_point_order("second_order", second_order)
        self.conventions = choices = conventions or Conventions()
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.num_heads, self.scan = num_heads, scan
        self.order, self.second_order = order, second_order
        self.num_patches, self.patch_size = num_patches, patch_size
        self.patch_embed = PatchEmbedding(embed_dim, patch_hidden_dim, in_chans)
        orders = 1 if second_order is None else 2
        self.order_scale = nn.ModuleList(
            OrderScale(embed_dim) for _ in range(orders if choices.order_scale else 0)
        )
        self.encoder = HybridEncoder(
            embed_dim,
            layout,
            block_makers={
                "M": lambda dim, drop_path: Mamba3DBlock(
                    dim,
                    neighbors=neighbors,
                    scan=scan,
                    drop_path=drop_path,
                    spread=choices.local_spread,
                    local_class_token=choices.local_class_token,
                ),
                "S": lambda dim, drop_path: MambaBlock(
                    dim, norm="layer", drop_path=drop_path, bidirectional=False
                ),
                "T": lambda dim, drop_path: TransformerBlock(
                    dim, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=False, drop_path=drop_path
                ),
            },
            position=MlpPosition(embed_dim, activation=choices.position_activation),
            norm=make_norm("layer", embed_dim),
            drop_path_rate=drop_path_rate,
            registers=Registers(1, embed_dim, spread=False) if class_token else None,
            repeat_position=choices.repeat_position,
        )
        self.num_prefix_tokens = 1 if class_token else 0
        self.head_hidden_size = embed_dim * (self.num_prefix_tokens + choices.pooled_parts)
        self.head: nn.Module = nn.Identity()
        if num_classes > 0 and linear_head:
            self.head = nn.Linear(self.head_hidden_size, num_classes)
        elif num_classes > 0:
            self.head = ClassificationHead(
                self.head_hidden_size, num_classes, hidden_dim=head_dim, dropout=drop_rate
            )
        self.apply(init_weights)

    def forward(self, points: Float[Tensor, "b n c"]) -> Float[Tensor, "b classes"]:
        return self.forward_head(self.forward_features(points))

    def forward_features(self, points: Float[Tensor, "b n c"]) -> Float[Tensor, "b l d"]:
        """The class token, where there is one, then the patches in scan order, after the final norm."""
        features = self.encoder.normalize(self.encoder.last_layer(self.tokenize(points)))
        patches = features.patches.embedding
        return patches if features.registers is None else torch.cat([features.registers, patches], dim=1)

    def forward_head(self, x: Float[Tensor, "b l d"], pre_logits: bool = False) -> Float[Tensor, "b f"]:
        """Pool the output of :meth:`forward_features` and classify it."""
        patches = x[:, self.num_prefix_tokens :]
        pooled = pool_patches(patches, self.conventions.pool)
        if self.num_prefix_tokens:
            pooled = torch.cat([x[:, 0], pooled], dim=-1)
        return pooled if pre_logits else self.head(pooled)

    def tokenize(self, inputs: Float[Tensor, "b n c"], *, targets: bool = False) -> Tokens:
        """Tokens of clouds in scan order, with the points of their patches as targets if asked for.

        Raises:
            UserError: targets are asked for, but the model reads its patches twice.
        """
        if targets:
            self.require_one_order()
        tokens = tokenize_clouds(
            inputs,
            self.patch_embed,
            num_patches=self.num_patches,
            patch_size=self.patch_size,
            order=self.order,
            skip_origin=self.conventions.skip_origin,
            targets=targets,
        )
        if self.second_order is None:
            return self._scaled(tokens, 0)
        again = scan_again(tokens, self.second_order)
        return concatenate_scans(self._scaled(tokens, 0), self._scaled(again, 1))

    def require_one_order(self) -> None:
        """Check that patches are read once, so that what is hidden is hidden.

        Raises:
            UserError: the model has a second order.
        """
        if self.second_order is not None:
            raise UserError(
                "a model that reads its patches in two orders sees in one what is hidden in the other: pretrain "
                "with second_order=None"
            )

    def _scaled(self, tokens: Tokens, order: int) -> Tokens:
        if not self.order_scale:
            return tokens
        return replace(tokens, embedding=self.order_scale[order](tokens.embedding))

    def encode(self, tokens: Tokens, mask: TokenMask | None = None) -> Features:
        """Features of the visible patches after the final norm."""
        return self.encoder.encode(tokens, mask)

    def encode_causally(self, tokens: Tokens, regions: Regions, mask: TokenMask | None = None) -> Features:
        """Features of the visible patches of tokens laid out region by region; none reads a later region."""
        return self.encoder.encode_causally(tokens, regions, mask)

    @property
    def invisible_settings(self) -> dict[str, Any]:
        """Settings that change what the weights compute and that no shape shows, as far as this model uses them."""
        conventions, kinds = self.conventions, set(self.encoder.layout)
        settings: dict[str, Any] = {
            "position_activation": conventions.position_activation,
            "repeat_position": conventions.repeat_position,
            "skip_origin": conventions.skip_origin,
            "patch_size": self.patch_size,
        }
        if kinds != {"T"}:
            settings["order"] = self.order
        if "T" in kinds:
            settings["num_heads"] = self.num_heads
        if "M" in kinds:
            settings |= {"scan": self.scan, "local_spread": conventions.local_spread}
            if self.num_prefix_tokens:
                settings["local_class_token"] = conventions.local_class_token
        if isinstance(self.head, ClassificationHead):
            settings |= {"pool": conventions.pool, "second_order": self.second_order}
        return settings

    def no_weight_decay(self) -> set[str]:
        return undecayed_parameters(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups in the order of layer decay: embeddings, then one per layer, Mamba and Transformer alike."""
        return {
            "stem": r"^patch_embed|^order_scale|^encoder\.(?:position|registers)",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True, *, every: int = 1) -> None:
        """Recompute every n-th block in the backward pass instead of storing its activations; ``every=1`` is all.

        Raises:
            UserError: ``every`` below 1.
        """
        self.encoder.set_grad_checkpointing(enable, every=every)


SIZES = ("embed_dim", "num_heads", "neighbors", "num_patches", "patch_size", "head_dim")


def check_ranges(settings: Any) -> None:
    """Check the numbers among a model's settings, the attributes of ``settings``; None is left alone.

    Raises:
        UserError: the first that is out of range in every model.
    """
    check(
        "model",
        settings,
        at_least_one=SIZES,
        not_negative=("mlp_ratio",),
        shares_below_one=("drop_rate", "drop_path_rate"),
    )
    require("model", settings, "patch_hidden_dim", lambda width: width >= 2, "must be at least 2")
    require("model", settings, "in_chans", lambda values: values >= 3, "must be at least 3, for x, y and z")


def named_settings(name: str) -> dict[str, Any]:
    """The settings that a model's name stands for.

    Raises:
        UserError: the name is unknown.
    """
    if name not in ARCHITECTURES:
        raise unknown_name("model.name", name, MODEL_NAMES)
    return dict(ARCHITECTURES[name])


def create_point_model(
    name: str, num_classes: int | None = None, *, pretrained: bool | str | Path = False, **changes: Any
) -> HybridNet3D:
    """Create one of ``MODEL_NAMES``, with changes to its arguments and its :class:`Conventions`.

    ``mamba3d`` and ``hybridnet3d`` are this project's, ``hybridnet3d_nano`` is the latter for one core;
    ``mamba3d_authors``, ``point_mae`` and ``point_mamba`` compute what was published under these names.

    Args:
        name: Name of the model.
        num_classes: Number of classes, 0 for features; when None, that of the weights, else 40.
        pretrained: True loads the weights that the repository ships in ``weights/NAME``, a path those of a run or
            weights file. The head starts anew where its number of classes differs.
        changes: Arguments of :class:`HybridNet3D` and :class:`Conventions`.

    Raises:
        UserError: the name is unknown, an argument is out of range, or the weights are missing or mean something else
            with these changes.
    """
    if not pretrained:
        return _create(name, 40 if num_classes is None else num_classes, changes)
    from map_points.pretrained import load_pretrained  # builds on this module

    return load_pretrained(name, num_classes, None if pretrained is True else pretrained, changes)


def _create(name: str, num_classes: int, changes: Mapping[str, Any]) -> HybridNet3D:
    defaults = {key: parameter.default for key, parameter in signature(HybridNet3D).parameters.items()}
    settings = {**named_settings(name), **changes}
    check_ranges(SimpleNamespace(**defaults | settings))
    conventions = Conventions(**{key: settings.pop(key) for key in CONVENTIONS if key in settings})
    return HybridNet3D(num_classes, conventions=conventions, **settings)
