"""The settings of a study's ``segment``: what would have no effect, or cannot be continued or counted, is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from map_core.errors import UserError
from map_core.study.definition import read_study
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
        ({"train_cfg.max_iters": "12"}, r"train_cfg\.max_iters must be a whole number, .*; got '12'"),
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


def test_a_recipe_that_trains_by_epochs_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"max_iters must be a whole number, as segment trains by iterations; got None"
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
