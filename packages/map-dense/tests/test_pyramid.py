"""The pyramids: strides, channels, what each level reads, and the settings they refuse."""

import pytest
import torch
from timm.layers import LayerNorm2d
from torch import nn

from map_core import UserError
from map_dense.pyramid import SimpleFeaturePyramid, UperNetPyramid, rescale_steps


def test_steps_double_or_halve() -> None:
    assert [rescale_steps(16, stride) for stride in (4, 8, 16, 32)] == [2, 1, 0, -1]
    assert [rescale_steps(8, stride) for stride in (4, 8, 16, 32)] == [1, 0, -1, -2]


@pytest.mark.parametrize(("patch_size", "stride"), [(14, 4), (24, 16), (16, 0), (16, 12)])
def test_a_ratio_that_is_no_power_of_two_is_refused(patch_size: int, stride: int) -> None:
    with pytest.raises(
        UserError, match=rf"patch_size \({patch_size}\) and stride \({stride}\) .* power of two"
    ):
        rescale_steps(patch_size, stride)


@pytest.mark.parametrize("patch_size", [4, 8, 16, 32])
def test_upernet_levels_have_strides_4_to_32_and_the_backbones_channels(patch_size: int) -> None:
    maps = [torch.randn(2, 8, 64 // patch_size, 128 // patch_size) for _ in range(4)]
    levels = UperNetPyramid(8, patch_size=patch_size)(maps)
    assert [tuple(level.shape) for level in levels] == [(2, 8, 64 // s, 128 // s) for s in (4, 8, 16, 32)]


def test_upernet_levels_are_vims() -> None:
    pyramid = UperNetPyramid(8)
    kinds = [[type(layer) for layer in level] for level in pyramid.levels]
    up = nn.ConvTranspose2d
    assert kinds == [[up, nn.BatchNorm2d, nn.GELU, up], [up], [], [nn.MaxPool2d]]
    maps = [torch.randn(2, 8, 6, 6) for _ in range(4)]
    levels = pyramid(maps)
    assert levels[2] is maps[2]
    assert torch.equal(levels[3], nn.functional.max_pool2d(maps[3], 2))


def test_each_upernet_level_reads_its_own_map() -> None:
    maps = [torch.randn(2, 8, 4, 4, requires_grad=True) for _ in range(4)]
    for i, level in enumerate(UperNetPyramid(8)(maps)):
        gradients = torch.autograd.grad(level.square().sum(), maps, allow_unused=True, retain_graph=True)
        assert [gradient is not None for gradient in gradients] == [j == i for j in range(4)]


def test_the_norm_can_be_synchronised() -> None:
    norms = [m for m in UperNetPyramid(8, norm="sync").modules() if isinstance(m, nn.SyncBatchNorm)]
    assert len(norms) == 1
    with pytest.raises(UserError, match="norm must be 'batch' or 'sync'; got 'group'"):
        UperNetPyramid(8, norm="group")


def test_as_many_maps_as_levels() -> None:
    with pytest.raises(UserError, match=r"4 levels but got 1 feature map.*out_indices"):
        UperNetPyramid(8)([torch.randn(1, 8, 4, 4)])


@pytest.mark.parametrize("patch_size", [8, 16, 32])
def test_simple_levels_have_strides_4_to_64_and_their_own_channels(patch_size: int) -> None:
    features = torch.randn(2, 16, 128 // patch_size, 64 // patch_size)
    levels = SimpleFeaturePyramid(16, 12, patch_size=patch_size)([features])
    assert [tuple(level.shape) for level in levels] == [
        (2, 12, 128 // s, 64 // s) for s in (4, 8, 16, 32, 64)
    ]


def test_simple_levels_read_the_last_map_alone() -> None:
    maps = [torch.randn(1, 16, 4, 4, requires_grad=True) for _ in range(2)]
    levels = SimpleFeaturePyramid(16, 12)(maps)
    first, last = torch.autograd.grad(sum(level.square().sum() for level in levels), maps, allow_unused=True)
    assert first is None
    assert last.abs().min() > 0


def test_simple_levels_are_vitdets() -> None:
    up, norm, conv = nn.ConvTranspose2d, LayerNorm2d, nn.Conv2d
    smooth = [conv, norm, conv, norm]
    kinds = [[type(layer) for layer in level] for level in SimpleFeaturePyramid(16, 12).levels]
    assert kinds == [[up, norm, nn.GELU, up, *smooth], [up, *smooth], smooth, [nn.MaxPool2d, *smooth]]


def test_the_extra_level_is_every_second_pixel_of_the_coarsest() -> None:
    features = [torch.randn(1, 16, 10, 10)]
    pyramid = SimpleFeaturePyramid(16, 12)
    *_, coarsest, extra = pyramid(features)
    assert torch.equal(extra, nn.functional.max_pool2d(coarsest, kernel_size=1, stride=2))
    pyramid.extra_level = False
    assert len(pyramid(features)) == 4


def test_levels_are_normalised_over_channels() -> None:
    for level in SimpleFeaturePyramid(16, 12)([5 + 3 * torch.randn(2, 16, 4, 4)]):
        assert torch.allclose(level.mean(dim=1), torch.zeros(()), atol=1e-5)
        assert torch.allclose(level.var(dim=1, unbiased=False), torch.ones(()), atol=1e-3)


def test_a_border_that_fills_no_window_is_kept() -> None:
    features = torch.zeros(1, 8, 3, 1)
    features[..., -1, -1] = 7.0
    coarse = UperNetPyramid(8)([features] * 4)[3]
    assert coarse.shape == (1, 8, 2, 1)
    assert coarse[..., -1, -1].eq(7).all()


def test_parameters_of_vitdets_pyramid() -> None:
    """Counted by hand for width 768: per level 1x1 and 3x3 convolutions without bias, two LayerNorms; up-scalings."""
    convolutions = lambda width: width * 256 + 256 * 256 * 9 + 4 * 256  # noqa: E731
    up = lambda width: width * (width // 2) * 4 + width // 2  # noqa: E731
    expected = up(768) + 2 * 384 + up(384) + convolutions(192)
    expected += up(768) + convolutions(384) + 2 * convolutions(768)
    assert sum(p.numel() for p in SimpleFeaturePyramid(768).parameters()) == expected


def test_channels_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(UserError, match=r"in_channels \(18\) must be a multiple of 4 to reach stride 4"):
        SimpleFeaturePyramid(18)
    with pytest.raises(UserError, match="got none"):
        SimpleFeaturePyramid(16)([])
