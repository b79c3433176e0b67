"""Point models: their parameters, what their blocks may see, and what must not matter."""

import pytest
import torch
from map_points.local_blocks import ChannelFlipMixer, LocalNormPool, Mamba3DBlock
from map_points.models import create_point_model
from map_points.neighbors import nearest_neighbors

from map_core import sample_mask
from map_core.errors import UserError
from map_core.ops import selective_scan

TINY = {"embed_dim": 16, "num_heads": 2, "num_patches": 16, "patch_size": 4, "layout": "MMT"}


def count(module):
    return sum(p.numel() for p in module.parameters())


def tiny(**changes):
    torch.manual_seed(0)
    return create_point_model("hybridnet3d", **{"num_classes": 5, **TINY, **changes}).eval()


@pytest.mark.parametrize(("name", "total"), [("mamba3d", 16_934_184), ("hybridnet3d", 19_298_088)])
def test_parameters_of_the_classifier_for_40_classes(name, total):
    model = create_point_model(name, 40)
    assert count(model) == total
    assert count(model.patch_embed) == 494_464
    assert count(model.encoder.position) == 50_048
    assert count(model.encoder.registers) == 768
    assert count(model.encoder.norm) == 768
    assert count(model.head) == 273_960
    for letter, block in zip(model.encoder.layout, model.encoder.blocks, strict=True):
        assert count(block) == {"M": 1_342_848, "T": 590_976}[letter]
    block = model.encoder.blocks[0]
    assert count(block.local) == 298_368
    assert count(block.mixer) == 1_042_944
    assert model.encoder.layout == {"mamba3d": "M" * 12, "hybridnet3d": "MMMT" * 4}[name]


def test_the_original_scan_has_as_many_parameters():
    assert count(create_point_model("mamba3d", 40, scan="channel_flip")) == 16_934_184


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
        own = torch.stack([features[i].expand(3, -1) for i in range(7)])
        joined = torch.cat([relative, own], dim=2) * pool.scale + pool.shift
        clouds.append((joined * joined.softmax(dim=1)).sum(dim=1))
    expected = torch.nn.functional.silu(pool.project(pool.norm(torch.stack(clouds))))

    actual = pool(x, position)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    for got, wanted in zip(
        torch.autograd.grad(actual, parameters, cotangent),
        torch.autograd.grad(expected, parameters, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_local_norm_pool_of_one_neighbour_has_finite_gradients():
    pool = LocalNormPool(6, neighbors=1)
    x = torch.randn(1, 5, 6, requires_grad=True)
    pool(x, torch.randn(1, 5, 3)).sum().backward()
    assert torch.isfinite(x.grad).all()


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


def test_the_position_is_added_before_every_block():
    model = tiny(class_token=True)
    seen = []
    for block in model.encoder.blocks:
        block.forward = lambda x, position: seen.append(x) or x
    tokens = model.tokenize(torch.randn(2, 64, 3))
    model.encoder.last_layer(tokens)
    position = model.encoder.position(tokens.position)
    for i, x in enumerate(seen):
        torch.testing.assert_close(x[:, 1:], tokens.embedding + (i + 1) * position)
        registers = model.encoder.registers
        expected = registers.token + (i + 1) * registers.position
        torch.testing.assert_close(x[:, :1], expected.expand(2, 1, -1))


def test_hidden_patches_do_not_reach_the_encoder():
    model = tiny(class_token=False)
    tokens = model.tokenize(torch.randn(2, 64, 3))
    tokens.embedding.retain_grad()
    mask = sample_mask(tokens, 0.5)
    features = model.encoder.encode(tokens, mask)
    assert features.embedding.shape == (2, 8, 16)
    features.embedding.square().sum().backward()
    assert (tokens.embedding.grad[mask.hidden] == 0).all()
    assert (tokens.embedding.grad[~mask.hidden] != 0).any(-1).all()


def test_a_cloud_does_not_depend_on_its_company():
    model = tiny()
    clouds = torch.randn(3, 64, 3)
    torch.testing.assert_close(model(clouds)[1:2], model(clouds[1:2]), rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_no_gradient():
    model = tiny().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.BatchNorm1d):
            module.eval()
    clouds = torch.randn(2, 64, 3)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(clouds).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_features_without_a_class_token():
    model = tiny(num_classes=0, class_token=False)
    assert model(torch.randn(2, 64, 3)).shape == (2, 16)
    assert tiny(num_classes=0)(torch.randn(2, 64, 3)).shape == (2, 32)


def test_initial_time_steps_survive():
    bias = tiny().encoder.blocks[0].mixer.scan_forward.dt_proj.bias
    step = torch.nn.functional.softplus(bias)
    assert step.min() >= 0.99e-3
    assert step.max() <= 0.101


def test_the_patch_embedding_keeps_a_spread_that_its_norms_can_measure():
    model = create_point_model("hybridnet3d", 40)
    assert float(model.patch_embed.lift[0].weight.detach().std()) == pytest.approx(1 / 3, rel=0.1)
    assert float(model.encoder.blocks[0].mixer.in_proj.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match="model 'hybridnet' is unknown; did you mean hybridnet3d"):
        create_point_model("hybridnet")
