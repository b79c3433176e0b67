"""The Mamba3D block: its local step and its scans against their definitions, and what they may see."""

import pytest
import torch

from map_core.errors import UserError
from map_core.ops import selective_scan
from map_points.blocks import ChannelFlipMixer, LocalNormPool, Mamba3DBlock, variance_of_readable
from map_points.patches.neighbors import nearest_neighbors


def test_local_norm_pool_equals_a_loop():
    pool = LocalNormPool(6, neighbors=3)
    torch.nn.init.normal_(pool.scale)
    torch.nn.init.normal_(pool.shift)
    x, position = torch.randn(2, 9, 6), torch.randn(2, 9, 3)
    index = nearest_neighbors(position, position, 3)
    for sample in range(2):
        relative = torch.stack([x[sample, index[sample, i]] - x[sample, i] for i in range(9)])
        relative = relative / (relative.var(correction=0) + 1e-5).sqrt()
        for i in range(9):
            rows = torch.stack([torch.cat([r, x[sample, i]]) for r in relative[i]]) * pool.scale + pool.shift
            weight = rows.exp() / rows.exp().sum(0)
            expected = torch.nn.functional.silu(pool.project(pool.norm((weight * rows).sum(0))))
            torch.testing.assert_close(pool(x, position)[sample, i], expected, rtol=1e-4, atol=1e-5)


def test_local_norm_pool_equals_its_definition():
    torch.manual_seed(0)
    pool = LocalNormPool(6, neighbors=3)
    torch.nn.init.normal_(pool.scale)
    torch.nn.init.normal_(pool.shift)
    x = torch.randn(2, 7, 6, requires_grad=True)
    position = torch.randn(2, 7, 3)
    parameters = [x, *pool.parameters()]

    clouds = []
    for features, centers in zip(x, position, strict=True):
        near = (centers[:, None] - centers[None]).square().sum(dim=2).argsort(dim=1)[:, :3]
        relative = torch.stack([features[near[i]] - features[i] for i in range(7)])
        relative = relative / (relative.var(correction=0) + pool.eps).sqrt()
        repeated = torch.stack([features[i].expand(3, -1) for i in range(7)])
        joined = torch.cat([relative, repeated], dim=2) * pool.scale + pool.shift
        clouds.append((joined * joined.softmax(dim=1)).sum(dim=1))
    expected = torch.nn.functional.silu(pool.project(pool.norm(torch.stack(clouds))))

    actual = pool(x, position)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(actual, parameters, cotangent),
        torch.autograd.grad(expected, parameters, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient)


def test_local_norm_pool_of_one_neighbour_is_a_layer_of_its_own_features():
    pool = LocalNormPool(6, neighbors=1)
    x = torch.randn(1, 5, 6, requires_grad=True)
    position = torch.randn(1, 5, 3)
    joined = torch.cat([torch.zeros_like(x), x], dim=-1)  # nothing differs from the patch itself
    expected = torch.nn.functional.silu(pool.project(pool.norm(joined)))
    torch.testing.assert_close(pool(x, position), expected)
    (gradient,) = torch.autograd.grad(pool(x, position).square().sum(), x)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    # where the root of no variance would give NaN
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-4)


def test_the_deviation_is_unbiased_and_its_eps_outside_the_root():
    pool = LocalNormPool(6, neighbors=3, spread="deviation")
    torch.nn.init.normal_(pool.scale)
    x, position = torch.randn(1, 9, 6) * 1e-4, torch.randn(1, 9, 3)  # so small that eps matters
    index = nearest_neighbors(position, position, 3)[0]
    relative = x[0, index] - x[0, :, None]
    joined = torch.cat([relative / (relative.std() + 1e-5), x[0, :, None].expand(-1, 3, -1)], -1) * pool.scale
    expected = torch.nn.functional.silu(pool.project(pool.norm((joined * joined.softmax(1)).sum(1))))
    torch.testing.assert_close(pool(x, position)[0], expected)


def test_the_deviation_of_nothing_gives_no_broken_gradient():
    pool = LocalNormPool(6, neighbors=1, spread="deviation")
    x = torch.randn(1, 5, 6, requires_grad=True)
    pool(x, torch.randn(1, 5, 3)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_the_variance_of_what_may_be_read_is_that_of_all_under_autocast_as_well():
    """Where it is the small difference of a large mean square and a large mean, squared."""
    relative = torch.randn(2, 9, 3, 6) + 10
    with torch.autocast("cpu", torch.bfloat16):
        variance = variance_of_readable(relative, torch.ones(1, 9, 9, dtype=torch.bool))
    expected = relative.var(dim=(1, 2, 3), correction=0, keepdim=True).expand(-1, 9, -1, -1)
    torch.testing.assert_close(variance, expected, rtol=1e-3, atol=0)


def test_more_neighbours_than_visible_patches_are_refused():
    with pytest.raises(UserError, match="cannot find 4 nearest neighbours among 3 points"):
        LocalNormPool(6)(torch.randn(1, 3, 6), torch.randn(1, 3, 3))


def test_the_class_token_takes_no_part_in_the_local_norm():
    block = Mamba3DBlock(8)
    block.mixer = torch.nn.Identity()
    block.norm2 = torch.nn.Identity()
    x, position = torch.randn(1, 7, 8), torch.randn(1, 6, 3)
    torch.testing.assert_close(block(x, position)[:, :1], 2 * x[:, :1])
    torch.testing.assert_close(block(x, position)[:, 1:], block(x[:, 1:], position))


def test_the_class_token_takes_part_in_the_local_step_where_asked_for():
    block = Mamba3DBlock(8, local_class_token=True, drop_path=0.5).train()
    block.mixer = torch.nn.Identity()
    block.norm2 = torch.nn.Identity()
    block.drop_path = torch.nn.Identity()
    x, position = torch.randn(1, 7, 8), torch.randn(1, 6, 3)
    torch.testing.assert_close(block(x, position)[:, :1], 2 * (x[:, :1] + block.norm1(x[:, :1])))
    torch.testing.assert_close(block(x, position)[:, 1:], block(x[:, 1:], position))


def test_the_channel_flip_scans_reversed_channels_in_sequence_order():
    mixer = ChannelFlipMixer(8)
    x = torch.randn(2, 5, 8, requires_grad=True)
    mixer(x)[:, 2].sum().backward()
    assert (x.grad[:, 3:] == 0).all()
    assert (x.grad[:, :3] != 0).any(-1).all()
    both = mixer.in_proj(x)
    first, second = (
        selective_scan(**vars(direction(xz.chunk(2, -1)[0])), z=xz.chunk(2, -1)[1])
        for direction, xz in ((mixer.scan_forward, both), (mixer.scan_backward, both.flip(-1)))
    )
    torch.testing.assert_close(mixer(x), mixer.out_proj((first + second.flip(-1)) / 2))


@pytest.mark.parametrize(
    ("scan", "looks_back"), [("both", True), ("forward", False), ("channel_flip", False)]
)
def test_which_scan_sees_later_tokens(scan, looks_back):
    block = Mamba3DBlock(8, neighbors=1, scan=scan)
    x = torch.randn(1, 6, 8, requires_grad=True)
    block(x, torch.randn(1, 6, 3))[:, 2].sum().backward()
    assert bool((x.grad[:, 3:] != 0).any()) == looks_back


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_scan_is_refused():
    with pytest.raises(UserError, match="scan must be 'both', 'forward' or 'channel_flip'; got 'none'"):
        Mamba3DBlock(8, scan="none")
