"""MambaVision as a backbone: the normalised maps of its stages, at any size, from the weights of a classifier."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from map_core.errors import UserError
from map_core.tasks.weights import save_weights
from map_dense import catalogue
from map_dense.backbone import HybridBackbone
from map_dense.mambavision import MambaVisionBackbone
from map_dense.weights import load_mambavision
from map_vision.factory import MODELS as VISION_MODELS
from map_vision.factory import ModelConfig, create_backbone, create_model

SMALL: dict[str, Any] = {
    "embed_dim": 64,
    "stem_dim": 4,
    "depths": (1, 1, 2, 2),
    "num_heads": (2, 4),
    "window_size": (4, 2),
}


def small(**changes: Any) -> MambaVisionBackbone:
    torch.manual_seed(0)
    return MambaVisionBackbone(**{**SMALL, **changes})


@pytest.fixture
def classifier() -> torch.nn.Module:
    torch.manual_seed(1)
    return create_model(ModelConfig("map_mambavision_tiny", **SMALL), num_classes=5).eval()


def normalised(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


@pytest.mark.parametrize("wrapper", ["", "module.", "model."])
def test_maps_are_the_normalised_stages_of_the_loaded_model(
    classifier: torch.nn.Module, wrapper: str, tmp_path: Path
) -> None:
    state = {f"{wrapper}{key}": value for key, value in classifier.state_dict().items()}
    save_weights(tmp_path / "model.safetensors", state, {})
    backbone, images = small().eval(), torch.randn(2, 3, 96, 80)
    report = load_mambavision(backbone, tmp_path)
    assert set(report.unused) == {
        key for key in classifier.state_dict() if key.startswith(("norm.", "head."))
    }
    _, stages = classifier.forward_intermediates(images)
    assert [tuple(one.shape) for one in stages] == [
        (2, 8, 24, 20),
        (2, 16, 12, 10),
        (2, 32, 6, 5),
        (2, 64, 3, 3),
    ]
    for one, stage in zip(backbone(images), stages, strict=True):
        torch.testing.assert_close(one, normalised(stage))


def test_a_pretraining_runs_weights_load_without_the_painted_cell(tmp_path: Path) -> None:
    pretrained = create_backbone(ModelConfig("map_mambavision_tiny", **SMALL))
    save_weights(tmp_path / "model.safetensors", pretrained.state_dict(), {})
    backbone = small()
    load_mambavision(backbone, tmp_path)
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(value, pretrained.state_dict()[key]), key


@pytest.mark.parametrize("size", [(512, 512), (33, 70), (7, 5)])
def test_sides_are_those_of_the_image_over_the_stride(size: tuple[int, int]) -> None:
    maps = small().eval()(torch.randn(1, 3, *size))
    strides = (4, 8, 16, 32)
    assert [tuple(one.shape[2:]) for one in maps] == [tuple(-(-side // s) for side in size) for s in strides]
    assert all(one.isfinite().all() for one in maps)


def test_stages_after_the_last_chosen_one_are_left_out() -> None:
    backbone, whole, images = small(out_indices=[0, 2]).eval(), small().eval(), torch.randn(1, 3, 64, 64)
    assert backbone.out_channels == [8, 32]
    assert not any("levels.3" in key or "levels.2.downsample" in key for key in backbone.state_dict())
    backbone.load_state_dict({key: whole.state_dict()[key] for key in backbone.state_dict()})
    maps = whole(images)
    for one, other in zip(backbone(images), (maps[0], maps[2]), strict=True):
        torch.testing.assert_close(one, other)


def test_a_name_or_stages_of_none_are_the_defaults() -> None:
    with torch.device("meta"):
        backbone = MambaVisionBackbone(None, out_indices=None)
    assert (backbone.config.name, backbone.out_indices) == ("map_mambavision_tiny", [0, 1, 2, 3])


@pytest.mark.parametrize("frozen", [-1, 0, 2, 4])
def test_frozen_stages_have_no_gradients_and_keep_their_statistics(frozen: int) -> None:
    backbone = small(frozen_stages=frozen, drop_path_rate=0.0).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running_mean" in key}
    sum(one.square().sum() + one.sum() for one in backbone(torch.randn(2, 3, 64, 64))).backward()
    prefixes = () if frozen < 0 else ("model.patch_embed.", *(f"model.levels.{i}." for i in range(frozen)))
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(prefixes or ("none",)), name
    for key, value in before.items():
        assert torch.equal(backbone.state_dict()[key], value) == key.startswith(prefixes or ("none",)), key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "hybridnet_tiny_patch16_224"},
            r"model\.backbone\.\w+ \(.*\) is not a setting of hybridnet_tiny_patch16_224",
        ),
        ({"layout": "Mx4"}, r"backbone option 'layout' is unknown; .*in_chans"),
        ({"out_indices": [2, 1]}, r"out_indices \[2, 1\] must be ascending stages in 0..3"),
        ({"out_indices": 7}, r"out_indices must be a list of stages, such as \[0, 1, 2, 3\]; got 7"),
        ({"out_indices": 2.5}, r"out_indices must be a list of stages, such as \[0, 1, 2, 3\]; got 2\.5"),
        ({"drop_path_rate": "a"}, r"^model\.backbone\.drop_path_rate must be a number; got 'a'$"),
        ({"mlp_ratio": "2"}, r"^model\.backbone\.mlp_ratio must be a number; got '2'$"),
        (
            {"num_heads": "4"},
            r"^model\.backbone\.num_heads must be a whole number or 2 whole numbers as a list \[a, b\]; got '4'$",
        ),
        (
            {"activation_checkpointing": "off"},
            r"^model\.backbone\.activation_checkpointing must be True or False; got",
        ),
        ({"out_indices": [4]}, r"out_indices \[4\] must be ascending stages in 0..3"),
        ({"out_indices": [0.5]}, r"out_indices \[0.5\] must be ascending stages in 0..3"),
        ({"out_indices": ["0"]}, r"out_indices \['0'\] must be ascending stages in 0..3"),
        (
            {"frozen_stages": 5},
            r"frozen_stages must be a whole number in -1\.\.4, the stages of the backbone; got 5: ",
        ),
        ({"frozen_stages": "1"}, r"frozen_stages must be a whole number in -1\.\.4, .*; got '1'"),
        (
            {"drop_path_rate": 1.0},
            r"^model\.backbone\.drop_path_rate must .*; change model\.backbone\.drop_path_rate$",
        ),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_invalid_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**changes)


def test_weights_of_another_size_are_refused(classifier: torch.nn.Module, tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", classifier.state_dict(), {})
    with pytest.raises(
        UserError,
        match=r"does not fit the backbone: missing: levels\.0\.blocks\.1\..* and \d+ more; set model\.backbone as the "
        r"run's model was \(name, embed_dim, depths, mlp_ratio, stem_dim, in_chans, layer_scale\)",
    ):
        load_mambavision(small(depths=(2, 1, 2, 2)), tmp_path)


def test_a_published_pyramid_of_other_heads_is_warned_of_but_its_windows_may_grow(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"embed_dim": 640, "num_heads": (4, 8)}  # published with 8 and 16 heads
    torch.save(small(**sizes).model.state_dict() | norm_of(640), tmp_path / "pyramid.pth")
    (note,) = load_mambavision(small(**sizes, window_size=(16, 8)), tmp_path / "pyramid.pth").notes
    assert note.startswith(
        "no file says how many attention heads there are: this model has num_heads (4, 8) and the published one (8, 16)"
    )
    assert note.endswith("; set model.backbone.num_heads=(8, 16)")
    report = load_mambavision(small(embed_dim=640, num_heads=(8, 16)), tmp_path / "pyramid.pth")
    assert report.notes == ("no file says how many attention heads there are: (8, 16), as published",)


def norm_of(width: int) -> dict[str, torch.Tensor]:
    """The last norm of a classifier, which backbones lack."""
    return {f"norm.{key}": value for key, value in torch.nn.BatchNorm2d(width).state_dict().items()}


def write_run(folder: Path, **changes: Any) -> Path:
    """Write a directory with the weights and the description of a small pretrained pyramid."""
    config = ModelConfig("map_mambavision_tiny", **{**SMALL, **changes})
    state = create_backbone(config).state_dict()
    save_weights(folder / "model.safetensors", state, VISION_MODELS.describe(config))
    return folder


def test_a_run_with_other_heads_is_refused_although_its_shapes_fit(tmp_path: Path) -> None:
    run = write_run(tmp_path, num_heads=(1, 2))
    with pytest.raises(
        UserError,
        match=r"trained with num_heads \(1, 2\), the backbone has \(2, 4\); set model\.backbone\.num_heads=\(1, 2\)",
    ):
        load_mambavision(small(), run)
    assert load_mambavision(small(num_heads=[1, 2]), run).used > 0  # configs have lists


def test_a_run_with_smaller_windows_loads_into_larger_ones(tmp_path: Path) -> None:
    backbone = small(window_size=[64, 32])
    assert load_mambavision(backbone, write_run(tmp_path)).used == len(backbone.model.state_dict())


def test_scales_of_a_kept_layer_without_a_place_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, layer_scale=1e-5)
    (run / "model.json").unlink()
    with pytest.raises(UserError, match=r"without a place: levels\.2\.blocks\.0\."):
        load_mambavision(small(), run)


def test_the_backbone_of_plain_models_names_the_pyramids_one() -> None:
    with pytest.raises(UserError, match=r"map_mambavision_tiny is a pyramid, .* type='MambaVision'"):
        HybridBackbone("map_mambavision_tiny")


@pytest.mark.parametrize("toolbox", ["mmseg", "mmdet"])
def test_both_toolboxes_build_and_initialise_it(
    toolbox: str, classifier: torch.nn.Module, tmp_path: Path
) -> None:
    save_weights(tmp_path / "model.safetensors", classifier.state_dict(), {})
    with DefaultScope.overwrite_default_scope(toolbox):
        Config.fromfile(
            catalogue.config_path("upernet_hybridnet-mini_cpu_camvid")
        )  # its custom_imports register
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in SMALL.items()}
        init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path))
        backbone = MODELS.build(dict(type="MambaVision", init_cfg=init_cfg, **lists))
    backbone.init_weights()
    first = "patch_embed.conv_down.0.weight"
    assert torch.equal(backbone.model.state_dict()[first], classifier.state_dict()[first])
    with pytest.raises(UserError, match=r"init_cfg option 'resample_patches' is unknown"):
        MODELS.build(dict(type="MambaVision", init_cfg=dict(checkpoint="run", resample_patches=True)))
