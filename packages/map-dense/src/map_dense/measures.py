"""Measures that ``map-vision study`` has once this package is installed.

``segment`` trains a segmenter from a run's weights or from scratch, by mmseg's own program. In a study's file::

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
from map_core.study.measures import Cost, Settings
from map_dense import catalogue

TOOLBOX = "onedl-mmsegmentation"
CONFIG = "config.py"
WEIGHTS = "model.backbone.init_cfg.checkpoint"
COUNTED = 2  # images: BatchNorm needs more than one


class Segmentation:
    """Mean IoU of a segmenter on its config's validation images, after the last iteration.

    Settings are a packaged config's name, or a file, under ``recipe``, and what differs, by dotted names.
    """

    title = "segmentation, mean IoU (%)"
    score = "mIoU"
    shared = ("data_root", "train_dataloader", "val_", "test_", "num_classes", "env_cfg")

    def command(self, settings: Settings, *, seed: int, init: str | None, out: Path) -> list[str]:
        """What ``mim train`` starts in a process of its own, which a signal to mim would leave behind."""
        config = read(settings | {"randomness.seed": seed} | ({} if init is None else {WEIGHTS: init}))
        out.mkdir(parents=True, exist_ok=True)
        config.dump(out / CONFIG)  # --cfg-options would take a comma or space in a path for an end
        return [sys.executable, str(train_program()), str(out / CONFIG), "--work-dir", str(out), "--resume"]

    def summary(self, out: Path) -> dict[str, Any]:
        """The last evaluation, samples and seconds of training, and what ran where.

        Raises:
            UserError: nothing was evaluated.
        """
        lines = [
            json.loads(line)
            for file in sorted(out.glob("*/vis_data/scalars.json"))  # one a start
            for line in file.read_text().splitlines()
            if line.endswith("}")  # all but the last of a start that was killed
        ]
        evaluated = [line for line in lines if self.score in line]
        if not evaluated:
            raise UserError(f"{out} holds no evaluation; remove it and start again")
        # mean seconds of a step since the line before
        steps = {line["step"]: line["time"] for line in lines if "loss" in line}
        on_gpu = torch.cuda.is_available()
        gaps = zip(sorted(steps), [0, *sorted(steps)], strict=False)
        config = catalogue.read_config(out / CONFIG)
        return {
            **{key: value for key, value in evaluated[-1].items() if key != "step"},
            "samples": samples_of(config),
            "seconds": sum(steps[step] * (step - before) for step, before in gaps),
            "commit": commit(),
            "versions": versions(TOOLBOX, "onedl-mmcv"),
            "device": device_name(torch.device("cuda" if on_gpu else "cpu")),
        }

    def cost(self, settings: Settings, *, timed: bool = False) -> Cost:
        """Counted, and timed if asked to, on one step of a few images of noise."""
        config = read(settings)
        samples = samples_of(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # mmseg's, about a model that is only counted
            step = one_step(config, COUNTED)
            with FlopCounterMode(display=False, custom_mapping=ON_A_CPU) as counter:
                step()
            began = time.perf_counter()
            if timed:
                step()
        seconds = (time.perf_counter() - began) / COUNTED * samples if timed else 0.0
        return Cost(samples, counter.get_total_flops() / COUNTED * samples, seconds)


def train_program() -> Path:
    """The program of mmseg that trains.

    Raises:
        UserError: mmseg is not installed.
    """
    found = find_spec("mmseg")
    if found is None or found.origin is None:
        raise UserError("segment needs mmseg: docs/segmentation_and_detection.md says how to install it")
    return Path(found.origin).parent / ".mim" / "tools" / "train.py"


def read(settings: Settings) -> Any:
    """The config of a measure's settings, with its options."""
    options = dict(settings)
    config = catalogue.read_config(catalogue.find_config(options.pop("recipe")))
    config.merge_from_dict({key: typed(value) for key, value in options.items()})
    return config


def samples_of(config: Any) -> int:
    """Images that training reads, of one process."""
    return int(config.train_cfg.max_iters * config.train_dataloader.batch_size)


def typed(value: Any) -> Any:
    """A setting as YAML gives it; a tuple, which YAML does not have and mmcv asks for, is text: ``"(224, 224)"``."""
    if isinstance(value, str) and value.startswith("("):
        with contextlib.suppress(SyntaxError, ValueError):  # a layout, such as (MMMT)x4
            return ast.literal_eval(value)
    return value


def one_step(config: Any, count: int) -> Callable[[], None]:
    """A function that trains a config's segmenter on ``count`` images of noise, without its optimizer."""
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
