"""Windowed attention equals attention under a mask of windows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from map_core.blocks import TransformerBlock
from map_core.errors import UserError
from map_dense.backbone import HybridBackbone
from map_dense.windows import WindowedTransformerBlock


def grid(rows: int, cols: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(rows), torch.arange(cols))


def same_window(position: Tensor, window_size: int) -> Tensor:
    """The definition: tokens see each other if row and column fall into the same window."""
    window = position // window_size
    return (window[:, None] == window[None, :]).all(-1)


@pytest.mark.parametrize(("rows", "cols", "window_size"), [(6, 9, 3), (5, 7, 3), (4, 4, 1), (3, 8, 16)])
@pytest.mark.parametrize("shuffled", [False, True])
def test_it_is_attention_under_a_mask_of_windows(
    rows: int, cols: int, window_size: int, shuffled: bool
) -> None:
    torch.manual_seed(0)
    position = grid(rows, cols)
    if shuffled:  # another scan order
        position = position[torch.randperm(len(position))]
    block = TransformerBlock(16, num_heads=4, mlp_ratio=2.0)
    x = torch.randn(2, len(position), 16)
    results = []
    for run in (
        lambda x: block(x, attention_mask=same_window(position, window_size)[None]),
        lambda x: WindowedTransformerBlock(block, window_size)(x, position[None].float()),
    ):
        block.zero_grad()
        leaf = x.clone().requires_grad_()
        output = run(leaf)
        (output * torch.arange(16.0)).sum().backward()
        results.append([output, leaf.grad, *(parameter.grad.clone() for parameter in block.parameters())])
    for masked, windowed in zip(*results, strict=True):
        torch.testing.assert_close(windowed, masked, rtol=1e-4, atol=1e-4)


def small_backbone(**changes: Any) -> HybridBackbone:
    torch.manual_seed(0)
    options = {"layout": "(MMMT)x4", "num_heads": 4, "out_indices": [7, 15], **changes}
    return HybridBackbone(img_size=64, embed_dim=32, **options).eval()


def test_the_last_transformer_block_of_each_group_attends_globally() -> None:
    windowed = [
        isinstance(block, WindowedTransformerBlock)
        for block in small_backbone(window_size=2).model.encoder.blocks
    ]
    assert [index for index, is_windowed in enumerate(windowed) if is_windowed] == [3, 11]


def test_windows_change_no_parameter_name_and_large_ones_no_feature() -> None:
    plain, large, small = small_backbone(), small_backbone(window_size=9), small_backbone(window_size=2)
    assert list(plain.state_dict()) == list(large.state_dict()) == list(small.state_dict())
    images = torch.randn(1, 3, 80, 64)
    with torch.no_grad():
        for one, other, third in zip(plain(images), large(images), small(images), strict=True):
            torch.testing.assert_close(other, one)
            assert (third - one).abs().max() > 1e-4


@pytest.mark.parametrize("size", [0, -1, [4, 4], "4", 4.0, True])
@pytest.mark.parametrize("out_indices", [[7, 15], [0, 1, 2, 3]])  # the latter leave no block with windows
@pytest.mark.usefixtures("without_type_checks")
def test_a_window_is_a_number_of_patches(size: Any, out_indices: list[int]) -> None:
    with pytest.raises(
        UserError, match="window_size must be a whole number of at least 1, or None for global attention; got"
    ):
        small_backbone(window_size=size, out_indices=out_indices)
