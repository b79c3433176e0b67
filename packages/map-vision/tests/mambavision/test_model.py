"""The registered pyramids: what they hold, and that they behave as timm's users expect."""

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay

from map_core import UserError
from map_core.training.optimizer import default_parameter_groups
from map_vision.mambavision.windows import cut_windows, join_windows
from map_vision.registry import ARCHITECTURES, MODEL_NAMES, PYRAMIDS

# counted with the published code
PARAMETERS = {
    "map_mambavision_tiny": 31_794_248,
    "map_mambavision_tiny2": 35_104_008,
    "map_mambavision_small": 50_140_584,
    "map_mambavision_base": 97_685_288,
    "map_mambavision_large": 227_961_048,
    "map_mambavision_large2": 241_554_824,
}
KEYS = (252, 298, 285, 356, 356, 389)


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def meta(name, **changes):
    with torch.device("meta"):
        return timm.create_model(name, **changes)


@pytest.mark.parametrize(("name", "keys"), list(zip(PARAMETERS, KEYS, strict=True)))
def test_parameters_are_the_published_ones(name, keys):
    model = meta(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert len(model.state_dict()) == keys


def test_every_registered_pyramid_is_counted_and_listed():
    assert set(PYRAMIDS) == set(PARAMETERS) <= set(timm.list_models())
    assert set(MODEL_NAMES) == set(PYRAMIDS) | set(ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("map_mambavision_tiny", ["MMMMAAAA", "MMAA"]),
        ("map_mambavision_tiny2", ["MMMMMMAAAAA", "MMAA"]),
        ("map_mambavision_small", ["MMMMAAA", "MMMAA"]),
    ],
)
def test_the_second_half_of_a_stage_attends(name, kinds):
    letters = {"Mixer": "M", "Attention": "A"}
    stages = meta(name).levels[2:]
    assert ["".join(letters[type(b.mixer).__name__] for b in stage.blocks) for stage in stages] == kinds


def test_keys_of_the_state_dict_are_the_published_ones(make_pyramid):
    def norm(name):
        return [f"{name}.{part}" for part in ("weight", "bias")]

    def batch_norm(name):
        return norm(name) + [
            f"{name}.{part}" for part in ("running_mean", "running_var", "num_batches_tracked")
        ]

    expected = [
        "patch_embed.conv_down.0.weight",
        "patch_embed.conv_down.3.weight",
        "head.weight",
        "head.bias",
    ]
    for name in ("patch_embed.conv_down.1", "patch_embed.conv_down.4", "norm"):
        expected += batch_norm(name)
    for block in ("levels.0.blocks.0", "levels.1.blocks.0"):
        for i in (1, 2):
            expected += [*norm(f"{block}.conv{i}"), *batch_norm(f"{block}.norm{i}")]
    expected += [f"levels.{i}.downsample.reduction.0.weight" for i in range(3)]
    for level in ("levels.2", "levels.3"):
        for block in (f"{level}.blocks.0", f"{level}.blocks.1"):
            for layer in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                expected += norm(f"{block}.{layer}")
            expected += [f"{block}.gamma_1", f"{block}.gamma_2"]
        scan = ("in_proj.weight", "x_proj.weight", "conv1d_x.weight", "conv1d_z.weight", "A_log", "D")
        scan += ("out_proj.weight", *norm("dt_proj"))
        expected += [f"{level}.blocks.0.mixer.{key}" for key in scan]
        expected += [*norm(f"{level}.blocks.1.mixer.qkv"), *norm(f"{level}.blocks.1.mixer.proj")]
    assert sorted(make_pyramid(layer_scale=1e-5).state_dict()) == sorted(expected)


def test_initial_values_are_the_published_ones():
    torch.manual_seed(0)
    model = timm.create_model("map_mambavision_base", depths=(1, 1, 2, 2))
    mixer = model.levels[2].blocks[0].mixer
    for layer in (
        mixer.in_proj,
        mixer.dt_proj,
        mixer.x_proj,
        model.levels[3].blocks[1].mixer.qkv,
        model.head,
    ):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert layer.bias is None or not layer.bias.any()
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 9.0).expand(256, 8))
    assert (mixer.D == 1).all()
    assert (model.levels[3].blocks[1].gamma_2 == 1e-5).all()


@pytest.mark.parametrize(("height", "width", "size"), [(4, 4, 4), (6, 5, 4), (3, 9, 2), (1, 1, 7)])
def test_windows_come_back_as_they_were(height, width, size):
    x = images(2, 3, height, width)
    windows = cut_windows(x, size)
    rows, cols = -(-height // size), -(-width // size)
    assert windows.shape == (2 * rows * cols, size * size, 3)
    assert torch.equal(join_windows(windows, size, height, width), x)
    assert windows.sum().item() == pytest.approx(x.sum().item(), abs=1e-4)  # the padding is zero


def test_windows_do_not_see_each_other(make_pyramid):
    stage = make_pyramid().levels[2]
    x = images(1, 32, 8, 8).requires_grad_()
    stage(x)[:, :, :4, 4:].square().sum().backward()
    reached = x.grad.abs().sum(1)[0] > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, 4:] = True
    assert torch.equal(reached, expected)


@pytest.mark.parametrize("pool", ["avg", ""])
def test_forward_head_pools_then_classifies(make_pyramid, pool):
    model, x = make_pyramid(global_pool=pool), images(2, 3, 64, 96)
    features = model.forward_features(x)
    places = features.flatten(2).mT
    assert features.shape == (2, 64, 2, 3)
    pooled = places.mean(1) if pool else places
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    torch.testing.assert_close(model(x), model.head(pooled))


def test_classifier_can_be_read_and_replaced(make_pyramid):
    model, x = make_pyramid(), images(1, 3, 64, 64)
    assert model.get_classifier() is model.head
    model.reset_classifier(5)
    assert model(x).shape == (1, 5)
    model.reset_classifier(3, global_pool="")
    assert model(x).shape == (1, 4, 3)
    model.reset_classifier(0, global_pool="avg")
    assert model(x).shape == (1, model.head_hidden_size) == (1, 64)
    model.double().reset_classifier(2)
    assert model.head.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("indices", "stages"), [(2, [2, 3]), ([0, 2], [0, 2]), ([-1], [3]), (None, [0, 1, 2, 3])]
)
def test_intermediates_are_the_maps_behind_chosen_stages(make_pyramid, indices, stages):
    model, x = make_pyramid(), images(1, 3, 64, 96)
    final, every = model.forward_intermediates(x)
    assert [tuple(one.shape[1:]) for one in every] == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)]
    torch.testing.assert_close(final, model.forward_features(x))
    chosen = model.forward_intermediates(x, indices, norm=True, intermediates_only=True)
    for one, stage in zip(chosen, stages, strict=True):
        torch.testing.assert_close(one, final if stage == 3 else every[stage])


def test_stop_early_runs_no_later_stage(make_pyramid):
    model, ran = make_pyramid(), []
    for i, stage in enumerate(model.levels):
        stage.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.forward_intermediates(images(1, 3, 64, 64), [1], stop_early=True, intermediates_only=True)
    assert ran == [0, 1]


def test_features_only_wraps_the_stages(make_pyramid):
    model, x = make_pyramid(), images(1, 3, 64, 96)
    wrapped = make_pyramid(features_only=True, out_indices=(0, 2))
    assert wrapped.feature_info.channels() == [8, 32]
    assert wrapped.feature_info.reduction() == [4, 16]
    intermediates = model.forward_intermediates(x, intermediates_only=True)
    wrapped_state = wrapped.state_dict()
    wrapped.load_state_dict({key: model.state_dict()[key.removeprefix("model.")] for key in wrapped_state})
    for features, stage in zip(wrapped(x), (0, 2), strict=True):
        torch.testing.assert_close(features, intermediates[stage])
    assert not any("levels.3" in key or "levels.2.downsample" in key for key in wrapped_state)


def test_features_only_takes_other_stages_the_next_time(make_pyramid):
    wrapped_models = [
        make_pyramid(features_only=True, **stages) for stages in ({}, {"out_indices": (0, 1)}, {})
    ]
    widths = [[features.shape[1] for features in model(images(1, 3, 64, 64))] for model in wrapped_models]
    assert widths == [[8, 16, 32, 64], [8, 16], [8, 16, 32, 64]]


def test_one_number_is_for_both_stages_and_two_are_for_one_each(make_pyramid):
    for setting, heads, windows in ((2, [2, 2], [2, 2]), ((2, 4), [2, 4], [2, 4])):
        stages = make_pyramid(num_heads=setting, window_size=setting).levels[2:]
        assert [stage.window_size for stage in stages] == windows
        assert [stage.blocks[-1].mixer.num_heads for stage in stages] == heads


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_and_statistics_with_activation_checkpointing_are_equal(make_pyramid, every):
    plain, recomputing = make_pyramid().train(), make_pyramid().train()
    recomputing.set_grad_checkpointing(every=every)
    for model in (plain, recomputing):
        model(images(2, 3, 64, 64)).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), recomputing.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_layer_decay_takes_a_step_each_block():
    model = meta("map_mambavision_tiny", mask_token=True)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = group_parameters(model, model.group_matcher(), reverse=False)
    assert sorted(name for group in groups.values() for name in group) == sorted(names.values())
    assert len(groups) == 1 + 16 + 1  # stem, blocks, head
    ordered = [{".".join(name.split(".")[:4]) for name in groups[key]} for key in sorted(groups)]
    assert ordered[1] >= {"levels.0.blocks.0"}
    assert ordered[2] >= {"levels.1.blocks.0", "levels.0.downsample.reduction"}
    assert ordered[16] >= {"levels.3.blocks.3", "norm.weight"}
    scaled = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.9)
    scale = {names[id(p)]: group["lr_scale"] for group in scaled for p in group["params"]}
    assert scale["mask_token"] == scale["patch_embed.conv_down.0.weight"] == pytest.approx(0.9**17)
    assert scale["levels.1.blocks.2.conv1.weight"] == pytest.approx(0.9**13)
    assert scale["levels.3.blocks.3.mlp.fc1.weight"] == pytest.approx(0.9)


def test_states_vectors_and_the_painted_cell_are_not_decayed():
    model = meta("map_mambavision_base", mask_token=True)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = default_parameter_groups(model, 0.05)
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    kinds = {name.rsplit(".", 2)[-2] for name in decayed}
    assert kinds == {
        *("0", "3", "conv1", "conv2", "in_proj", "x_proj", "dt_proj", "conv1d_x", "conv1d_z", "out_proj"),
        *("qkv", "proj", "fc1", "fc2", "head"),
    }
    assert model.no_weight_decay() == {name for name in names.values() if "A_log" in name} | {"mask_token"}


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_published_checkpoints_load_whatever_wraps_them(make_pyramid, prefix, tmp_path):
    model, x = make_pyramid(), images(1, 3, 64, 64)
    state = {f"{prefix}{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "published.pth.tar")
    other = make_pyramid(checkpoint_path=str(tmp_path / "published.pth.tar"))
    assert torch.equal(other(x), model(x))


def test_drop_path_grows_over_all_blocks():
    model = timm.create_model(
        "map_mambavision_tiny", embed_dim=64, num_heads=1, depths=(1, 2, 2, 1), drop_path_rate=0.5, stem_dim=4
    )
    rates = [getattr(block.drop_path, "drop_prob", 0) for stage in model.levels for block in stage.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 60}, r"embed_dim \(60\) must be a multiple of 8: three stages double the width"),
        ({"depths": (1, 2, 3)}, r"depths must be 4 numbers of blocks, each at least 1; got \(1, 2, 3\)"),
        ({"depths": (1, 0, 1, 1)}, r"depths must be at least 1; got \(1, 0, 1, 1\)"),
        ({"window_size": (4, 0)}, r"window_size must be at least 1; got \(4, 0\)"),
        (
            {"num_heads": (2, 4, 8, 16)},
            r"num_heads must be one number for stages three and four, .*got \(2, 4, 8, 16\): .* the last two",
        ),
        (
            {"window_size": [8, 8, 14, 7]},
            r"window_size must be one number for stages .*got \[8, 8, 14, 7\]: of four .* give the last two",
        ),
        ({"num_heads": (4,)}, r"num_heads must be one number .*, or one for each; got \(4,\)"),
        ({"window_size": "14"}, r"window_size must be one number .*, or one for each; got '14'"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio of a pyramid must be positive; got 0.0"),
        ({"num_heads": (5, 4)}, r"embed_dim \(32\) must be a multiple of num_heads \(5\)"),
        ({"global_pool": "max"}, r"global_pool must be 'avg' or '' for MambaVision; got 'max'"),
    ],
)
def test_a_pyramid_that_cannot_be_is_refused(make_pyramid, changes, message):
    with pytest.raises(UserError, match=message):
        make_pyramid(**changes)


def test_another_input_size_changes_no_weight(make_pyramid):
    model, x = make_pyramid(), images(1, 3, 64, 96)
    expected = model(x)
    model.set_input_size((64, 96))
    assert model.img_size == (64, 96)
    torch.testing.assert_close(model(x), expected)


def test_calls_that_do_not_fit_are_refused(make_pyramid):
    model = make_pyramid()
    with pytest.raises(UserError, match=r"images have 1 channels, the model takes in_chans=3; convert"):
        model(images(1, 1, 64, 64))
    with pytest.raises(UserError, match=r"output_fmt must be 'NCHW'; got 'NLC'"):
        model.forward_intermediates(images(1, 3, 64, 64), output_fmt="NLC")


@pytest.mark.parametrize("name", ["map_mambavision_tiny", "hybridnet_tiny_patch16_224"])
def test_blocks_are_recomputed_every_one_or_more(name):
    with pytest.raises(UserError, match=r"every must be at least 1, which recomputes every block; got 0"):
        meta(name).set_grad_checkpointing(every=0)


@pytest.mark.usefixtures("unchecked")
@torch.no_grad()
def test_exports_as_one_graph(make_pyramid):
    model, x = make_pyramid(), images(2, 3, 96, 80)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))
