"""Segmentation in mmseg: configs build, labels are read as published, a segmenter trains, is tested and draws."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import nn

from map_core import UserError
from map_core.study.cost import Operations
from map_core.study.definition import read_study
from map_core.study.location import StudyLocation, command_line
from map_core.study.plan import planned_runs
from map_core.study.report import page
from map_core.study.runner import run_study
from map_core.tasks.weights import save_weights
from map_dense import catalogue
from map_dense.loops import DataRootValLoop
from map_dense.measures import CONFIG, SEGMENTATION
from map_vision.domain import DOMAIN
from map_vision.factory import MODELS as VISION_MODELS
from map_vision.factory import ModelConfig, create_backbone

SMALL: dict[str, Any] = {"embed_dim": 32, "layout": "(MMMT)x1", "num_heads": 4, "img_size": 64}
CLASSES = 11
VOID = 11


@pytest.fixture(autouse=True)
def scope() -> None:
    init_default_scope("mmseg")


def read_config(name: str, **changes: Any) -> Config:
    config = Config.fromfile(catalogue.config_path(name))
    config.merge_from_dict(changes)
    return config


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Two training scenes and one validation scene in CamVid's layout: sky above road, void between."""
    root = tmp_path / "scenes"
    generator = np.random.default_rng(0)
    for split, number in (("train", 2), ("val", 1)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(number):
            pixels = generator.integers(0, 40, (72, 96, 3), dtype=np.uint8)
            pixels[:36] += 200
            labels = np.full((72, 96), 3, dtype=np.uint8)
            labels[:36], labels[34:38] = 0, VOID
            Image.fromarray(pixels).save(root / "images" / split / f"{index}.jpg")
            Image.fromarray(labels).save(root / "annotations" / split / f"{index}.png")
    return root


def small_camvid(root: Path, work_dir: Path, **changes: Any) -> dict[str, Any]:
    """Options that make the CamVid config smaller still."""
    options = {f"model.backbone.{key}": value for key, value in SMALL.items()}
    options |= {
        "data_root": str(root),
        "work_dir": str(work_dir),
        "model.data_preprocessor.size": (64, 64),
        "model.neck.embed_dim": 32,
        "model.decode_head.in_channels": [32] * 4,
        "model.decode_head.channels": 16,
        "model.auxiliary_head.in_channels": 32,
        "model.auxiliary_head.channels": 16,
        "train_dataloader.dataset.pipeline.2.scale": (96, 72),
        "train_dataloader.dataset.pipeline.3.crop_size": (64, 64),
        "train_dataloader.batch_size": 2,
        "train_cfg.max_iters": 12,
        "train_cfg.val_interval": 12,
        "optim_wrapper.optimizer.lr": 5e-3,
        "param_scheduler.0.end": 2,
        "default_hooks.checkpoint.interval": 12,
        "default_hooks.logger.interval": 1,
    }
    return options | changes


@pytest.mark.parametrize("toolbox", ["mmseg", "mmdet"])
def test_every_family_is_known_to_both_toolboxes(toolbox: str) -> None:
    with DefaultScope.overwrite_default_scope(toolbox):
        Config.fromfile(
            catalogue.config_path("upernet_hybridnet-mini_cpu_camvid")
        )  # its custom_imports register
        for kind, name in (("HybridNet", "hybridnet"), ("MambaR", "mambar"), ("MapViT", "map_vit")):
            with torch.device("meta"):
                backbone = MODELS.build(dict(type=kind, init_cfg=dict(type="Pretrained", checkpoint="run")))
            assert backbone.config.name == f"{name}_tiny_patch16_224"
            assert len(backbone.out_indices) == 4


def test_a_backbone_of_another_family_is_refused() -> None:
    read_config("upernet_hybridnet-mini_cpu_camvid")
    with pytest.raises(UserError, match=r"MambaR takes models mambar_\*; got 'hybridnet_tiny_patch16_224'"):
        MODELS.build(dict(type="MambaR", name="hybridnet_tiny_patch16_224"))


@pytest.mark.parametrize("backbone", ["HybridNet", "MambaVision"])
@pytest.mark.parametrize(
    ("init_cfg", "message"),
    [
        (dict(type="Normal"), r"must be dict\(type='Pretrained', checkpoint=PATH\); got type 'Normal'"),
        (
            dict(checkpoint="https://host/run.pth"),
            r"init_cfg\.checkpoint \(https://host/run\.pth\) is not on this machine",
        ),
        (dict(checkpoint=""), r"init_cfg\.checkpoint is ''; give a run, or leave init_cfg out"),
        (dict(type="Pretrained"), r"init_cfg\.checkpoint is None; give a run, or leave init_cfg out"),
        (dict(checkpoints="run"), r"init_cfg option 'checkpoints' is unknown; did you mean checkpoint"),
    ],
)
def test_a_wrong_init_cfg_is_refused(backbone: str, init_cfg: dict[str, Any], message: str) -> None:
    read_config("upernet_hybridnet-mini_cpu_camvid")
    with pytest.raises(UserError, match=message), torch.device("meta"):
        MODELS.build(dict(type=backbone, init_cfg=init_cfg))


def test_a_word_that_is_no_truth_value_resamples_no_patches() -> None:
    read_config("upernet_hybridnet-mini_cpu_camvid")
    init_cfg = dict(checkpoint="run", resample_patches="no")  # as --cfg-options reads it
    message = "init_cfg.resample_patches must be True or False; got 'no'"
    with pytest.raises(UserError, match=message), torch.device("meta"):
        MODELS.build(dict(type="HybridNet", init_cfg=init_cfg))


# UperNet with HybridNet-S has 67,082,156 parameters, and with Vim's 384 channels 54,919,340, if the final norm is
# counted. It is neither needed nor trained here: 384 parameters fewer.
@pytest.mark.parametrize(
    ("size", "parameters"), [("tiny", 38_028_716), ("small", 67_082_156 - 384), ("base", 167_059_244)]
)
@pytest.mark.parametrize("preset", ["vim-code-60k", "vim-paper-160k"])
def test_the_full_configs_build(size: str, parameters: int, preset: str) -> None:
    config = read_config(f"upernet_hybridnet-{size}_{preset}_ade20k-512x512")
    assert config.model.decode_head.channels == 512
    assert config.model.decode_head.num_classes == config.model.auxiliary_head.num_classes == 150
    assert (
        config.param_scheduler[-1].end
        == config.train_cfg.max_iters
        == (60_000 if "code" in preset else 160_000)
    )
    assert count(catalogue.build_model(config)) == parameters


def test_vims_head_is_as_wide_as_its_encoder_and_its_size_the_published_one() -> None:
    vim = read_config("upernet_vim-small_vim-code-60k_ade20k-512x512")
    assert vim.model.decode_head.channels == vim.model.neck.embed_dim == 384
    assert vim.model.auxiliary_head.channels == 256
    assert count(catalogue.build_model(vim)) == 45_447_980  # 46M in the paper
    vit = read_config("upernet_vit-small_vim-code-60k_ade20k-512x512")
    assert vim.model.decode_head == vit.model.decode_head
    assert count(catalogue.build_model(vit)) == 41_701_676
    hybrid = read_config(
        "upernet_hybridnet-small_vim-code-60k_ade20k-512x512", **{"model.decode_head.channels": 384}
    )
    assert count(catalogue.build_model(hybrid)) == 54_919_340 - 384  # 69M in the paper


def test_the_tiny_model_takes_an_optimizer_step_of_its_config() -> None:
    config = read_config("upernet_hybridnet-tiny_vim-code-60k_ade20k-512x512")
    config.model.neck.norm = "batch"
    config.model.backbone.drop_path_rate = 0.0  # a block that both samples leave out would not move
    config.model.decode_head.norm_cfg = config.model.auxiliary_head.norm_cfg = dict(type="BN")
    config.model.data_preprocessor.size = (64, 64)
    model = MODELS.build(config.model)
    optimizer = Runner.build_optim_wrapper(_RunnerStub(model), config.optim_wrapper)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    data = dict(inputs=list(torch.randint(0, 256, (2, 3, 64, 64)).byte()), data_samples=_labels(2, 64))
    losses = model.train_step(data, optimizer)
    assert losses["loss"].isfinite()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, start[name])] == []


class _RunnerStub:
    """The part of a runner that Runner.build_optim_wrapper reads."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


def _labels(images: int, side: int) -> list[Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(images):
        sample = SegDataSample(metainfo=dict(img_shape=(side, side), ori_shape=(side, side)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, side, side)))
        samples.append(sample)
    return samples


def test_ade20k_ignores_its_label_zero_and_has_150_classes(tmp_path: Path) -> None:
    config = read_config("upernet_hybridnet-tiny_vim-code-60k_ade20k-512x512")
    for kind in ("images", "annotations"):
        (tmp_path / kind / "validation").mkdir(parents=True)
    labels = np.repeat(np.array([0, 1, 150], dtype=np.uint8), 12).reshape(1, 36).repeat(24, 0)
    Image.fromarray(np.zeros((24, 36, 3), dtype=np.uint8)).save(
        tmp_path / "images/validation/ADE_val_00000001.jpg"
    )
    Image.fromarray(labels).save(tmp_path / "annotations/validation/ADE_val_00000001.png")
    dataset = DATASETS.build({**config.val_dataloader.dataset, "data_root": str(tmp_path)})
    sample = dataset[0]["data_samples"]
    assert len(dataset.metainfo["classes"]) == 150
    assert sorted(sample.gt_sem_seg.data.unique().tolist()) == [0, 149, 255]
    assert sample.gt_sem_seg.data.shape == (1, 24, 36)


def test_a_segmenter_starts_from_pretraining_learns_and_its_checkpoint_scores_the_same(
    scenes: Path, tmp_path: Path
) -> None:
    model = ModelConfig("hybridnet_tiny_patch16_224", **SMALL, patch_size=16)
    encoder = create_backbone(model)
    (tmp_path / "run").mkdir()
    described = {**VISION_MODELS.describe(model), "mean": [0.5] * 3, "std": [0.25] * 3}
    save_weights(tmp_path / "run" / "model.safetensors", encoder.state_dict(), described)
    options = small_camvid(
        scenes, tmp_path / "work", **{"model.backbone.init_cfg.checkpoint": str(tmp_path / "run")}
    )
    runner = Runner.from_cfg(read_config("upernet_hybridnet-mini_cpu_camvid", **options))
    runner.build_train_loop(runner._train_loop)
    runner.call_hook("before_run")
    runner._init_model_weights()
    loaded, pretrained = runner.model.backbone.model.state_dict(), encoder.state_dict()
    assert all(torch.equal(value, pretrained[key]) for key, value in loaded.items())
    log = next((tmp_path / "work").rglob("*.log")).read_text()
    assert "1 not used: encoder.norm.weight" in log
    assert "run was trained on images that were normalised by mean [127.5,127.5,127.5]" in log

    runner = Runner.from_cfg(read_config("upernet_hybridnet-mini_cpu_camvid", **options))
    runner.train()
    losses, _ = runner.message_hub.get_scalar("train/loss").data
    assert losses[-3:].mean() < 0.8 * losses[:3].mean()
    trained = runner.message_hub.get_scalar("val/mIoU").current()
    options |= {"load_from": str(tmp_path / "work" / "iter_12.pth"), "work_dir": str(tmp_path / "again")}
    tester = Runner.from_cfg(read_config("upernet_hybridnet-mini_cpu_camvid", **options))
    assert tester.test()["mIoU"] == trained


def mim(*arguments: str) -> str:
    """Run mim as a user does and return what it printed."""
    command = [str(Path(sys.executable).parent / "mim"), *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    return text


def test_mim_trains_in_two_processes_and_the_checkpoint_paints_pictures(scenes: Path, tmp_path: Path) -> None:
    name, work = "upernet_hybridnet-mini_cpu_camvid", tmp_path / "work"
    changes = {"train_cfg.max_iters": 2, "train_cfg.val_interval": 2, "default_hooks.checkpoint.interval": 2}
    options = small_camvid(scenes, work, **changes)
    cfg_options = [f"{key}={str(value).replace(' ', '')}" for key, value in options.items()]
    config = str(catalogue.config_path(name))
    output = mim(
        "train",
        "onedl-mmsegmentation",
        config,
        "--launcher",
        "pytorch",
        "--gpus",
        "2",
        "--cfg-options",
        *cfg_options,
    )
    assert "GPU number: 2" in output
    assert "Distributed training: True" in output

    options |= {"load_from": str(work / "iter_2.pth"), "work_dir": str(tmp_path / "test")}
    options |= {"default_hooks.visualization.draw": True, "visualizer.save_dir": str(tmp_path / "painted")}
    options["visualizer.name"] = (
        "painter"  # mmengine keeps one visualizer of a name for all runners of a process
    )
    metrics = Runner.from_cfg(read_config(name, **options)).test()
    assert f"mIoU: {metrics['mIoU']:.4f}" in output
    (picture,) = (tmp_path / "painted").rglob("*.png")
    assert np.asarray(Image.open(picture)).shape == (72, 2 * 96, 3)  # the labels beside the prediction


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("upernet_vim-small_vim-code-60k_ade20k-512x512", [16] * 4),
        ("upernet_vit-small_vim-code-60k_ade20k-512x512", [16] * 4),
        ("upernet_mambavision-tiny_160k_ade20k-512x512", [4, 8, 16, 32]),
    ],
)
def test_the_rows_beside_the_hybrid_take_an_optimizer_step(name: str, strides: list[int]) -> None:
    config = read_config(name)
    config.model.backbone.drop_path_rate = 0.0
    if "window_size" in config.model.backbone:
        config.model.backbone.window_size = [
            4,
            2,
        ]  # those of the config would be padded to 64 times this image
    if config.model.neck is not None:
        config.model.neck.norm = "batch"
    config.model.decode_head.norm_cfg = config.model.auxiliary_head.norm_cfg = dict(type="BN")
    config.model.data_preprocessor.size = (64, 64)
    model = MODELS.build(config.model)
    maps = model.backbone(torch.zeros(2, 3, 64, 64))
    assert [64 // one.shape[-1] for one in maps] == strides
    optimizer = Runner.build_optim_wrapper(_RunnerStub(model), config.optim_wrapper)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    data = dict(inputs=list(torch.randint(0, 256, (2, 3, 64, 64)).byte()), data_samples=_labels(2, 64))
    assert model.train_step(data, optimizer)["loss"].isfinite()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, start[name])] == []


def test_a_study_starts_segmenters_from_weights_or_from_scratch_and_measures_them(
    scenes: Path, tmp_path: Path
) -> None:
    encoder = ModelConfig("hybridnet_tiny_patch16_224", **SMALL)
    weights = create_backbone(encoder).state_dict()
    save_weights(tmp_path / "encoder.safetensors", weights, VISION_MODELS.describe(encoder))
    name = "upernet_hybridnet-mini_cpu_camvid"
    changes = {"train_cfg.max_iters": 2, "train_cfg.val_interval": 2, "default_hooks.checkpoint.interval": 2}
    options = small_camvid(scenes, tmp_path, **changes)
    del options["work_dir"]
    settings = {key: str(value) if isinstance(value, tuple) else value for key, value in options.items()}
    definition = {
        "name": "small",
        "arms": {"map, longer": {"init": str(tmp_path / "encoder.safetensors")}, "scratch": {}},
        "segment": {"recipe": name, **settings},
        "seeds": [0],
        "measures": ["segment"],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(definition))
    study = read_study(tmp_path / "study.yaml", "map_vision.studies")
    location = StudyLocation("map_vision", tmp_path / "out", tmp_path / "results.jsonl")
    starts = {}
    for run in planned_runs(study, []):
        command_line(run, location)  # writes the config
        config = Config.fromfile(location.directory(run.key) / CONFIG)
        starts[run.arm] = config.model.backbone.get("init_cfg", {}).get("checkpoint")
    assert starts == {"map, longer": str(tmp_path / "encoder.safetensors"), "scratch": None}

    study = replace(study, arms=study.arms[:1])
    results = run_study(study, location, flops=Operations(DOMAIN), progress=False)
    assert run_study(study, location, progress=False) == results  # nothing is trained twice
    (result,) = results
    log = location.log(result.key).read_text()
    assert "1 not used: encoder.norm.weight" in log
    assert result.score > 0
    for measure, value in (("mIoU", result.score), ("aAcc", result.measures["aAcc"])):
        assert f"{measure}: {value:.4f}" in log
    assert (result.seconds > 0, result.samples) == (True, 2 * 2)
    longer = SEGMENTATION.cost({"recipe": name, **settings, "train_cfg.max_iters": 6})
    assert (longer.samples, longer.flops) == (6 * 2, pytest.approx(3 * result.flops))
    assert "segmentation, mean IoU (%)" in page(study, results, "command")


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"segment": {"data_root": "other"}}, "arm a of .* sets data_root: all arms share data"),
        ({"model": {"layout": "Mx4"}}, "arm a of .* has model, which segment would not be told"),
        ({"compute_of": "b"}, "gives finetuning its epochs, but finetune is not measured"),
    ],
)
def test_arms_that_segmentation_would_not_compare_are_refused(
    tmp_path: Path, arm: dict[str, Any], message: str
) -> None:
    definition = {
        "name": "small",
        "arms": {"a": arm, "b": {}},
        "segment": {"recipe": "upernet_hybridnet-mini_cpu_camvid"},
        "seeds": [0],
        "measures": ["segment"],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(definition))
    with pytest.raises(UserError, match=message):
        read_study(tmp_path / "study.yaml", "map_vision.studies")


def test_a_run_killed_in_its_last_validation_is_validated_when_it_resumes(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, work = "upernet_hybridnet-mini_cpu_camvid", tmp_path / "work"
    changes = {"train_cfg.max_iters": 2, "train_cfg.val_interval": 1, "default_hooks.checkpoint.interval": 1}
    options = small_camvid(scenes, work, **changes)
    work.mkdir()
    read_config(name, **options).dump(work / CONFIG)
    run = DataRootValLoop.run

    def killed_at_the_end(loop: DataRootValLoop) -> Any:
        if loop.runner.iter == 2:
            raise KeyboardInterrupt
        return run(loop)

    monkeypatch.setattr(DataRootValLoop, "run", killed_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        Runner.from_cfg(read_config(name, **options)).train()
    with pytest.raises(UserError, match="holds no evaluation after iteration 2"):
        SEGMENTATION.summary(work)
    monkeypatch.undo()
    resumed = read_config(
        name, **options, resume=True, experiment_name="again", **{"visualizer.name": "again"}
    )
    runner = Runner.from_cfg(resumed)
    runner.train()
    assert SEGMENTATION.summary(work)["mIoU"] == runner.message_hub.get_scalar("val/mIoU").current()
