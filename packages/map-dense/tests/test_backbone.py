"""The backbone: features, sizes, gradients, freezing."""

from typing import Any

import pytest
import timm
import torch
import warm
from torch import Tensor

from map_core.errors import UserError
from map_dense.backbone import HybridBackbone, default_out_indices

SMALL: dict[str, Any] = {"img_size": 64, "embed_dim": 32, "layout": "(MMMT)x4", "num_heads": 4}


def small(**changes: Any) -> HybridBackbone:
    torch.manual_seed(0)
    return HybridBackbone(**{**SMALL, **changes})


def test_importing_map_dense_imports_no_openmmlab_package() -> None:
    code = (
        "import sys, map_dense, map_dense.backbone, map_dense.weights, map_dense.cli\n"
        "loaded = {name.split('.')[0] for name in sys.modules} & {'mmengine', 'mmcv', 'mmseg', 'mmdet', 'mim'}\n"
        "sys.exit(', '.join(sorted(loaded)) or 0)"
    )
    warm.run("-c", code)


@pytest.mark.parametrize(
    "name", ["hybridnet_tiny_patch16_224", "mambar_tiny_patch16_224", "map_vit_tiny_patch16_224"]
)
def test_features_are_the_intermediates_of_map_vision_at_224(name: str) -> None:
    model = timm.create_model(name, num_classes=0, num_registers=0, global_pool="avg").eval()
    backbone = HybridBackbone(name).eval()
    backbone.model.load_state_dict({key: model.state_dict()[key] for key in backbone.model.state_dict()})
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours = backbone(images)
        theirs = model.forward_intermediates(
            images, backbone.out_indices, norm=False, intermediates_only=True
        )
    assert [tuple(one.shape) for one in ours] == [(1, 192, 14, 14)] * 4
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("size", "grid"), [((512, 512), (32, 32)), ((513, 640), (33, 40)), ((7, 33), (1, 3))]
)
def test_maps_have_the_stride_of_the_patch_at_any_size(size: tuple[int, int], grid: tuple[int, int]) -> None:
    backbone = small().eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, *size))
    assert [tuple(one.shape) for one in maps] == [(1, 32, *grid)] * 4
    assert all(one.isfinite().all() for one in maps)


def test_an_image_that_patches_do_not_tile_is_padded_with_zeros_at_the_right_and_bottom() -> None:
    backbone = small().eval()
    images = torch.randn(1, 3, 50, 70)
    padded = torch.zeros(1, 3, 64, 80)
    padded[:, :, :50, :70] = images
    with torch.no_grad():
        for one, other in zip(backbone(images), backbone(padded), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("order", ["row", "column"])
def test_a_map_lies_on_the_image_whatever_the_scan_order(order: str) -> None:
    backbone = small(layout="MMMT", out_indices=[0], order=order).eval()
    block = backbone.model.encoder.blocks[0]
    torch.nn.init.zeros_(block.mixer.out_proj.weight)  # what is left is patch embedding and position
    torch.nn.init.zeros_(backbone.model.encoder.position.table)
    images = torch.zeros(1, 3, 64, 96)
    images[:, :, 16:32, 64:80] = 1.0
    with torch.no_grad():
        (features,) = backbone(images)
    other = (features - features[:, :, :1, :1]).abs().sum(1)[0]
    assert other.nonzero().tolist() == [[1, 4]]


def _sum_of_squares(maps: list[Tensor]) -> Tensor:
    return torch.stack([one.square().mean() for one in maps]).sum()


@pytest.mark.parametrize("frozen_stages", [-1, 0, 5])
@pytest.mark.parametrize("window_size", [None, 3])
def test_gradients_reach_every_parameter_that_is_not_frozen(
    frozen_stages: int, window_size: int | None
) -> None:
    backbone = small(frozen_stages=frozen_stages, window_size=window_size, out_indices=[5, 13]).train()
    _sum_of_squares(backbone(torch.randn(2, 3, 70, 64))).backward()
    frozen = {"model.patch_embed", "model.encoder.position"} if frozen_stages >= 0 else set()
    frozen |= {f"model.encoder.blocks.{i}" for i in range(frozen_stages)}
    for name, parameter in backbone.named_parameters():
        if name.startswith(tuple(f"{prefix}." for prefix in frozen)):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_frozen_layers_stay_in_evaluation_mode() -> None:
    backbone = small(frozen_stages=5, drop_path_rate=0.5).train()
    modes = [block.training for block in backbone.model.encoder.blocks]
    assert modes == [False] * 5 + [True] * 11
    assert not backbone.model.patch_embed.training


def test_layers_after_the_last_chosen_one_are_left_out() -> None:
    backbone = small(out_indices=[1, 6])
    assert backbone.num_layers == 7
    assert backbone.layout == "MMMTMMM"
    assert not any(key.startswith("model.encoder.norm") for key in backbone.state_dict())
    assert small(out_indices=None).num_layers == 16


def test_checkpointed_activations_change_no_gradient() -> None:
    images, gradients = torch.randn(1, 3, 64, 64), []
    for checkpointed in (False, True):
        backbone = small(activation_checkpointing=checkpointed, drop_path_rate=0.0).train()
        _sum_of_squares(backbone(images)).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (32, (7, 15, 23, 31)),
        (64, (15, 31, 47, 63)),
        (24, (5, 11, 17, 23)),
        (12, (2, 5, 8, 11)),
        (5, (0, 1, 2, 4)),
    ],
)
def test_features_are_taken_after_each_quarter_of_the_depth(layers: int, expected: tuple[int, ...]) -> None:
    assert default_out_indices(layers) == expected


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_hybridnets_features_come_from_transformer_blocks(size: str) -> None:
    with torch.device("meta"):
        backbone = HybridBackbone(f"hybridnet_{size}_patch16_224")
    assert {backbone.layout[index] for index in backbone.out_indices} == {"T"}
    assert backbone.out_channels == [backbone.embed_dim] * 4


@pytest.mark.parametrize("indices", [[3, 16], [-1], [], [5, 3], [3, 3]])
def test_out_indices_beyond_the_depth_are_refused_with_the_depth(indices: list[int]) -> None:
    with pytest.raises(
        UserError, match=r"out_indices .* must be ascending and lie in 0\.\.15: .* has 16 layers"
    ):
        small(out_indices=indices)


@pytest.mark.parametrize("indices", [7, 2.5, "7", [1.5], ["7"]])
@pytest.mark.usefixtures("without_type_checks")
def test_out_indices_that_are_no_list_of_layers_are_refused(indices: Any) -> None:
    with pytest.raises(UserError, match=r"out_indices must be a list of layers, such as \[15\]"):
        small(out_indices=indices)


@pytest.mark.parametrize("size", [[64], [64, 64, 3], [], "64", [64, 0], 0, 64.0])
@pytest.mark.usefixtures("without_type_checks")
def test_an_img_size_that_is_neither_a_number_nor_two_is_refused(size: Any) -> None:
    with pytest.raises(UserError, match=r"img_size must be a number of pixels or \[height, width\]"):
        small(img_size=size)


def test_too_few_layers_have_no_default() -> None:
    with pytest.raises(UserError, match=r"no default for 3 layer\(s\), fewer than 4; set out_indices"):
        small(layout="MMT")


@pytest.mark.parametrize("stages", [17, -2, "1", 1.0, True])
@pytest.mark.usefixtures("without_type_checks")
def test_frozen_stages_beyond_the_depth_are_refused_with_the_depth(stages: Any) -> None:
    with pytest.raises(
        UserError, match=rf"frozen_stages must be a whole number in -1\.\.16, .*; got {stages!r}: "
    ):
        small(frozen_stages=stages)


@pytest.mark.parametrize("heads", [[4, 4], (4, 4), "4", 4.0, 0])
@pytest.mark.usefixtures("without_type_checks")
def test_num_heads_is_one_number(heads: Any) -> None:
    with pytest.raises(
        UserError, match="num_heads must be a whole number of at least 1, or None for the name's; got"
    ):
        small(num_heads=heads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "columns"}, r"^model\.backbone\.order must be one of .*row, column.*; got 'columns'"),
        ({"layout": ["M"]}, r"^model\.backbone\.layout must be text; got \('M',\)$"),
        ({"bidirectional": "no"}, r"^model\.backbone\.bidirectional must be true or false; got 'no'$"),
        ({"drop_path_rate": "a"}, r"^model\.backbone\.drop_path_rate must be a number; got 'a'$"),
        ({"mlp_ratio": "2"}, r"^model\.backbone\.mlp_ratio must be a number; got '2'$"),
        (
            {"order": "block", "block_size": [2, 2, 2]},
            r"^model\.backbone\.block_size must be 2 whole numbers as a list \[a, b\]; got \(2, 2, 2\)$",
        ),
        ({"position": "sine"}, r"^model\.backbone\.position must be one of learned, sincos, .*; got 'sine'$"),
        (
            {"activation_checkpointing": "off"},
            r"^model\.backbone\.activation_checkpointing must be True or False; got",
        ),
        (
            {"block_size": [2, 2]},
            r"^model\.backbone\.block_size \(2, 2\) has no effect with model\.backbone\.order row: leave it out$",
        ),
        (
            {"drop_path_rate": 1.5},
            r"^model\.backbone\.drop_path_rate must lie in \[0, 1\); got 1\.5; change model\.backbone\.drop_path_rate$",
        ),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_settings_of_the_model_are_checked_when_the_backbone_is_built(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        small(**changes)


def test_unknown_options_and_those_of_the_classifier_are_refused() -> None:
    with pytest.raises(UserError, match=r"'embed_dims' is unknown; did you mean embed_dim"):
        small(embed_dims=8)
    with pytest.raises(UserError, match="'num_registers' belongs to the classifier"):
        small(num_registers=4)
