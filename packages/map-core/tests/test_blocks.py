"""Mamba and Transformer blocks: equality with slow compositions, gradients and initial values."""

from functools import partial
from inspect import unwrap

import pytest
import timm.layers
import timm.models.vision_transformer as timm_vit
import torch
import torch.nn.functional as F
from torch import nn

from map_core import ScanInputs, UserError
from map_core.blocks import (
    Attention,
    CrossBlock,
    MambaBlock,
    MambaMixer,
    TransformerBlock,
    make_norm,
    residual_stream,
)
from map_core.initialization import init_weights, inverse_softplus, undecayed_parameters
from map_core.ops.scan.reference import reference_scan

WIDTH, LENGTH = 8, 11


def slow_direction(direction, x, z):
    """One direction of a mixer over a sequence already in its scan direction, by torch's operations."""
    channels, width = x.shape[-1], direction.conv1d.weight.shape[-1]
    padded = F.pad(x.mT, (width - 1, 0))
    u = F.silu(F.conv1d(padded, direction.conv1d.weight, direction.conv1d.bias, groups=channels)).mT
    projected = u @ direction.x_proj.weight.T
    rank, states = direction.dt_rank, direction.state_dim
    dt, B, C = projected[..., :rank], projected[..., rank : rank + states], projected[..., rank + states :]
    delta = F.softplus(dt @ direction.dt_proj.weight.T + direction.dt_proj.bias)
    inputs = ScanInputs(u, delta, -direction.A_log.exp(), B, C, direction.D, delta_softplus=False)
    return reference_scan(inputs, z, reverse=False)


def slow_mixer(mixer, x):
    """The gated scan, averaged with the scan of the reversed sequence."""
    x, z = (x @ mixer.in_proj.weight.T).chunk(2, dim=-1)
    y = slow_direction(mixer.scan_forward, x, z)
    if mixer.scan_backward is not None:
        y = (y + slow_direction(mixer.scan_backward, x.flip(1), z.flip(1)).flip(1)) / 2
    return y @ mixer.out_proj.weight.T


def dependencies(block, length=LENGTH, **options):
    """Entry (t, s): whether output t has a gradient other than exactly zero from input s."""
    x = torch.randn(1, length, WIDTH, requires_grad=True)
    y = block(x, **options)
    rows = [torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)[0][0] for t in range(length)]
    return (torch.stack(rows) != 0).any(-1)


# ---- Mamba


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_mixer_equals_its_definition_with_every_gradient(bidirectional):
    mixer = MambaMixer(WIDTH, state_dim=3, conv_width=4, dt_rank=2, bidirectional=bidirectional)
    x = torch.randn(2, LENGTH, WIDTH, requires_grad=True)
    cotangent = torch.randn(2, LENGTH, WIDTH)
    leaves = dict(mixer.named_parameters(), x=x)
    outputs = [mixer(x), slow_mixer(mixer, x)]
    fast, slow = (
        dict(zip(leaves, torch.autograd.grad(y, leaves.values(), cotangent), strict=True), output=y)
        for y in outputs
    )
    for name in slow:
        scale = slow[name].abs().max().item()
        torch.testing.assert_close(
            fast[name], slow[name], rtol=0, atol=2e-5 * scale, msg=lambda m, n=name: n + m
        )


def test_a_mixer_in_float64_computes_in_float64():
    mixer, x = MambaMixer(WIDTH, state_dim=3).double(), torch.randn(2, LENGTH, WIDTH).double()
    for direction in (mixer.scan_forward, mixer.scan_backward):
        direction.A_log.data += 1e-9  # what float32 does not hold
    torch.testing.assert_close(mixer(x), slow_mixer(mixer, x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("rank", [0, -1])
def test_the_time_step_needs_a_rank(rank):
    with pytest.raises(UserError, match=rf"dt_rank \({rank}\) must be at least 1"):
        MambaMixer(WIDTH, dt_rank=rank)


def test_the_block_adds_the_mixer_to_its_input():
    block, x = MambaBlock(WIDTH), torch.randn(2, LENGTH, WIDTH)
    normalised = x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5)  # RMSNorm at its initial weight
    torch.testing.assert_close(block(x), x + slow_mixer(block.mixer, normalised), rtol=1e-4, atol=1e-5)


def test_one_direction_is_causal():
    depends = dependencies(MambaBlock(WIDTH, bidirectional=False))
    assert torch.equal(depends, torch.ones(LENGTH, LENGTH).tril().bool())


def test_two_directions_read_everything():
    assert dependencies(MambaBlock(WIDTH)).all()


def test_turning_the_sequence_equals_swapping_the_directions():
    mixer = MambaMixer(WIDTH, state_dim=4)
    swapped = MambaMixer(WIDTH, state_dim=4)
    swapped.load_state_dict(mixer.state_dict())
    swapped.scan_forward.load_state_dict(mixer.scan_backward.state_dict())
    swapped.scan_backward.load_state_dict(mixer.scan_forward.state_dict())
    x = torch.randn(2, LENGTH, WIDTH)
    torch.testing.assert_close(mixer(x.flip(1)).flip(1), swapped(x), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(mixer(x), swapped(x))


def test_samples_do_not_see_each_other():
    block, x = MambaBlock(WIDTH), torch.randn(3, LENGTH, WIDTH)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


@pytest.mark.parametrize(("embed_dim", "rank"), [(8, 1), (192, 12), (200, 13)])
def test_the_rank_of_the_time_step_is_a_sixteenth_of_the_width(embed_dim, rank):
    mixer = MambaMixer(embed_dim, state_dim=2)
    assert mixer.scan_forward.dt_proj.weight.shape == (2 * embed_dim, rank)
    assert mixer.scan_forward.x_proj.weight.shape == (rank + 4, 2 * embed_dim)


# ---- Transformer


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("proj_bias", [True, False])
def test_attention_starts_and_computes_as_timms(proj_bias, qkv_bias, masked):
    modules = []
    for make in (Attention, timm.layers.Attention):
        torch.manual_seed(1)
        modules.append(make(WIDTH, 2, qkv_bias=qkv_bias, proj_bias=proj_bias))
        modules[-1].random = torch.rand(())  # the next random number
    ours, theirs = modules
    assert ours.random == theirs.random
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, LENGTH, WIDTH, requires_grad=True)
    mask = torch.rand(2, LENGTH, LENGTH) < 0.7 if masked else None
    y, expected = ours(x, mask=mask), theirs(x, attn_mask=None if mask is None else mask[:, None])
    torch.testing.assert_close(y, expected)
    actual = torch.autograd.grad(y.square().sum(), [x, *ours.parameters()])
    for ours_, theirs_ in zip(
        actual, torch.autograd.grad(expected.square().sum(), [x, *theirs.parameters()]), strict=True
    ):
        torch.testing.assert_close(ours_, theirs_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_attention_to_a_context_is_the_rows_of_attention_to_itself(qkv_bias):
    attention, x = Attention(WIDTH, 2, qkv_bias=qkv_bias), torch.randn(2, LENGTH, WIDTH)
    mask = (torch.rand(2, LENGTH, LENGTH) < 0.6) | torch.eye(LENGTH, dtype=torch.bool)
    torch.testing.assert_close(attention(x[:, 3:7], x), attention(x)[:, 3:7])
    torch.testing.assert_close(attention(x[:, 3:7], x, mask[:, 3:7]), attention(x, mask=mask)[:, 3:7])


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("proj_bias", [True, False])
def test_the_transformer_block_is_timms(qkv_bias, proj_bias):
    theirs = timm_vit.Block(
        WIDTH, 2, 4.0, qkv_bias=qkv_bias, proj_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)
    )
    if not proj_bias:
        theirs.attn.proj = nn.Linear(WIDTH, WIDTH, bias=False)
    ours = TransformerBlock(WIDTH, num_heads=2, norm_eps=1e-6, qkv_bias=qkv_bias, proj_bias=proj_bias)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, LENGTH, WIDTH)
    torch.testing.assert_close(ours(x), theirs(x))


def test_attention_alone():
    block, x = TransformerBlock(WIDTH, num_heads=2, mlp_ratio=0.0), torch.randn(2, LENGTH, WIDTH)
    assert not [name for name, _ in block.named_parameters() if "mlp" in name or "norm2" in name]
    torch.testing.assert_close(block(x), x + block.attn(block.norm1(x)))


@pytest.mark.parametrize(
    ("make", "ratio"), [(TransformerBlock, 0.12), (CrossBlock, 0.12), (CrossBlock, 0.0)], ids=str
)
def test_an_mlp_has_at_least_one_unit(make, ratio):
    assert make(WIDTH, num_heads=2, mlp_ratio=1 / WIDTH).mlp.fc1.weight.shape == (1, WIDTH)
    with pytest.raises(
        UserError,
        match=rf"mlp_ratio \({ratio}\) times embed_dim \(8\) must be at least 1, .*; set mlp_ratio to 1/8 or more",
    ):
        make(WIDTH, num_heads=2, mlp_ratio=ratio)


@pytest.mark.parametrize("shared", [True, False])
def test_attention_reads_exactly_what_its_mask_allows(shared):
    allowed = torch.rand(LENGTH, LENGTH) < 0.4
    allowed |= torch.eye(LENGTH, dtype=torch.bool)
    block = TransformerBlock(WIDTH, num_heads=2)
    assert torch.equal(dependencies(block, attention_mask=allowed.unsqueeze(0)), allowed)
    masks = allowed.unsqueeze(0) if shared else torch.stack([allowed, torch.ones_like(allowed)])
    x = torch.randn(2, LENGTH, WIDTH)
    y = block(x, attention_mask=masks)
    torch.testing.assert_close(y[:1], block(x[:1], attention_mask=masks[:1]))
    torch.testing.assert_close(y[1:], block(x[1:], attention_mask=masks[-1:]))


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match=r"embed_dim \(10\) must be a multiple of num_heads \(4\)"):
        TransformerBlock(10, num_heads=4)
    with pytest.raises(UserError, match=r"num_heads \(0\) must be at least 1"):
        Attention(WIDTH, 0)


# ---- devices


@pytest.mark.parametrize("make", [MambaBlock, partial(TransformerBlock, num_heads=2)])
def test_blocks_run_on_the_meta_device(make):
    with torch.device("meta"):
        block, x = make(WIDTH), torch.zeros(2, LENGTH, WIDTH)
    y = block(residual_stream(x))
    assert (y.shape, y.device.type) == (x.shape, "meta")


# ---- norms and stochastic depth


def test_norms_by_name():
    x = torch.randn(3, WIDTH)
    rms, layer = make_norm("rms", WIDTH, 1e-2), make_norm("layer", WIDTH, 1e-2)
    torch.testing.assert_close(rms(x), x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-2))
    centred = x - x.mean(-1, keepdim=True)
    torch.testing.assert_close(layer(x), centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-2))
    assert [name for name, _ in rms.named_parameters()] == ["weight"]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    with pytest.raises(UserError, match="norm 'layers' is unknown; did you mean layer"):
        unwrap(make_norm)("layers", WIDTH)


@pytest.mark.parametrize("make", [MambaBlock, partial(TransformerBlock, num_heads=2)])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_blocks_use_the_norm_they_are_given(make, norm):
    block = make(WIDTH, norm=norm, norm_eps=3e-4)
    norms = [m for m in block.modules() if isinstance(m, (nn.RMSNorm, nn.LayerNorm))]
    assert norms
    assert {type(m) for m in norms} == {{"rms": nn.RMSNorm, "layer": nn.LayerNorm}[norm]}
    assert {m.eps for m in norms} == {3e-4}


@pytest.mark.parametrize("make", [MambaBlock, partial(TransformerBlock, num_heads=2, mlp_ratio=0.0)])
def test_a_dropped_branch_leaves_the_input(make):
    block, x = make(WIDTH, drop_path=0.5), torch.randn(200, 3, WIDTH)
    is_changed = (block(x) != x).flatten(1).any(1)
    assert 60 < is_changed.sum() < 140
    branch = block.eval()(x) - x
    torch.testing.assert_close(block.train().eval()(x), x + branch)
    assert (branch.flatten(1) != 0).any(1).all()


# ---- initial values


@pytest.fixture(scope="module")
def initialised():
    torch.manual_seed(0)
    mamba, transformer = MambaBlock(256), TransformerBlock(256, num_heads=4)
    for block in (mamba, transformer):
        block.apply(init_weights)
    return mamba, transformer


def test_time_steps_are_log_uniform_and_survive_the_general_rule(initialised):
    for direction in (initialised[0].mixer.scan_forward, initialised[0].mixer.scan_backward):
        step = F.softplus(direction.dt_proj.bias.detach())
        assert 1e-3 * 0.999 <= step.min() <= step.max() <= 0.1 * 1.001
        quantile = (step / 1e-3).log() / torch.tensor(100.0).log()  # uniform in [0, 1]
        expected = torch.linspace(0, 1, len(quantile))
        largest = (quantile.sort().values - expected).abs().max()
        assert largest < 1.95 / len(quantile) ** 0.5  # Kolmogorov, p = 1e-3
        bound = 16**-0.5
        assert direction.dt_proj.weight.abs().max() <= bound
        assert direction.dt_proj.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


def test_decay_and_skip_of_mamba(initialised):
    for direction in (initialised[0].mixer.scan_forward, initialised[0].mixer.scan_backward):
        expected = torch.arange(1.0, 17).log().expand(512, 16)
        assert torch.equal(direction.A_log.detach(), expected)
        assert torch.equal(direction.D.detach(), torch.ones(512))


def test_directions_start_differently(initialised):
    mixer = initialised[0].mixer
    assert not torch.equal(mixer.scan_forward.dt_proj.bias, mixer.scan_backward.dt_proj.bias)
    assert not torch.equal(mixer.scan_forward.x_proj.weight, mixer.scan_backward.x_proj.weight)


def test_linear_layers_start_small(initialised):
    names = []
    for block in initialised:
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear) and not name.endswith("dt_proj"):
                names.append(name)
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.03), name
                assert module.bias is None or (module.bias == 0).all(), name
    assert len(names) == 4 + 4


def test_convolutions_keep_torchs_spread(initialised):
    """Uniform within k ** -0.5 for k = 4 taps a channel, as in mamba_ssm."""
    for direction in (initialised[0].mixer.scan_forward, initialised[0].mixer.scan_backward):
        for values in (direction.conv1d.weight, direction.conv1d.bias):
            assert values.abs().max() <= 0.5
            assert values.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.1)


def test_inverse_softplus():
    value = torch.tensor([1e-4, 1e-3, 0.1, 1.0, 30.0])
    torch.testing.assert_close(F.softplus(inverse_softplus(value)), value)


DIRECTION = ["A_log", "D", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"]


def test_keys_of_the_mamba_block():
    scans = {f"mixer.scan_{way}.{key}" for way in ("forward", "backward") for key in DIRECTION}
    outer = {"norm.weight", "mixer.in_proj.weight", "mixer.out_proj.weight"}
    assert set(MambaBlock(WIDTH).state_dict()) == outer | scans
    one_way = set(MambaBlock(WIDTH, bidirectional=False).state_dict())
    assert one_way == outer | {key for key in scans if "backward" not in key}


def test_keys_of_the_transformer_block():
    attention = {
        "norm1.weight",
        "norm1.bias",
        "attn.qkv.weight",
        "attn.qkv.bias",
        "attn.proj.weight",
        "attn.proj.bias",
    }
    mlp = {"norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"}
    assert set(TransformerBlock(WIDTH, num_heads=2).state_dict()) == attention | mlp
    bare = TransformerBlock(WIDTH, num_heads=2, mlp_ratio=0.0, qkv_bias=False, proj_bias=False, norm="rms")
    assert set(bare.state_dict()) == {"norm1.weight", "attn.qkv.weight", "attn.proj.weight"}


def test_parameter_shapes_of_the_mamba_block():
    shapes = {
        name: tuple(p.shape)
        for name, p in MambaBlock(32, state_dim=5, expand=3, conv_width=2).named_parameters()
    }
    assert shapes["mixer.in_proj.weight"] == (2 * 96, 32)
    assert shapes["mixer.out_proj.weight"] == (32, 96)
    assert shapes["mixer.scan_forward.conv1d.weight"] == (96, 1, 2)
    assert shapes["mixer.scan_forward.A_log"] == (96, 5)


def test_decay_rates_are_not_decayed():
    names = undecayed_parameters(MambaBlock(WIDTH))
    assert names == {"mixer.scan_forward.A_log", "mixer.scan_backward.A_log"}
