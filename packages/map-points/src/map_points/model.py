"""Point models: ``mamba3d`` and ``hybridnet3d``, as encoders for pretraining and as classifiers."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from map_core import Features, HybridEncoder, Registers, TokenMask, Tokens
from map_core.blocks import TransformerBlock, make_norm
from map_core.errors import UserError, near_matches
from map_core.initialization import init_weights, undecayed_parameters
from map_core.positions import MlpPosition
from map_points.blocks import Mamba3DBlock, ScanKind
from map_points.patches import PatchEmbedding
from map_points.tokenizer import PointOrder, tokenize_clouds

# after every third Mamba block an attention-only T: one of two readings that fit the paper's 19.3M
LAYOUTS = {"mamba3d": "Mx12", "hybridnet3d": "(MMMT)x4"}
MODEL_NAMES = tuple(LAYOUTS)


class ClassificationHead(nn.Sequential):
    """Two hidden layers with batch normalisation and dropout, then class scores.

    Args:
        in_features: Width of the pooled features.
        num_classes: Classes.
        hidden_dim: Width of the hidden layers.
        dropout: Behind each hidden layer.
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


class HybridNet3D(nn.Module):
    """A point model whose encoder stacks Mamba3D and Transformer blocks by a layout.

    Pooled features are the class token beside the sum of the patches' maximum and mean; without a class
    token that sum alone.

    Args:
        num_classes: Classes; 0 for features.
        embed_dim: Width.
        patch_hidden_dim: Width inside the patch embedding, where most of a small model's work is.
        layout: Layers, see :func:`map_core.expand_layout`.
        num_heads, mlp_ratio: Of the Transformer blocks; ratio 0 is attention only.
        neighbors: Of the local norm.
        scan: See :func:`~map_points.blocks.make_mixer`.
        num_patches, patch_size: How clouds are cut.
        order: Scan order of the patches.
        class_token: Have one; pretraining has none.
        linear_head: Classify by one linear layer, as a probe does, instead of :class:`ClassificationHead`.
        drop_rate: Dropout in the head.
        drop_path_rate: Stochastic depth of the last layer, growing linearly from 0.
    """

    def __init__(
        self,
        num_classes: int = 40,
        *,
        embed_dim: int = 384,
        patch_hidden_dim: int = 256,
        layout: str = "(MMMT)x4",
        num_heads: int = 6,
        mlp_ratio: float = 0.0,
        neighbors: int = 4,
        scan: ScanKind = "both",
        num_patches: int = 64,
        patch_size: int = 32,
        order: PointOrder = "fps",
        class_token: bool = True,
        linear_head: bool = False,
        drop_rate: float = 0.5,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.embed_dim, self.order = num_classes, embed_dim, order
        self.num_patches, self.patch_size = num_patches, patch_size
        self.patch_embed = PatchEmbedding(embed_dim, patch_hidden_dim)
        self.encoder = HybridEncoder(
            embed_dim,
            layout,
            block_makers={
                "M": lambda dim, drop_path: Mamba3DBlock(
                    dim, neighbors=neighbors, scan=scan, drop_path=drop_path
                ),
                "T": lambda dim, drop_path: TransformerBlock(
                    dim, num_heads=num_heads, mlp_ratio=mlp_ratio, qkv_bias=False, drop_path=drop_path
                ),
            },
            position=MlpPosition(embed_dim),
            norm=make_norm("layer", embed_dim),
            drop_path_rate=drop_path_rate,
            registers=Registers(1, embed_dim, spread=False) if class_token else None,
            repeat_position=True,
        )
        self.num_prefix_tokens = 1 if class_token else 0
        self.head_hidden_size = embed_dim * (2 if class_token else 1)
        self.head: nn.Module = nn.Identity()
        if num_classes > 0 and linear_head:
            self.head = nn.Linear(self.head_hidden_size, num_classes)
        elif num_classes > 0:
            self.head = ClassificationHead(self.head_hidden_size, num_classes, dropout=drop_rate)
        self.apply(init_weights)

    def forward(self, points: Float[Tensor, "b n 3"]) -> Float[Tensor, "b c"]:
        return self.forward_head(self.forward_features(points))

    def forward_features(self, points: Float[Tensor, "b n 3"]) -> Float[Tensor, "b l d"]:
        """The class token, where there is one, then the patches in scan order, after the final norm."""
        features = self.encoder.normalize(self.encoder.last_layer(self.tokenize(points)))
        patches = features.patches.embedding
        return patches if features.registers is None else torch.cat([features.registers, patches], dim=1)

    def forward_head(self, x: Float[Tensor, "b l d"], pre_logits: bool = False) -> Float[Tensor, "b f"]:
        """Pool the output of :meth:`forward_features` and classify it."""
        patches = x[:, self.num_prefix_tokens :]
        pooled = patches.amax(dim=1) + patches.mean(dim=1)
        if self.num_prefix_tokens:
            pooled = torch.cat([x[:, 0], pooled], dim=-1)
        return pooled if pre_logits else self.head(pooled)

    def tokenize(self, inputs: Float[Tensor, "b n 3"], *, targets: bool = False) -> Tokens:
        """Tokens of clouds in scan order, with the points of their patches as targets if asked for."""
        return tokenize_clouds(
            inputs,
            self.patch_embed,
            num_patches=self.num_patches,
            patch_size=self.patch_size,
            order=self.order,
            targets=targets,
        )

    def encode(self, tokens: Tokens, mask: TokenMask | None = None) -> Features:
        """Features of the visible patches after the final norm."""
        return self.encoder.encode(tokens, mask)

    def no_weight_decay(self) -> set[str]:
        return undecayed_parameters(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups in the order of layer decay: embeddings, then one a layer, Mamba and Transformer alike."""
        return {
            "stem": r"^patch_embed|^encoder\.(?:position|registers)",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations."""
        self.encoder.activation_checkpointing = enable


def named_settings(name: str) -> dict[str, Any]:
    """What a model's name says of it.

    Raises:
        UserError: an unknown name.
    """
    if name not in LAYOUTS:
        raise UserError(f"model {name!r} is unknown; {near_matches(name, MODEL_NAMES)}")
    return {"layout": LAYOUTS[name]}


def create_point_model(name: str, num_classes: int = 40, **changes: Any) -> HybridNet3D:
    """Create ``mamba3d`` or ``hybridnet3d``, with changes to its arguments.

    Raises:
        UserError: an unknown name.
    """
    return HybridNet3D(num_classes, **{**named_settings(name), **changes})
