"""One arm of the study of the paper's Table 6, at its first seed: pretrained, then finetuned and evaluated.

On CIFAR-10 from a folder (``--data``); without one, on synthetic gratings of ten directions. For want of time it
pretrains on 2,000 images, where the study has 10,000, so its accuracy is not the study's.
"""

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from report import Part

import map_vision.cli
from map_core.commands.recipes import find_recipe
from map_core.study.definition import Study, read_study
from map_core.study.location import StudyLocation, command_line
from map_core.study.plan import planned_runs

STUDIES, STUDY, ARM = "map_vision.studies", "cifar10_table6", "map"
IMAGES_PER_CLASS = {"train": 200, "test": 50}  # ten classes
COMMON = {"training.tensorboard": False, "training.progress": False}
TINY = {
    "model.embed_dim": 16,
    "model.layout": "MT",
    "training.epochs": 2,
    "training.batch_size": 16,
    "data.subset": 16,
}


def write_gratings(root: Path, splits: dict[str, int]) -> None:
    """Write an image folder of noisy gratings whose direction is the class; ``splits`` has the images per class."""
    random = np.random.default_rng(0)
    rows, cols = np.mgrid[:32, :32] / 32
    for split, count in splits.items():
        for name in range(10):
            folder = root / split / f"direction_{name}"
            folder.mkdir(parents=True)
            angle = np.pi * name / 10
            for index in range(count):
                phase, pitch = random.uniform(0, 2 * np.pi), random.uniform(3, 6)
                wave = np.sin(2 * np.pi * pitch * (cols * np.cos(angle) + rows * np.sin(angle)) + phase)
                pixels = (
                    128 + 50 * wave[..., None] * random.uniform(0.5, 1, 3) + random.normal(0, 25, (32, 32, 3))
                )
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")


def single_arm(root: Path, quick: bool) -> Study:
    """The study reduced to one arm and its first seed, at the learning rates of its recipes."""
    with find_recipe(STUDIES, STUDY) as path:
        study = read_study(path, STUDIES)
    arm = next(arm for arm in study.arms if arm.name == ARM)
    assert arm.pretrain is not None
    overrides: dict[str, Any] = COMMON | {"data.root": str(root), "training.workers": 0 if quick else 4}
    overrides |= TINY if quick else {"training.precision": "bf16" if torch.cuda.is_available() else "fp32"}
    subset = {} if quick else {"data.subset": 10 * IMAGES_PER_CLASS["train"]}
    labels = 16 if quick else next(iter(study.labels))
    return replace(
        study,
        arms=(replace(arm, pretrain=arm.pretrain | overrides | subset),),
        stages=study.stages | {"finetune": study.stages["finetune"] | overrides},
        labels={labels: {}},
        learning_rates={},
        seeds=study.seeds[:1],
        measures=("finetune",),
    )


def main() -> int:
    part = Part(__doc__)
    out = part.out.with_suffix(".run")
    shutil.rmtree(out, ignore_errors=True)
    root = Path(part.data).resolve() if part.data else out / "images"
    if not part.data:
        write_gratings(root, {"train": 2, "test": 1} if part.quick else IMAGES_PER_CLASS)
    location = StudyLocation("map_vision", out, out / "results.jsonl")
    for run in planned_runs(single_arm(root, part.quick), []):
        _, _, _, *options = command_line(run, location)
        sys.argv = ["map-vision", *options]
        start = time.monotonic()
        code = map_vision.cli.main()
        if code:
            part.fail(f"map-vision {run.command} ended with {code}")
            break
        summary = json.loads((location.directory(run.key) / "summary.json").read_text())
        part.add(
            run=run.key,
            data=part.data or "drawn",
            seconds=time.monotonic() - start,
            loss=summary["loss"],
            **{"test accuracy %": summary.get("test_accuracy")},
        )
    shutil.rmtree(out, ignore_errors=True)
    return part.end()


if __name__ == "__main__":
    sys.exit(main())
