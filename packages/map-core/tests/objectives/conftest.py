"""Backbones over grids of vectors whose layers all follow the order of the sequence."""

from collections.abc import Callable

import pytest

from map_core.blocks import MambaBlock, TransformerBlock
from map_core.testing import GridBackbone, toy_encoder


@pytest.fixture
def one_way() -> Callable[..., GridBackbone]:
    """Make a backbone over vectors of 4 values that scans one way."""

    def make(layout="MTM", **options):
        makers = {
            "M": lambda width, drop_path: MambaBlock(width, state_dim=4, bidirectional=False),
            "T": lambda width, drop_path: TransformerBlock(width, num_heads=2, mlp_ratio=2.0),
        }
        return GridBackbone(4, toy_encoder(16, layout, block_makers=makers), **options)

    return make
