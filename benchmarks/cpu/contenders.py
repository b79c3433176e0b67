"""The modules that are compared, and their inputs.

Peers are imported where they are built, so that everything else runs without them.
"""

import math
import sys
from pathlib import Path

import timm
import torch
from cpu.cases import WIDTH, Case
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

import map_vision  # noqa: F401  (registers)
from map_core.blocks import MambaBlock, TransformerBlock
from map_vision.factory import ModelConfig
from map_vision.model import HybridNet

PATCH = 16
HEADS = WIDTH // 64
# Vision Transformers with as many parameters (to 5 %) as the hybrids that they are compared with, heads 64 or 32 wide.
ENCODER = dict(embed_dim=256, depth=12, num_heads=4)
TINY = dict(embed_dim=256, depth=14, num_heads=4)
NANO = dict(embed_dim=96, depth=10, num_heads=3)
# The encoder of a linear classifier, and nothing else.
BARE = dict(num_classes=0, global_pool="avg", num_registers=0)


def use_peers(folder: Path | None) -> None:
    """Let Python look for peers in ``folder``, after everywhere else.

    transformers warns once per process that it has no CUDA kernel, which is intended here.
    """
    if folder is not None:
        sys.path.append(str(folder.resolve()))
        import mambapy.mamba  # noqa: F401
        import transformers.models.mamba.modeling_mamba  # noqa: F401


def make(case: Case) -> tuple[nn.Module, Tensor]:
    """The module of a case, and its input."""
    torch.manual_seed(0)
    if case.part == "blocks":
        return make_block(case.what), torch.randn(case.batch, case.tokens, WIDTH)
    if case.part == "inference":
        model = make_classifier(case.what)
        side = PATCH * math.isqrt(case.tokens) if case.tokens == 196 else 32
    else:
        side = PATCH * math.isqrt(case.tokens)
        model = make_encoder(case.what, side, case.depth)
    return model, torch.randn(case.batch, 3, side, side)


def make_block(what: str) -> nn.Module:
    """A block of the common width: norm, mixer (and MLP), residual connections."""
    match what:
        case "Mamba, both ways (ours)":
            return MambaBlock(WIDTH)
        case "Mamba, one way (ours)":
            return MambaBlock(WIDTH, bidirectional=False)
        case "Transformer (ours)":
            return TransformerBlock(WIDTH, num_heads=HEADS)
        case "Transformer (timm)":
            return Block(WIDTH, HEADS, qkv_bias=True)
        case "Mamba, one way (mambapy)":
            from mambapy.mamba import MambaConfig, ResidualBlock

            return ResidualBlock(MambaConfig(d_model=WIDTH, n_layers=1))
        case "Mamba, one way (transformers)":
            from transformers import MambaConfig
            from transformers.models.mamba.modeling_mamba import MambaBlock as TheirBlock

            return TheirBlock(MambaConfig(hidden_size=WIDTH, num_hidden_layers=1), 0)
    raise ValueError(what)


def make_encoder(what: str, side: int, depth: int) -> nn.Module:
    """An encoder for square images, its patches pooled by their mean."""
    match what:
        case "hybrid":
            return HybridNet(side, layout=f"(MMMT)x{depth // 4}" if depth else "(MMMT)x8", **BARE)
        case "Mamba":
            return HybridNet(side, layout="Mx32", **BARE)
        case "ViT (timm)":
            return VisionTransformer(side, num_classes=0, class_token=False, global_pool="avg", **ENCODER)
    raise ValueError(what)


def make_classifier(what: str) -> nn.Module:
    """A classifier for 1,000 classes at 224 px, for 10 at 32 px."""
    match what:
        case "ViT as large (timm), 224 px":
            return VisionTransformer(224, 16, **TINY)
        case "ViT as large (timm), 32 px":
            return VisionTransformer(32, 4, num_classes=10, **NANO)
    return timm.create_model(what)


def model_config(what: str) -> ModelConfig:
    """The model that the commands run in place of a classifier: for timm's, the same layers in our class."""
    match what:
        case "ViT as large (timm), 224 px":
            shape = dict(TINY)
            return ModelConfig("map_vit_tiny_patch16_224", layout=f"Tx{shape.pop('depth')}", **shape)
        case "ViT as large (timm), 32 px":
            shape = dict(NANO)
            return ModelConfig(
                "hybridnet_nano_patch4_32", layout=f"Tx{shape.pop('depth')}", mlp_ratio=4.0, **shape
            )
    return ModelConfig(what)
