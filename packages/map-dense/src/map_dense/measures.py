"""Measures that this package adds to ``map-vision study``.

``segment`` trains a segmenter from a run's weights or from scratch, with mmseg's training script. In a study file::

    segment: {recipe: upernet_hybridnet-mini_cpu_camvid, data_root: CAMVID, train_cfg.max_iters: 500}
"""

import ast
import contextlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from map_core.errors import UserError
from map_core.ops.attention.flops import ON_A_CPU
from map_core.runs.summary import commit, device_name, versions
from map_core.study.measures import Cost, StudySettings
from map_dense import catalogue

TOOLBOX = "onedl-mmsegmentation"
CONFIG = "config.py"
WEIGHTS = "model.backbone.init_cfg.checkpoint"
COUNTED_IMAGES = 2  # BatchNorm needs more than one


class Segmentation:
    """Mean IoU of a segmenter on its config's validation images, after the last iteration.

    Settings: ``recipe`` is the name of a packaged config, or a file; the others override it, by dotted names.
    """

    title = "segmentation, mean IoU (%)"
    score = "mIoU"
    shared = ("data_root", "train_dataloader", "val_", "test_", "num_classes", "env_cfg")

    def command(self, settings: StudySettings, *, seed: int, init: str | None, out: Path) -> list[str]:
        """The command that ``mim train`` runs as a child process, which would survive a signal to mim."""
        config = config_from_settings(
            settings | {"randomness.seed": seed} | ({} if init is None else {WEIGHTS: init})
        )
        out.mkdir(parents=True, exist_ok=True)
        config.dump(out / CONFIG)  # --cfg-options would cut a path at a comma or space
        return [sys.executable, str(train_program()), str(out / CONFIG), "--work-dir", str(out), "--resume"]

    def summary(self, out: Path) -> dict[str, Any]:
        """The last evaluation, samples and seconds of training, commit, versions and device.

        Raises:
            UserError: nothing was evaluated.
        """
        lines = [
            json.loads(line)
            for file in sorted(out.glob("*/vis_data/scalars.json"))  # one per start
            for line in file.read_text().splitlines()
            if line.endswith("}")  # not the cut-off last line of a killed start
        ]
        evaluated = [line for line in lines if self.score in line]
        if not evaluated:
            raise UserError(f"{out} holds no evaluation; remove it and start again")
        # mean seconds per step since the previous line
        steps = {line["step"]: line["time"] for line in lines if "loss" in line}
        on_gpu = torch.cuda.is_available()
        gaps = zip(sorted(steps), [0, *sorted(steps)], strict=False)
        config = catalogue.read_config(out / CONFIG)
        return {
            **{key: value for key, value in evaluated[-1].items() if key != "step"},
            "samples": num_samples(config),
            "seconds": sum(steps[step] * (step - previous) for step, previous in gaps),
            "commit": commit(),
            "versions": versions(TOOLBOX, "onedl-mmcv"),
            "device": device_name(torch.device("cuda" if on_gpu else "cpu")),
        }

    def cost(self, settings: StudySettings, *, timed: bool = False) -> Cost:
        """The operations, and the time if ``timed``, of one step on a few images of noise."""
        config = config_from_settings(settings)
        samples = num_samples(config)
        with warnings.catch_warnings():
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
    """The config named by ``recipe``, with the other settings merged in."""
    options = dict(settings)
    config = catalogue.read_config(catalogue.find_config(options.pop("recipe")))
    config.merge_from_dict({key: parse_value(value) for key, value in options.items()})
    return config


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
    from mmengine.registry import MODELS, DefaultScope
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model).train()
    height, width = config.model.data_preprocessor.size
    images, labels = torch.randn(count, 3, height, width), torch.zeros(1, height, width, dtype=torch.long)
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo={"img_shape": (height, width)})

    def step() -> None:
        losses = model.loss(images, [sample] * count)
        sum(value for name, value in losses.items() if "loss" in name).backward()

    return step


SEGMENTATION = Segmentation()
