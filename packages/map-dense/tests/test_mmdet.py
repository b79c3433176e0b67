"""Detection in mmdet: the configs build, a detector trains, is saved, and predicts the same when loaded."""

import itertools
import json
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image

import map_dense
from map_core import UserError
from map_dense.cli import main
from map_dense.data_root import with_data_root
from map_dense.layer_decay import layer_decay_groups

CONFIGS = Path(map_dense.__file__).parent / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("cascade-mask-rcnn_*.py"))
CLASSES = ("date", "fig", "hazelnut")


def read_config(name: str, **changes: Any) -> Config:
    config = Config.fromfile(CONFIGS / f"{name}.py")
    config.merge_from_dict(changes)
    init_default_scope("mmdet")
    return config


def build_on_meta(config: Config) -> torch.nn.Module:
    """The model without the memory for its weights."""
    with torch.device("meta"):
        return MODELS.build(config.model)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos of a bright square and a dark bar, in the layout of coco_fruits."""
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(2):
        pixels = generator.integers(100, 130, (64, 96, 3), dtype=np.uint8)
        boxes = {1: (8 + 24 * number, 8, 32, 32), 3: (16, 44 - 40 * number, 48, 16)}
        for category, (x, y, w, h) in boxes.items():
            pixels[y : y + h, x : x + w] = 250 if category == 1 else 5
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=number,
                    category_id=category,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.jpg", quality=95)
        images.append(dict(id=number, file_name=f"{number}.jpg", width=96, height=64))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    content = json.dumps(dict(images=images, annotations=annotations, categories=categories))
    for split in ("train", "val"):
        (tmp_path / f"instances_{split}.json").write_text(content)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_config_states_what_a_recipe_must(name: str) -> None:
    header = (CONFIGS / f"{name}.py").read_text()
    for entry in ("Command:", "Hardware:", "Time:", "Expected:", "Status:", "Settings:"):
        assert re.search(rf"^{entry}\s+\S", header, re.MULTILINE), entry
    mentioned = set(re.findall(r"cascade-mask-rcnn_[\w-]+", header))
    assert mentioned <= {*NAMES, *(path.stem for path in (CONFIGS / "_base_").glob("*.py"))}


@pytest.mark.parametrize(
    ("size", "backbone", "total"),
    [("tiny", 10_079_424, 67_744_878), ("small", 36_379_008, 94_677_726), ("base", 128_195_328, 188_755_902)],
)
def test_the_full_configs_build(size: str, backbone: int, total: int) -> None:
    model = build_on_meta(read_config(f"cascade-mask-rcnn_hybridnet-{size}_lsj-100e_coco"))
    assert (count(model.backbone), count(model)) == (backbone, total)
    assert len(model.backbone.model.encoder.blocks) == 32
    assert model.backbone.model.encoder.position.table.shape[:2] == (64, 64)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_logged_with_the_steps_that_the_loop_counts(name: str) -> None:
    config = read_config(name)
    by_epoch = config.train_cfg.type == "DataRootEpochBasedTrainLoop"
    assert config.default_hooks.logger.get("log_metric_by_epoch", True) is by_epoch
    assert config.default_hooks.checkpoint.get("by_epoch", True) is by_epoch
    assert config.log_processor.by_epoch is by_epoch


def test_heads_normalise_over_channels() -> None:
    model = build_on_meta(read_config("cascade-mask-rcnn_hybridnet-tiny_lsj-100e_coco"))
    convolutions = [m for m in model.roi_head.modules() if isinstance(m, ConvModule)]
    assert len(convolutions) == 3 * (4 + 4)  # box and mask heads of three stages
    norm = MODELS.build(
        dict(type="ConvModule", in_channels=4, out_channels=4, kernel_size=1, norm_cfg=dict(type="LN2d"))
    ).norm
    assert {type(conv.norm) for conv in convolutions} == {type(norm)}
    x = torch.randn(2, 4, 3, 3)
    expected = torch.nn.functional.layer_norm(x.movedim(1, -1), (4,), eps=1e-5).movedim(-1, 1)
    assert torch.allclose(norm(x), expected, atol=1e-6)


def test_stages_and_masks_weigh_as_in_vitdet() -> None:
    """One box loss per stage, each with weight 1, and mask losses whose weights add up to 1."""
    model = build_on_meta(read_config("cascade-mask-rcnn_hybridnet-tiny_lsj-100e_coco"))
    roi = model.roi_head
    boxes = zip(roi.stage_loss_weights, roi.bbox_head, strict=True)
    assert [stage * head.loss_bbox.loss_weight for stage, head in boxes] == [1.0] * 3
    masks = zip(roi.stage_loss_weights, roi.mask_head, strict=True)
    assert sum(stage * head.loss_mask.loss_weight for stage, head in masks) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "departure",
    ["one mask head", "weigh 1, 0.5, 0.25", "at most a quarter", "relative positions", "RoPE", "window_size"],
)
def test_the_base_config_says_where_it_departs_from_vitdet(departure: str) -> None:
    header = (CONFIGS / "_base_" / "cascade-mask-rcnn.py").read_text().split('"""')[1]
    assert departure in " ".join(header.split())


def test_the_long_schedule_is_a_hundred_epochs_in_batches_of_64() -> None:
    for name, epochs in (("100e", 100), ("36e", 36)):
        config = read_config(f"cascade-mask-rcnn_hybridnet-tiny_lsj-{name}_coco")
        assert config.train_cfg.max_iters * config.auto_scale_lr.base_batch_size == pytest.approx(
            118_000 * epochs, rel=1e-3
        )
        last = config.param_scheduler[1]
        assert last.end == config.train_cfg.max_iters
        assert [m / last.end for m in last.milestones] == pytest.approx([0.8889, 0.963], abs=1e-3)


@pytest.mark.parametrize(("size", "rate"), [("tiny", 0.837), ("small", 0.837), ("base", 0.7)])
def test_layer_decay_is_vims_of_24_layers_over_32(size: str, rate: float) -> None:
    config = read_config(f"cascade-mask-rcnn_hybridnet-{size}_lsj-100e_coco")
    groups = layer_decay_groups(build_on_meta(config), weight_decay=0.1, **config.optim_wrapper.paramwise_cfg)
    first, last = groups[0], groups[-1]
    assert (first.name, last.name) == ("embedding", "heads, no decay")
    assert first.lr_scale == pytest.approx(rate ** (33 * 24 / 32))
    assert last.lr_scale == 1.0


def small(work_dir: Path, root: Path) -> Config:
    """The fruit detector, smaller still."""
    channels, width = 16, 32
    config = read_config(
        "cascade-mask-rcnn_hybridnet-mini_cpu_coco-fruits",
        data_root=str(root),
        work_dir=str(work_dir),
        visualizer=dict(vis_backends=[dict(type="LocalVisBackend")]),
        **{
            "model.backbone.embed_dim": width,
            "model.backbone.layout": "MT",
            "model.backbone.num_heads": 2,
            "model.backbone.patch_size": 8,
            "model.backbone.out_indices": [1],
            "model.backbone.img_size": [64, 96],
            "model.neck.patch_size": 8,
            "model.neck.in_channels": width,
            "model.neck.out_channels": channels,
            "model.rpn_head.in_channels": channels,
            "model.rpn_head.feat_channels": channels,
            "model.roi_head.bbox_roi_extractor.out_channels": channels,
            "model.roi_head.mask_roi_extractor.out_channels": channels,
            "model.roi_head.mask_head.in_channels": channels,
            "model.roi_head.mask_head.conv_out_channels": channels,
            "train_dataloader.dataset.times": 12,
            "model.test_cfg.rcnn.score_thr": 0.0,  # so that something is predicted
            "train_cfg.max_epochs": 1,
            "train_cfg.val_interval": 1,
            "optim_wrapper.optimizer.lr": 2e-3,
        },
    )
    for head in config.model.roi_head.bbox_head:
        head.update(in_channels=channels, conv_out_channels=channels, fc_out_channels=64)
    for loader in (
        config.train_dataloader.dataset.dataset,
        config.val_dataloader.dataset,
        config.test_dataloader.dataset,
    ):
        for transform in loader.pipeline:
            if transform.type == "Resize":
                transform.scale = (96, 64)
    config.param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=5)]
    return config


def predictions(runner: Runner, photo: dict[str, Any]) -> Any:
    runner.model.eval()
    with torch.no_grad():
        return runner.model.test_step(photo)[0].pred_instances


def test_a_detector_trains_and_its_checkpoint_predicts_the_same(photos: Path, tmp_path: Path) -> None:
    runner = Runner.from_cfg(small(tmp_path / "work", photos))
    start = {name: parameter.detach().clone() for name, parameter in runner.model.named_parameters()}
    runner.train()
    losses, _ = runner.message_hub.get_scalar("train/loss").data
    assert np.isfinite(losses).all()
    assert losses[-3:].mean() < 0.8 * losses[:3].mean()
    unchanged = [
        name for name, parameter in runner.model.named_parameters() if torch.equal(parameter, start[name])
    ]
    assert unchanged == []

    config = small(tmp_path / "again", photos)
    config.load_from = str(tmp_path / "work" / "epoch_1.pth")
    tester = Runner.from_cfg(config)
    metrics = tester.test()
    assert {"coco/bbox_mAP_50", "coco/segm_mAP_50"} <= set(metrics)
    photo = next(iter(tester.test_dataloader))
    trained, loaded = predictions(runner, photo), predictions(tester, photo)
    assert len(trained) > 0
    for field in ("bboxes", "scores", "labels", "masks"):
        assert torch.equal(getattr(trained, field), getattr(loaded, field))


@pytest.fixture
def detector(photos: Path, tmp_path: Path) -> Path:
    """The small detector's config in one file, and beside it a checkpoint of its initial weights."""
    config = small(tmp_path / "work", photos)
    config.dump(tmp_path / "detector.py")
    torch.manual_seed(0)
    torch.save({"state_dict": MODELS.build(config.model).state_dict(), "meta": {}}, tmp_path / "detector.pth")
    return tmp_path / "detector.py"


def run_tool(name: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a tool of mmdet as `mim run` does, in this process."""
    import mmdet

    script = Path(mmdet.__file__).parent / ".mim" / "tools" / f"{name}.py"
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    monkeypatch.setenv("LOCAL_RANK", "0")  # which the tool would leave set for the tests that follow
    runpy.run_path(str(script), run_name="__main__")


def test_augmented_testing_says_that_mmdet_merges_no_masks(
    detector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (detector, detector.with_suffix(".pth"), "--tta")
    with pytest.raises(
        UserError, match=r"--tta: mmdet merges augmented boxes but no masks; score boxes alone by"
    ):
        run_tool("test", *arguments, monkeypatch=monkeypatch)


def test_augmented_testing_scores_boxes_alone(
    detector: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("--cfg-options", "model.roi_head.mask_head=None", "test_evaluator.metric=bbox")
    run_tool("test", detector, detector.with_suffix(".pth"), "--tta", *options, monkeypatch=monkeypatch)
    output = "".join(capfd.readouterr())
    assert "bbox_mAP_copypaste" in output
    assert "segm" not in output.split("bbox_mAP_copypaste")[-1]


def test_data_are_browsed_under_data_root(
    detector: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["write-config", str(detector), str(tmp_path / "whole.py"), f"data_root={photos}"]) == 0
    pictures = tmp_path / "pictures"
    run_tool(
        "analysis_tools/browse_dataset",
        tmp_path / "whole.py",
        "--not-show",
        "--output-dir",
        pictures,
        monkeypatch=monkeypatch,
    )
    assert sorted(path.name for path in pictures.rglob("*.jpg")) == ["0.jpg", "1.jpg"]


def test_a_config_written_for_a_relative_data_root_reads_it_from_anywhere(
    detector: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, again = detector.with_name("written.py"), detector.with_name("again.py")
    monkeypatch.chdir(photos.parent)
    assert main(["write-config", str(detector), str(written), f"data_root={photos.name}"]) == 0
    monkeypatch.chdir("/")
    assert main(["write-config", str(written), str(again)]) == 0
    assert again.read_text() == written.read_text()
    assert Config.fromfile(written).val_evaluator.ann_file == str(photos / "instances_train.json")
    Runner.from_cfg(Config.fromfile(written)).val()


def test_a_repeated_data_set_ends(photos: Path, tmp_path: Path) -> None:
    config = small(tmp_path, photos)
    dataset = DATASETS.build(with_data_root(config.train_dataloader, config)["dataset"])
    image_ids = [sample["data_samples"].img_id for sample in itertools.islice(dataset, 100)]
    assert image_ids == [0, 1] * 12


def test_swapped_categories_are_refused_when_the_loop_starts(photos: Path, tmp_path: Path) -> None:
    file = photos / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"].reverse()
    file.write_text(json.dumps(content))
    config = small(tmp_path / "work", photos)
    Runner.from_cfg(config).build_train_loop(config.train_cfg)  # its file is in order
    with pytest.raises(UserError, match=r"instances_val\.json lists its categories in another order"):
        Runner.from_cfg(config).test()


def test_data_with_a_root_of_their_own_are_scored_against_annotations_there(
    photos: Path, tmp_path: Path
) -> None:
    config = small(tmp_path / "work", tmp_path)
    shutil.copytree(photos, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("elsewhere", "work"))
    (photos / "instances_val.json").unlink()
    config.test_dataloader.dataset.data_root = str(tmp_path / "elsewhere")
    loop = Runner.from_cfg(
        config
    ).test_loop  # which reads the annotations twice, for its data and its evaluator
    assert loop.dataloader.dataset.ann_file == str(tmp_path / "elsewhere" / "instances_val.json")


def test_classes_in_another_order_than_in_training_are_refused(photos: Path, tmp_path: Path) -> None:
    config = small(tmp_path / "work", photos)
    config.test_dataloader.dataset.metainfo = dict(classes=CLASSES[::-1])
    file = photos / "instances_val.json"
    content = json.loads(file.read_text())
    content["categories"].reverse()
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"test_dataloader has .*: number 1 is 'hazelnut' and not 'date'"):
        Runner.from_cfg(config).test()


@pytest.mark.parametrize("loop", ["train", "val", "test"])
def test_a_pyramid_for_other_patches_is_refused_when_a_loop_starts(
    photos: Path, tmp_path: Path, loop: str
) -> None:
    config = small(tmp_path / "work", photos)
    config.model.neck.patch_size = 16
    with pytest.raises(UserError, match=r"backbone\.patch_size \(8\) and model\.neck\.patch_size \(16\)"):
        getattr(Runner.from_cfg(config), f"{loop}_loop")


def test_a_missing_data_root_is_reported_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data_root \(.*/nothing\) is not a directory; set it by --cfg-options"
    ):
        Runner.from_cfg(small(tmp_path, tmp_path / "nothing")).train()


@pytest.mark.parametrize(("key", "layers"), [("vim-tiny", 24), ("vit-tiny", 12)])
def test_the_rows_beside_the_hybrid_build_with_vims_layer_decay(key: str, layers: int) -> None:
    config = read_config(f"cascade-mask-rcnn_{key}_lsj-100e_coco")
    model = build_on_meta(config)
    assert (model.backbone.num_layers, model.backbone.out_indices) == (layers, [layers - 1])
    groups = layer_decay_groups(model, weight_decay=0.1, **config.optim_wrapper.paramwise_cfg)
    assert groups[0].lr_scale == pytest.approx(0.837 ** ((layers + 1) * 24 / layers))
