"""Measures that this package adds to ``map-vision study``.

``segment`` trains a segmenter from a run's weights or from scratch, with mmseg's training script. In a study file::

    segment: {recipe: upernet_hybridnet-mini_cpu_camvid, data_root: CAMVID, train_cfg.max_iters: 500}
"""

import ast
import contextlib
import inspect
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from map_core.commands.settings import flatten
from map_core.errors import UserError, abbreviate, near_matches
from map_core.json_values import is_whole
from map_core.ops.attention.flops import ON_A_CPU
from map_core.runs.files import explaining_disk_errors, save_text
from map_core.runs.summary import commit, device_name, versions
from map_core.study.launching import refuse_link
from map_core.study.measures import Cost, StudySettings
from map_core.study.results import GO_ON
from map_dense import catalogue
from map_dense.weights import other_normalisation

log = logging.getLogger(__name__)
TOOLBOX = "onedl-mmsegmentation"
CONFIG = "config.py"
WEIGHTS = "model.backbone.init_cfg.checkpoint"
# writes scalars.json; the runner's default where there is no visualizer
LOG_BACKEND = {"type": "LocalVisBackend"}
COUNTED_IMAGES = 2  # BatchNorm needs more than one
SET_BY_STUDY = ("randomness.seed", "work_dir", "resume")
SET_BY_PROGRAM = ("work_dir", "resume", "launcher")  # in the config, which it writes again
FREE_TO_CHANGE = ("data_root", "num_workers", "persistent_workers")
# sections that a training never reads, or reads only where the model lacks them
UNUSED = ("test_dataloader", "test_evaluator", "test_cfg", "launcher", "data_preprocessor")
# what mmengine's runner reads beside its arguments
ALSO_READ = (
    *("data_root", "custom_imports", "runner_type", "model_wrapper_cfg", "find_unused_parameters"),
    *("sync_bn", "activation_checkpointing", "efficient_conv_bn_eval", "compile"),
)


class Segmentation:
    """Mean IoU of a segmenter on its config's validation images, after the last iteration.

    Settings: ``recipe`` is the name of a packaged config, or a file; the others override it, by dotted names.
    """

    title = "segmentation, mean IoU (%)"
    score = "mIoU"
    shared = (
        *("data_root", "train_dataloader", "val_", "num_classes", "env_cfg"),
        *("model.test_cfg", "model.data_preprocessor", "load_from"),
    )

    def check(self, settings: StudySettings) -> None:
        """Refuse settings as :func:`config_from_settings` does, and a machine without mmseg.

        Warns of weights that an arm names by ``init`` and that were trained on images with another normalisation.
        """
        train_program()
        preprocessor = config_from_settings(settings).model.data_preprocessor
        if (init := settings.get("init")) is not None:
            difference = other_normalisation(init, preprocessor.get("mean"), preprocessor.get("std"))
            if difference is not None:
                log.warning("segment: %s", difference)

    def command(self, settings: StudySettings, *, seed: int, init: str | None, out: Path) -> list[str]:
        """The command that ``mim train`` runs as a child process, which would survive a signal to mim.

        Raises:
            UserError: as for :func:`config_from_settings`; ``out`` has a run with other settings, or no run can be
                written there.
        """
        config = config_from_settings(settings)
        config.merge_from_dict({"randomness.seed": seed} | ({} if init is None else {WEIGHTS: init}))
        file = out / CONFIG
        refuse_link(file)
        refuse_other_run(config, file)
        with explaining_disk_errors(f"write {file}", then=GO_ON):
            out.mkdir(parents=True, exist_ok=True)
            save_text(file, config.pretty_text)  # --cfg-options would cut a path at a comma or space
        return [sys.executable, str(train_program()), str(file), "--work-dir", str(out), "--resume"]

    def summary(self, out: Path) -> dict[str, Any]:
        """The evaluation after the last iteration, samples and seconds of training, commit, versions and device.

        Raises:
            UserError: there is no such evaluation.
        """
        config = catalogue.read_config(out / CONFIG)
        last = config.train_cfg.max_iters
        lines = [
            json.loads(line)
            for file in sorted(out.glob("*/vis_data/scalars.json"))  # one per start
            for line in file.read_text().splitlines()
            if line.endswith("}")  # not the cut-off last line of a killed start
        ]
        evaluated = [line for line in lines if self.score in line and line["step"] == last]
        if not evaluated:
            raise UserError(
                f"{out} holds no evaluation after iteration {last}, its last; start the study again, which evaluates "
                "it, or remove the folder first"
            )
        # mean seconds per step since the previous line
        steps = {line["step"]: line["time"] for line in lines if "loss" in line}
        on_gpu = torch.cuda.is_available()
        gaps = zip(sorted(steps), [0, *sorted(steps)], strict=False)
        return {
            **{key: value for key, value in evaluated[-1].items() if key != "step"},
            "samples": num_samples(config),
            "seconds": sum(steps[step] * (step - previous) for step, previous in gaps),
            "commit": commit(),
            "versions": versions(TOOLBOX, "onedl-mmcv"),
            "device": device_name(torch.device("cuda" if on_gpu else "cpu")),
        }

    def cost(self, settings: StudySettings, *, timed: bool = False) -> Cost:
        """The operations, and the time if ``timed``, of one step on a few images of noise.

        Raises:
            UserError: as for :func:`config_from_settings`; a step that cannot be taken on this machine.
        """
        config = config_from_settings(settings)
        samples = num_samples(config)
        with catalogue.refusing("a step of segment cannot be counted"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # from mmseg, about a model that is never trained
            step = make_step(config, COUNTED_IMAGES)
            with FlopCounterMode(display=False, custom_mapping=ON_A_CPU) as counter:
                step()
            start = time.perf_counter()
            if timed:
                step()
        seconds = (time.perf_counter() - start) / COUNTED_IMAGES * samples if timed else 0.0
        return Cost(samples, counter.get_total_flops() / COUNTED_IMAGES * samples, seconds)


def train_program() -> Path:
    """mmseg's training script.

    Raises:
        UserError: mmseg is not installed.
    """
    spec = find_spec("mmseg")
    if spec is None or spec.origin is None:
        raise UserError("segment needs mmseg: docs/segmentation_and_detection.md says how to install it")
    return Path(spec.origin).parent / ".mim" / "tools" / "train.py"


def config_from_settings(settings: StudySettings) -> Any:
    """The config named by ``recipe``, with the other settings merged in, except for ``init``, an arm's weights.

    Raises:
        UserError: a setting that the config cannot take or training does not read, or that the study sets itself; a
            config whose runs a study could not start alike, continue, count or score.
    """
    options = {key: parse_value(value) for key, value in settings.items() if key not in ("recipe", "init")}
    config = catalogue.read_config(catalogue.find_config(settings["recipe"]))
    check_options(options, config)
    with catalogue.refusing(f"segment of the study does not fit {settings['recipe']}"):
        config.merge_from_dict(options)
        check_config(config)
    return config


def refuse_other_run(config: Any, file: Path) -> None:
    """Refuse to continue a run whose config, in ``file``, differs from ``config``; data and workers may move.

    Raises:
        UserError: naming a setting.
    """
    if not file.exists():
        return
    current, earlier = flatten(config.to_dict()), flatten(catalogue.read_config(file).to_dict())
    keys = {*current, *earlier} - {*SET_BY_PROGRAM}
    keys = {key for key in keys if key.rpartition(".")[2] not in FREE_TO_CHANGE}
    if changed := sorted(key for key in keys if current.get(key) != earlier.get(key)):
        raise UserError(
            f"{file.parent} has begun with other settings ({abbreviate(changed)}): put them back, or remove the folder"
        )


def check_options(options: StudySettings, config: Any) -> None:
    """Refuse settings that have no effect on a training by ``config``.

    Raises:
        UserError: naming the setting.
    """
    from mmengine.runner import Runner

    known = {*inspect.signature(Runner).parameters, *ALSO_READ}
    for key in options:
        section = key.partition(".")[0]
        if key in SET_BY_STUDY:
            raise UserError(f"segment sets {key}, which the study sets for each run itself: remove it")
        if section in UNUSED:
            raise UserError(
                f"segment sets {key}, which has no effect, as it only trains and validates, in one process: set "
                "val_dataloader, val_evaluator or model.data_preprocessor instead, or remove it"
            )
        if section not in known and section in config.keys():  # noqa: SIM118, a Config has no __contains__
            raise UserError(
                f"segment sets {key}, which has no effect: the config copies {section} into its data loaders and "
                "heads while it is read; set what it is copied to, such as train_dataloader.dataset.pipeline, "
                "val_dataloader.dataset.pipeline or model.decode_head.num_classes"
            )
        if section not in known:
            raise UserError(f"segment sets {key}, but {section} is unknown; {near_matches(section, known)}")


def check_config(config: Any) -> None:
    """Refuse a config whose runs a study could not start alike, continue, count or score.

    Raises:
        UserError: naming the setting.
    """
    if (file := config.get("load_from")) is not None:
        raise UserError(
            f"load_from ({file}) would be continued, not started from: give the arms init instead"
        )
    if (weights := (config.model.backbone.get("init_cfg") or {}).get("checkpoint")) is not None:
        raise UserError(f"{WEIGHTS} ({weights}) is what init of an arm sets: give the arms init instead")
    for name in ("init_cfg", "pretrained"):
        if (value := config.model.get(name)) is not None:
            raise UserError(
                f"model.{name} ({value}) would load weights beside those of the arms: give the arms init instead"
            )
    iterations = config.train_cfg.get("max_iters")
    if not (is_whole(iterations) and iterations >= 1):
        raise UserError(
            "train_cfg.max_iters must be a whole number of at least 1, as segment trains by iterations; got "
            f"{iterations!r}"
        )
    check_scores(config, iterations)
    size = (config.model.get("data_preprocessor") or {}).get("size")
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(map(is_whole, size))):
        raise UserError(
            "model.data_preprocessor.size must be height and width of the training images, such as (224, 224), by "
            f"which operations are counted; got {size!r}"
        )
    if config.get("default_hooks", {}).get("logger", {}).get("log_metric_by_epoch", True):
        raise UserError(
            "default_hooks.logger.log_metric_by_epoch must be False, so that an evaluation is logged with its iteration"
        )


def check_scores(config: Any, iterations: int) -> None:
    """Refuse a config that logs no mean IoU after the last of so many iterations.

    Raises:
        UserError: naming the setting.
    """
    for name in ("val_cfg", "val_dataloader", "val_evaluator"):
        if config.get(name) is None:
            raise UserError(f"{name} is None, without which segment measures nothing: leave it as it is")
    if (begin := config.train_cfg.get("val_begin", 1)) > iterations:
        raise UserError(
            f"train_cfg.val_begin ({begin}) must be at most train_cfg.max_iters ({iterations}), or nothing is measured "
            "after the last: lower it"
        )
    evaluators = config.val_evaluator if isinstance(config.val_evaluator, list) else [config.val_evaluator]
    if not any(Segmentation.score in evaluator.get("iou_metrics", ["mIoU"]) for evaluator in evaluators):
        raise UserError("val_evaluator.iou_metrics must contain mIoU, which segment measures: add it")
    visualizer = config.get("visualizer")
    backends = [LOG_BACKEND] if visualizer is None else visualizer.get("vis_backends") or []
    backends = backends if isinstance(backends, list) else [backends]
    if not any(str(backend.get("type")).endswith(LOG_BACKEND["type"]) for backend in backends):
        raise UserError(
            f"visualizer.vis_backends must contain one of type {LOG_BACKEND['type']}, which logs what segment "
            "measures: add it"
        )


def num_samples(config: Any) -> int:
    """Number of images that one process trains on."""
    return int(config.train_cfg.max_iters * config.train_dataloader.batch_size)


def parse_value(value: Any) -> Any:
    """Parse a setting from YAML: mmcv wants tuples, which YAML lacks, so they are written as text: ``"(224, 224)"``."""
    if isinstance(value, str) and value.startswith("("):
        with contextlib.suppress(SyntaxError, ValueError):  # a layout, such as (MMMT)x4
            return ast.literal_eval(value)
    return value


def make_step(config: Any, count: int) -> Callable[[], None]:
    """A forward and backward pass of a config's segmenter on ``count`` images of noise, as a function."""
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = revert_sync_batchnorm(MODELS.build(config.model)).train()  # as in training by one process
    height, width = config.model.data_preprocessor.size
    images, labels = torch.randn(count, 3, height, width), torch.zeros(1, height, width, dtype=torch.long)
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo={"img_shape": (height, width)})

    def step() -> None:
        losses = model.loss(images, [sample] * count)
        sum(value for name, value in losses.items() if "loss" in name).backward()

    return step


SEGMENTATION = Segmentation()
