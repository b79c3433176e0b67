"""Layers of encoder and decoder: blocks map ``(x, position)`` to x's shape; most ignore the position."""

from map_core.blocks.attention import Attention, Mlp
from map_core.blocks.four_way import FourWayBlock
from map_core.blocks.mamba import MambaBlock, MambaMixer
from map_core.blocks.norm import make_norm
from map_core.blocks.residual import residual_stream
from map_core.blocks.transformer import CrossBlock, TransformerBlock

__all__ = [
    "Attention",
    "CrossBlock",
    "FourWayBlock",
    "MambaBlock",
    "MambaMixer",
    "Mlp",
    "TransformerBlock",
    "make_norm",
    "residual_stream",
]
