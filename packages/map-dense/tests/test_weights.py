"""Loading map-vision's weights into a dense backbone: what is used, reported and refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from map_core.commands.standard import configs, pretrain
from map_core.errors import UserError
from map_core.tasks.weights import save_weights
from map_core.training import TrainingConfig
from map_dense.backbone import HybridBackbone
from map_dense.weights import load_backbone, other_normalisation
from map_vision.data import DataConfig
from map_vision.data.preprocessing import Preprocessing
from map_vision.domain import DOMAIN
from map_vision.factory import MODELS, ModelConfig, create_backbone, create_model
from map_vision.model import HybridNet
from map_vision.pretraining import ImageObjectiveConfig

NAME = "hybridnet_tiny_patch16_224"
SMALL: dict[str, Any] = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "layout": "MMMT", "num_heads": 4}


def backbone(**changes: Any) -> HybridBackbone:
    return HybridBackbone(NAME, **{**SMALL, **changes}).eval()


def write_run(folder: Path, *, classes: int = 0, described: bool = True, **changes: Any) -> Path:
    """Write a run directory with the weights of a small pretrained encoder, or of a classifier."""
    config = ModelConfig(NAME, **{**SMALL, **changes})
    torch.manual_seed(0)
    model = create_model(config, classes) if classes else create_backbone(config)
    folder.mkdir(exist_ok=True)
    save_weights(folder / "model.safetensors", model.state_dict(), MODELS.describe(config))
    if not described:
        (folder / "model.json").unlink()
    return folder


def test_a_pretraining_run_starts_the_backbone_and_its_features(tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(
        DOMAIN,
        configs(DOMAIN).pretrain(
            data=DataConfig(source="digits"),
            model=ModelConfig(NAME, **{**SMALL, "img_size": 8, "patch_size": 2}),
            objective=ImageObjectiveConfig(decoder_depth=1, decoder_dim=16, decoder_heads=2),
            training=TrainingConfig(
                batch_size=8, max_steps=1, workers=0, progress=False, tensorboard=False, device="cpu"
            ),
            out=str(run),
        ),
    )
    dense = backbone(img_size=8, patch_size=2)
    report = load_backbone(dense, run)
    assert report.source == run / "model.safetensors"
    assert report.used == len(dense.state_dict())
    assert report.unused == ("encoder.norm.weight",)
    model = timm.create_model(
        NAME,
        checkpoint_path=str(run / "model.safetensors"),
        num_classes=0,
        num_registers=0,
        global_pool="avg",
        **{**SMALL, "img_size": 8, "patch_size": 2},
    ).eval()
    images = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = model.forward_intermediates(images, dense.out_indices, intermediates_only=True)
        for one, other in zip(dense(images), expected, strict=True):
            torch.testing.assert_close(one, other)


def test_every_key_of_a_classifier_that_is_not_used_is_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", classes=10)
    dense = backbone(out_indices=[0, 1])
    report = load_backbone(dense, run / "model.safetensors")
    unused = {
        key.split(".")[0] if not key.startswith("encoder") else ".".join(key.split(".")[1:3])
        for key in report.unused
    }
    assert unused == {"registers.token", "registers.position", "blocks.2", "blocks.3", "norm.weight", "head"}
    assert report.used + len(report.unused) == 2 + 2 + 1 + 3 * 17 + 12 + 1 + 2
    for key in report.unused:
        assert key in str(report)


def test_positions_of_another_grid_are_resampled_and_reported(tmp_path: Path) -> None:
    report = load_backbone(backbone(img_size=96), write_run(tmp_path / "run"))
    assert report.resampled == ("encoder.position.table",)


def test_another_patch_size_is_an_error_or_an_explicit_resample(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", patch_size=8)
    dense = backbone()
    with pytest.raises(
        UserError,
        match=r"patches of 8x8 pixels, the backbone of 16x16: set model\.backbone\.patch_size=8 "
        r"and model\.neck\.patch_size=8, or model\.backbone\.init_cfg\.resample_patches=True",
    ):
        load_backbone(dense, run)
    report = load_backbone(dense, run, resample_patches=True)
    assert report.resampled == ("patch_embed.proj.weight", "encoder.position.table")
    source = create_backbone(ModelConfig(NAME, **{**SMALL, "patch_size": 8}))
    source.load_state_dict(timm.models.load_state_dict(str(run / "model.safetensors")))
    small, large = torch.randn(1, 3, 8, 8), None
    large = torch.nn.functional.interpolate(
        small, size=(16, 16), mode="bicubic", antialias=True, align_corners=False
    )
    # the resampled patch embedding maps an enlarged patch to what the old one makes of the patch itself
    with torch.no_grad():
        torch.testing.assert_close(
            dense.model.patch_embed(large), source.patch_embed(small), rtol=1e-3, atol=1e-3
        )


def test_oblong_patches_can_only_be_resampled(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", patch_size=(8, 16))
    with pytest.raises(
        UserError,
        match=r"of 8x16 pixels, the backbone of 16x16: set model\.backbone\.init_cfg\.resample_patches=True",
    ):
        load_backbone(backbone(), run)


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 48}, r"has width 32, the backbone 48"),
        ({"layout": "(MMMT)x2"}, r"has 4 layers, the backbone 8 \(layout '\(MMMT\)x2'\)"),
        ({"mlp_ratio": 1.0}, r"shapes: .*mlp\.fc1\.weight \(64, 32\) for \(32, 32\)"),
        ({"in_chans": 1}, r"shapes: patch_embed\.proj\.weight \(32, 3, 16, 16\) for \(32, 1, 16, 16\)"),
    ],
)
def test_another_architecture_is_refused_with_both_values(
    tmp_path: Path, changes: dict[str, Any], message: str, described: bool
) -> None:
    run = write_run(tmp_path / "run", described=described)
    with pytest.raises(UserError, match=message):
        load_backbone(backbone(**changes), run)


def test_another_layout_is_refused_with_both_where_the_run_is_described(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has layout 'MMMT', the backbone 'TMMM'; set model\.backbone\.name"):
        load_backbone(backbone(layout="TMMM"), write_run(tmp_path / "run"))
    load_backbone(backbone(layout="MMTT", out_indices=[1]), tmp_path / "run")  # both layers are Mamba's
    with pytest.raises(UserError, match=r"does not fit the backbone: missing: encoder\.blocks\.0\."):
        load_backbone(backbone(layout="TMMM"), write_run(tmp_path / "undescribed", described=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 2}, "trained with num_heads 4, the backbone has 2; set model.backbone.num_heads=4"),
        (
            {"order": "column"},
            "trained with order row, the backbone has column; set model.backbone.order=row",
        ),
        ({"wiring": "branch"}, "trained with wiring residual, the backbone has branch"),
        ({"position": "sincos"}, "trained with position learned, the backbone has sincos"),
        ({"bidirectional": False}, "trained with bidirectional True, the backbone has False"),
    ],
)
def test_settings_that_shapes_do_not_show_are_read_from_the_runs_description(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(backbone(**changes), write_run(tmp_path / "run"))


def test_a_run_with_overlapping_patches_is_refused_without_an_option_that_backbones_lack(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "run", classes=10, patch_stride=8)
    with pytest.raises(
        UserError,
        match=r"patch_stride \(8, 8\), the backbone has None; a backbone has no patch_stride: give other weights",
    ):
        load_backbone(backbone(), run)


def test_blocks_of_another_size_are_refused_where_the_scan_goes_by_blocks(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", order="block", block_size=(2, 2))
    with pytest.raises(UserError, match=r"trained with block_size \(2, 2\), the backbone has \(4, 4\); set"):
        load_backbone(backbone(order="block"), run)
    load_backbone(backbone(order="block", block_size=[2, 2]), run)  # configs have lists
    load_backbone(backbone(), write_run(tmp_path / "rows", block_size=(2, 2)))  # no blocks, no size


@pytest.mark.parametrize(
    ("changes", "unused"),
    [
        ({"position": "sincos"}, r"encoder\.position\.table; set"),
        ({"bidirectional": False}, r"encoder\.blocks\.0\.mixer\.scan_backward\.\w+, .* and \d+ more"),
        ({"mlp_ratio": 0.0}, r"encoder\.blocks\.3\.mlp\.fc1\.bias, .*norm2"),
    ],
)
def test_weights_of_kept_layers_without_a_place_are_refused_without_a_description(
    tmp_path: Path, changes: dict[str, Any], unused: str
) -> None:
    run = write_run(tmp_path / "run", described=False)
    with pytest.raises(UserError, match=rf"does not fit the backbone: without a place: {unused}"):
        load_backbone(backbone(**changes), run)


@pytest.mark.parametrize("described", [True, False])
def test_larger_images_fewer_layers_and_windows_load(tmp_path: Path, described: bool) -> None:
    dense = backbone(img_size=128, layout="TMMM", out_indices=[1], window_size=2)
    report = load_backbone(dense, write_run(tmp_path / "run", described=described, layout="TMMM"))
    assert report.used == len(dense.model.state_dict())
    assert {".".join(key.split(".")[1:3]) for key in report.unused} == {"blocks.2", "blocks.3", "norm.weight"}


def test_a_file_without_any_key_of_the_backbone_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1), "bn1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(
        UserError, match=r"has none of the backbone's \d+ keys \(it begins with conv1\.weight, bn1\.weight"
    ):
        load_backbone(backbone(), tmp_path / "resnet.pth")


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
IMAGENET_IN_CONFIGS = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


def describe_images(folder: Path, mean: list[float], std: list[float], **more: Any) -> Path:
    settings = Preprocessing(len(mean), tuple(mean), tuple(std), **more).to_dict()
    (folder / "model.json").write_text(json.dumps(settings))
    return folder


def test_images_that_are_normalised_as_the_weights_were_pass(tmp_path: Path) -> None:
    assert other_normalisation(tmp_path, *IMAGENET_IN_CONFIGS) is None  # nothing says how theirs were
    run = describe_images(tmp_path, *IMAGENET)
    assert other_normalisation(run, *IMAGENET_IN_CONFIGS) is None
    assert other_normalisation(run, [123.68, 116.28, 103.53], [58.4, 57.12, 57.38]) is None  # rounded
    assert other_normalisation(run, None, None) is None  # in the pipeline, or nowhere
    digits = describe_images(tmp_path, [0.5] * 3, [0.25] * 3)
    assert other_normalisation(digits, [127.5], [63.75]) is None  # one number for all channels
    stored = describe_images(tmp_path, [124.0] * 3, [58.0] * 3, pixels="stored")
    assert other_normalisation(stored, [124.0] * 3, [58.0] * 3) is None


@pytest.mark.parametrize(
    ("mean", "std", "settings"),
    [
        (IMAGENET[0], [0.2, 0.2, 0.2], ("[123.675,116.28,103.53]", "[51,51,51]")),
        ([0.4, 0.3, 0.2], IMAGENET[1], ("[102,76.5,51]", "[58.395,57.12,57.375]")),
        ([0.5] * 4, [0.25] * 4, ("[127.5,127.5,127.5,127.5]", "[63.75,63.75,63.75,63.75]")),
    ],
)
def test_another_normalisation_than_that_of_the_weights_is_described_with_the_settings_that_cure_it(
    mean: list[float], std: list[float], settings: tuple[str, str], tmp_path: Path
) -> None:
    pixels = {"pixels": "stored"} if len(mean) == 4 else {}
    scale = 255 if pixels else 1
    run = describe_images(
        tmp_path, [scale * value for value in mean], [scale * value for value in std], **pixels
    )
    assert other_normalisation(run, *IMAGENET_IN_CONFIGS) == (
        f"{run} was trained on images that were normalised by mean {settings[0]} and std {settings[1]}, but "
        "model.data_preprocessor has mean [123.675,116.28,103.53] and std [58.395,57.12,57.375]: set "
        f"model.data_preprocessor.mean={settings[0]} and model.data_preprocessor.std={settings[1]}"
    )


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights at .*nowhere; give a finished run's directory"):
        load_backbone(backbone(), tmp_path / "nowhere")


def test_timms_vit_initialises_the_transformer_only_family(tmp_path: Path) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    dense = HybridBackbone("map_vit_tiny_patch16_224", img_size=64)
    report = load_backbone(dense, tmp_path / "vit.pth")
    assert set(report.unused) == {
        "encoder.registers.token",
        "encoder.registers.position",
        "encoder.norm.weight",
        "encoder.norm.bias",
    }
    assert report.notes == ("no file says how many attention heads there are: 3, as published",)
    assert str(report).endswith(report.notes[0])


def test_a_vit_of_other_heads_than_the_backbones_is_warned_of(tmp_path: Path) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    report = load_backbone(
        HybridBackbone("map_vit_tiny_patch16_224", img_size=64, num_heads=6), tmp_path / "vit.pth"
    )
    (note,) = report.notes
    assert note.startswith(
        "no file says how many attention heads there are: this model has num_heads 6 and the published one 3, whose"
    )
    assert note.endswith("; set model.backbone.num_heads=3")


SUFFIXES = {"scan_forward": "", "scan_backward": "_b"}


def authors_name(key: str) -> str:
    """The name that MAP's authors give a parameter of layout MMMT."""
    direct = {"encoder.position.table": "pos_embed", "encoder.norm.weight": "norm_f.weight"}
    if match := re.match(r"encoder\.blocks\.(\d)\.mixer\.(scan_\w+)\.(\w+)(.*)", key):
        suffix = SUFFIXES[match[2]]
        name = f"A{suffix}_log" if match[3] == "A_log" else f"{match[3]}{suffix}{match[4]}"
        return f"layers.{match[1]}.mixer.{name}"
    if key.startswith("encoder.blocks.3."):
        return key.replace("encoder.blocks.3.", "blocks.0.")
    return direct.get(key, key.replace("encoder.blocks.", "layers."))


def authors_file(folder: Path) -> tuple[Path, HybridNet]:
    """A checkpoint in the format of MAP's authors, and its model."""
    model = create_backbone(ModelConfig(NAME, **SMALL, wiring="branch"))
    assert isinstance(model, HybridNet)
    state = {authors_name(key): value for key, value in model.state_dict().items()}
    state["pos_embed"] = state["pos_embed"].flatten(0, 1)[None]
    torch.save({"model": state}, folder / "authors.pth")
    return folder / "authors.pth", model.eval()


def test_the_authors_checkpoint_starts_a_backbone_of_its_wiring(tmp_path: Path) -> None:
    file, model = authors_file(tmp_path)
    dense = backbone(wiring="branch", out_indices=[3])
    report = load_backbone(dense, file)
    assert report.unused == ("encoder.norm.weight",)
    images = torch.randn(1, 3, 64, 64)
    (features,) = dense(images)
    (expected,) = model.forward_intermediates(images, [3], intermediates_only=True)
    assert torch.equal(features, expected)


def test_the_authors_checkpoint_is_refused_by_a_backbone_of_our_wiring(tmp_path: Path) -> None:
    file, _ = authors_file(tmp_path)
    message = r"of MAP's authors, whose wiring is 'branch', and not 'residual': .*; set model.backbone.wiring=branch"
    with pytest.raises(UserError, match=message):
        load_backbone(backbone(), file)


def test_the_authors_checkpoint_is_refused_by_a_backbone_that_scans_otherwise(tmp_path: Path) -> None:
    file, _ = authors_file(tmp_path)
    with pytest.raises(UserError, match=r"whose order is 'row', .*; set model.backbone.order=row"):
        load_backbone(backbone(wiring="branch", order="column"), file)


def test_overlapping_patches_of_vim_are_refused_without_an_option_that_backbones_lack(tmp_path: Path) -> None:
    name = "map_vim_tiny_patch16_224"
    sizes: dict[str, Any] = {"embed_dim": 32, "layout": "Mx2"}
    state = create_model(ModelConfig(name, patch_stride=8, **sizes), 10).state_dict()
    table = state.pop("encoder.position.table").flatten(0, 1)
    token, position = (state.pop(f"encoder.registers.{part}") for part in ("token", "position"))
    middle = len(table) // 2
    theirs = {authors_name(key): value for key, value in state.items()}
    theirs |= {
        "cls_token": token[None],
        "pos_embed": torch.cat([table[:middle], position, table[middle:]])[None],
    }
    torch.save(theirs, tmp_path / "vim.pth")
    with pytest.raises(
        UserError,
        match=r"of Vim, whose patch_stride is \(8, 8\), .*; a backbone has no patch_stride: give other",
    ):
        load_backbone(HybridBackbone(name, out_indices=[1], **sizes), tmp_path / "vim.pth")
