"""The settings of a study's ``segment``: what would have no effect, or cannot be continued or counted, is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from map_core.errors import UserError
from map_core.study.definition import read_study
from map_dense import catalogue
from map_dense.measures import CONFIG, SEGMENTATION, config_from_settings

RECIPE = {"recipe": "upernet_hybridnet-mini_cpu_camvid"}


def test_the_packaged_study_of_segmentation_has_valid_settings() -> None:
    import map_vision

    path = Path(map_vision.__file__).parent / "studies" / "camvid_pretraining.yaml"
    study = read_study(path, "map_vision.studies")
    lengths = set()
    for arm in study.arms:
        settings = {**study.stages["segment"], **arm.stages["segment"], "init": arm.init}
        config = config_from_settings(settings)
        lengths.add((config.train_cfg.max_iters, config.param_scheduler[1].end))
        assert config.data_root == "CAMVID"
        assert config.get("init") is None
    assert lengths == {(500, 500), (1247, 1247)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"param_scheduler.7.end": 3}, r"segment of the study does not fit .* \(KeyError: .*Index 7 exceeds"),
        ({"train_cfg.max_iters.x": 3}, r"segment of the study does not fit .* \(TypeError: max_iters="),
        (
            {"trian_cfg.max_iters": 3},
            r"sets trian_cfg\.max_iters, but trian_cfg is unknown; did you mean train_cfg",
        ),
        (
            {"randomness.seed": 7},
            r"sets randomness\.seed, which the study sets for each run itself: remove it",
        ),
        (
            {"train_pipeline.2.scale": "(9, 9)"},
            r"train_pipeline\.2\.scale, which has no effect: .*set what it is copied",
        ),
        ({"test_pipeline.0.type": "X"}, r"test_pipeline\.0\.type, which has no effect"),
        ({"num_classes": 3}, r"num_classes, which has no effect: .* or model\.decode_head\.num_classes"),
        (
            {"model.backbone.init_cfg.checkpoint": "W"},
            r"init_cfg\.checkpoint \(W\) is what init of an arm sets: give the arms init instead",
        ),
        (
            {"load_from": "W.pth"},
            r"load_from \(W\.pth\) would be continued, not started from: give the arms init",
        ),
        ({"train_cfg.max_iters": "12"}, r"train_cfg\.max_iters must be a whole number of .*; got '12'"),
        ({"train_cfg.max_iters": 0}, r"train_cfg\.max_iters must be a whole number of at least 1, .*; got 0"),
        ({"train_cfg.val_begin": 501}, r"val_begin \(501\) must be at most train_cfg\.max_iters \(500\)"),
        *(
            ({key: None}, rf"{key} is None, without which segment measures nothing")
            for key in ("val_cfg", "val_dataloader", "val_evaluator")
        ),
        ({"val_evaluator.iou_metrics": ["mFscore"]}, r"val_evaluator\.iou_metrics must contain mIoU"),
        (
            {"visualizer.vis_backends": [{"type": "TensorboardVisBackend"}]},
            r"visualizer\.vis_backends must contain one of type LocalVisBackend",
        ),
        *(
            ({key: 1}, rf"segment sets {key}, which has no effect, as it only trains and validates")
            for key in (
                *("test_dataloader.batch_size", "test_evaluator.ignore_index", "test_cfg.fp16"),
                *("launcher", "data_preprocessor.size"),
            )
        ),
        (
            {"model.pretrained": "W"},
            r"model\.pretrained \(W\) would load weights beside .*: give the arms init",
        ),
        (
            {"model.init_cfg": {"type": "Pretrained", "checkpoint": "W"}},
            r"model\.init_cfg \(.*\) would load weights beside those of the arms: give the arms init",
        ),
        (
            {"model.data_preprocessor.size": None},
            r"data_preprocessor\.size must be height and width .*; got None",
        ),
        ({"default_hooks.logger.log_metric_by_epoch": True}, r"log_metric_by_epoch must be False"),
    ],
)
def test_settings_that_a_run_could_not_heed_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SEGMENTATION.check(RECIPE | settings)


def test_weights_of_otherwise_normalised_images_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.25] * 3}))
    SEGMENTATION.check(RECIPE | {"init": str(tmp_path), "model.data_preprocessor.mean": [127.5] * 3})
    (message,) = caplog.messages
    assert message.startswith(
        f"segment: {tmp_path} was trained on images that were normalised by mean [127.5,"
    )
    caplog.clear()
    std = {"model.data_preprocessor.mean": [127.5] * 3, "model.data_preprocessor.std": [63.75] * 3}
    SEGMENTATION.check(RECIPE | {"init": str(tmp_path), **std})
    assert caplog.messages == []


def test_a_recipe_that_trains_by_epochs_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"max_iters must be a whole number of .*, as segment trains by iterations; got None"
    ):
        config_from_settings({"recipe": "cascade-mask-rcnn_hybridnet-mini_cpu_coco-fruits"})


def test_settings_that_the_config_lacks_are_allowed_where_training_reads_them() -> None:
    config = config_from_settings(RECIPE | {"custom_hooks": [], "find_unused_parameters": True})
    assert (config.custom_hooks, config.find_unused_parameters) == ([], True)


def test_a_step_that_cannot_be_taken_is_one_sentence() -> None:
    settings = RECIPE | {"model.decode_head.in_channels": [7, 7, 7, 7]}
    with pytest.raises(UserError, match=r"^a step of segment cannot be counted \(RuntimeError: "):
        SEGMENTATION.cost(settings)


@pytest.mark.parametrize("key", ["model.test_cfg.mode", "model.data_preprocessor.size", "load_from"])
def test_evaluation_is_shared_by_all_arms(key: str) -> None:
    assert f"{key}.".startswith(SEGMENTATION.shared)


def test_an_earlier_evaluation_is_not_the_result(tmp_path: Path) -> None:
    config_from_settings(RECIPE | {"train_cfg.max_iters": 500}).dump(tmp_path / CONFIG)
    log = tmp_path / "20260101_000000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    lines: list[dict[str, Any]] = [
        {"loss": 1.0, "time": 0.1, "step": 400},
        {"mIoU": 10.0, "time": 0.1, "step": 400},
        {"loss": 1.0, "time": 0.1, "step": 500},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        UserError, match="holds no evaluation after iteration 500, its last; start the study again"
    ):
        SEGMENTATION.summary(tmp_path)
    lines.append({"mIoU": 20.0, "time": 0.1, "step": 500})
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert SEGMENTATION.summary(tmp_path)["mIoU"] == 20.0


def test_a_run_is_continued_with_its_own_settings_alone(tmp_path: Path) -> None:
    """Also where it is done, and only its result was removed."""
    arguments: dict[str, Any] = {"seed": 0, "init": None, "out": tmp_path / "run"}
    line = SEGMENTATION.command(RECIPE, **arguments)
    config = catalogue.read_config(tmp_path / "run" / CONFIG)
    config.merge_from_dict({"work_dir": "elsewhere", "launcher": "none", "resume": True})
    config.dump(tmp_path / "run" / CONFIG)  # as mmseg's program does
    assert SEGMENTATION.command(RECIPE, **arguments) == line
    message = r"run has begun with other settings \(optim_wrapper.optimizer.lr, train_cfg.max_iters\): put them back"
    with pytest.raises(UserError, match=message):
        SEGMENTATION.command(
            RECIPE | {"train_cfg.max_iters": 900, "optim_wrapper.optimizer.lr": 0.5}, **arguments
        )
    with pytest.raises(UserError, match=r"other settings \(model.backbone.init_cfg.checkpoint\)"):
        SEGMENTATION.command(RECIPE, **arguments | {"init": "W"})
    assert SEGMENTATION.command(RECIPE, **arguments) == line


def test_a_config_is_written_through_no_link_and_what_the_disk_refuses_is_one_sentence(
    tmp_path: Path,
) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG).symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match=r"config.py is a symbolic link, through which no study writes"):
        SEGMENTATION.command(RECIPE, seed=0, init=None, out=tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "kept"
    with pytest.raises(UserError, match=r"^cannot write .*config.py \(.+\); .*, then start the study again"):
        SEGMENTATION.command(RECIPE, seed=0, init=None, out=tmp_path / "precious" / "run")
