"""Layer decay: every parameter in one group, rates by depth, exemptions from weight decay."""

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

import map_dense.optim  # registers the constructor
from map_core import UserError
from map_dense.backbone import HybridBackbone
from map_dense.layer_decay import layer_decay_groups, optimizer_groups, render_groups, rescaled_rate
from map_dense.pyramid import SimpleFeaturePyramid


class Detector(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = SimpleFeaturePyramid(16, 8)


def small_detector(**overrides: object) -> Detector:
    settings: dict[str, object] = dict(
        img_size=32, embed_dim=16, layout="(MMMT)x2", num_heads=2, out_indices=[7]
    )
    return Detector(HybridBackbone("hybridnet_tiny_patch16_224", **{**settings, **overrides}))  # type: ignore[arg-type]


def lr_scales(groups: list[map_dense.layer_decay.ParameterGroup], part: str) -> set[float]:
    return {round(group.lr_scale, 10) for group in groups if any(part in name for name in group.parameters)}


@pytest.mark.parametrize("layout", ["(MMMT)x2", "Mx8", "Tx8"])
def test_each_trainable_parameter_is_in_exactly_one_group(layout: str) -> None:
    model = small_detector(layout=layout)
    groups = layer_decay_groups(model, decay_rate=0.9, weight_decay=0.1)
    names = [name for group in groups for name in group.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert sum(group.count for group in groups) == sum(p.numel() for p in model.parameters())


def test_one_step_a_layer_mamba_and_transformer_alike() -> None:
    groups = layer_decay_groups(small_detector(), decay_rate=0.5, weight_decay=0.1)
    for layer in range(8):
        assert lr_scales(groups, f"blocks.{layer}.") == {0.5 ** (8 - layer)}
    assert lr_scales(groups, "patch_embed") == lr_scales(groups, "position") == {0.5**9}
    assert lr_scales(groups, "neck.") == {1.0}
    assert [group.depth for group in groups] == sorted(group.depth for group in groups)


def test_a_rate_for_24_layers_is_rescaled_to_the_depth() -> None:
    assert rescaled_rate(0.92, 32, 24) == pytest.approx(0.92**0.75)
    assert rescaled_rate(0.92, 32, None) == 0.92
    groups = layer_decay_groups(small_detector(), decay_rate=0.5, weight_decay=0.1, reference_layers=4)
    assert lr_scales(groups, "blocks.0.") == {round(0.5**4, 10)}  # as for layer 0 of four


def test_depth_counts_the_remaining_layers() -> None:
    groups = layer_decay_groups(small_detector(out_indices=[3]), decay_rate=0.5, weight_decay=0.1)
    assert lr_scales(groups, "blocks.3.") == {0.5}
    assert lr_scales(groups, "patch_embed") == {0.5**5}


def test_vectors_positions_and_mambas_a_keep_their_weight() -> None:
    groups = layer_decay_groups(small_detector(), decay_rate=0.9, weight_decay=0.1)
    undecayed = {name for group in groups if group.weight_decay == 0 for name in group.parameters}
    decayed = {name for group in groups if group.weight_decay == 0.1 for name in group.parameters}
    for part in ("A_log", ".D", "position", ".bias", "norm", "dt_proj.bias"):
        assert any(part in name for name in undecayed)
        assert not any(part in name for name in decayed)
    for part in (
        "in_proj.weight",
        "dt_proj.weight",
        "conv1d.weight",
        "qkv.weight",
        "fc1.weight",
        "proj.weight",
    ):
        assert any(part in name for name in decayed)


def test_frozen_parameters_are_left_out() -> None:
    groups = layer_decay_groups(small_detector(frozen_stages=3), decay_rate=0.5, weight_decay=0.1)
    assert lr_scales(groups, "blocks.2.") == lr_scales(groups, "patch_embed") == set()
    assert lr_scales(groups, "blocks.3.") == {0.5**5}


def test_layers_under_unknown_names_are_an_error_not_a_silent_rate_of_one() -> None:
    class Renamed(nn.Module):
        num_layers = 2

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    with pytest.raises(UserError, match=r"no depth for the backbone's parameter 'layers\.0\.weight'"):
        layer_decay_groups(Detector(Renamed()), decay_rate=0.9, weight_decay=0.1)
    model = small_detector()
    model.backbone.num_layers = 10
    with pytest.raises(UserError, match=r"no parameter of layer\(s\) \[8, 9\] of the backbone's 10"):
        layer_decay_groups(model, decay_rate=0.9, weight_decay=0.1)
    with pytest.raises(UserError, match=r"backbone tells num_layers.*is Linear"):
        layer_decay_groups(Detector(nn.Linear(4, 4)), decay_rate=0.9, weight_decay=0.1)


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(UserError, match=f"decay_rate must be above 0 and at most 1; got {rate}"):
        layer_decay_groups(small_detector(), decay_rate=rate, weight_decay=0.1)


@pytest.mark.parametrize("layers", [0, -24])
def test_a_reference_without_layers_is_refused(layers: int) -> None:
    message = f"reference_layers must be a whole number of at least 1, or None to .*; got {layers}"
    with pytest.raises(UserError, match=message):
        layer_decay_groups(small_detector(), decay_rate=0.9, weight_decay=0.1, reference_layers=layers)


def test_the_table_has_a_line_per_group() -> None:
    groups = layer_decay_groups(small_detector(), decay_rate=0.5, weight_decay=0.1)
    header, *lines = render_groups(groups).splitlines()
    assert header.split() == ["group", "depth", "lr", "scale", "weight", "decay", "tensors", "parameters"]
    assert len(lines) == len(groups) == 20  # embedding, 8 layers, heads; each with and without weight decay
    assert lines[0].split() == ["embedding", "0", "0.0020", "0.1", "1", "12,288"]
    assert lines[-1].startswith("heads, no decay")
    assert len({len(line) for line in lines}) == 1


def constructor(**options: object) -> map_dense.optim.HybridLayerDecayOptimWrapperConstructor:
    return OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type="HybridLayerDecayOptimWrapperConstructor",
            optim_wrapper_cfg=dict(
                type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.1)
            ),
            paramwise_cfg=options,
        )
    )


def test_the_constructor_hands_the_groups_to_the_optimizer() -> None:
    model = small_detector()
    wrapper = constructor(decay_rate=0.5)(model)
    expected = optimizer_groups(layer_decay_groups(model, decay_rate=0.5, weight_decay=0.1), 1e-2)
    param_groups = wrapper.optimizer.param_groups
    assert [(g["lr"], g["weight_decay"]) for g in param_groups] == [
        (g["lr"], g["weight_decay"]) for g in expected
    ]
    assert wrapper.get_lr()["base_lr"] == [1e-2]
    parameter_ids = {id(p) for group in param_groups for p in group["params"]}
    assert parameter_ids == {id(p) for p in model.parameters()}


def test_a_step_moves_a_layer_in_proportion_to_its_rate() -> None:
    """Adam's first step is the rate times the sign of the gradient, so its size shows the rate."""
    torch.manual_seed(0)
    model = small_detector(drop_path_rate=0.0)
    wrapper = constructor(decay_rate=0.5)(model)
    block = model.backbone.model.encoder.blocks
    weights = [block[i].attn.proj.bias for i in (3, 7)]
    before = [weight.detach().clone() for weight in weights]
    loss = (
        sum(
            level.square().mean(dim=1).mul(torch.rand(level.shape[2:])).sum()
            for level in model.neck(model.backbone(torch.randn(1, 3, 32, 32)))
        )
        + model.backbone(torch.randn(1, 3, 32, 32))[-1].square().sum()
    )
    wrapper.update_params(loss)
    step_sizes = [(weight - old).abs().max().item() for weight, old in zip(weights, before, strict=True)]
    assert step_sizes[0] == pytest.approx(1e-2 * 0.5**5, rel=1e-3)
    assert step_sizes[1] == pytest.approx(1e-2 * 0.5, rel=1e-3)


def test_wrong_options_of_the_constructor() -> None:
    with pytest.raises(
        UserError, match=r"paramwise_cfg option 'layer_decay_rate' is unknown; did you mean decay_rate"
    ):
        constructor(layer_decay_rate=0.9)
    with pytest.raises(UserError, match="needs paramwise_cfg=dict"):
        constructor(reference_layers=24)
