"""The runs that are attacked: images, clouds, and images in two processes, each reading files as it trains."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from programs import Running
from safetensors.numpy import load_file

TIMES = ("seconds", "samples_per_second")
TRAINING = {
    "training.batch_size": 8,
    "training.epochs": 5,
    "training.warmup_epochs": 1,
    "training.checkpoint_steps": 4,
    "training.checkpoint_epochs": 100,
    "training.evaluate_epochs": 2,
    "training.log_steps": 2,
    "training.workers": 2,
    "training.device": "cpu",
    "training.progress": False,
    "training.tensorboard": False,
}
IMAGES = {
    "data.source": "folder",
    "data.mean": [0.5],
    "data.std": [0.5],
    "model.embed_dim": 32,
    "model.layout": "MT",
}
EMA = {"training.ema_decay": 0.9}
CLOUDS = {
    "data.source": "shapenet55",
    "data.num_points": 64,
    "model.embed_dim": 16,
    "model.patch_hidden_dim": 16,
    "model.num_heads": 2,
    "model.num_patches": 8,
    "model.patch_size": 8,
    "model.layout": "MT",
    "objective.decoder_dim": 16,
    "objective.decoder_heads": 2,
    "objective.decoder_depth": 1,
    "objective.num_regions": 4,
}
MONITOR = {"monitor.samples": 12, "monitor.neighbors": 3}


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        name: Name in reports.
        command: Program, subcommand, recipe and settings.
        data: Folder of the data.
        ranks: Number of processes.
    """

    name: str
    command: tuple[str, ...]
    data: Path
    ranks: int = 1

    def start(self, out: Path, log: Path, **changes: object) -> Running:
        """Start the run in ``out``, or resume it, with the same command."""
        settings = {f"training.{name}": value for name, value in changes.items()}
        command = [*self.command, *options(settings), "--out", str(out), "--resume", "auto"]
        return Running(command, log, self.ranks)

    def files(self) -> list[Path]:
        """The files of the training samples."""
        held_out = ("val", "test")
        paths = (path for path in self.data.rglob("*") if path.suffix in (".png", ".npy"))
        return sorted(path for path in paths if not set(path.parts) & set(held_out))


def options(settings: dict[str, object]) -> list[str]:
    """Settings as command-line options."""
    return [text for name, value in settings.items() for text in (f"--{name}", json.dumps(value).strip('"'))]


def prepare_kinds(folder: Path) -> list[Kind]:
    """Write the data below ``folder`` and return the runs on them."""
    images, clouds = folder / "images", folder / "clouds"
    write_images(images)
    write_clouds(clouds)
    image_options = options({**IMAGES, "data.root": str(images), **TRAINING})
    finetune = ("map-vision", "finetune", "--config", "finetune_digits", *image_options, *options(EMA))
    pretrain = ("map-vision", "pretrain", "--config", "pretrain_digits", *image_options, *options(MONITOR))
    cloud_options = options({**CLOUDS, "data.root": str(clouds), **TRAINING})
    points = ("map-points", "pretrain", "--config", "pretrain_shapes", *cloud_options, *options(MONITOR))
    return [
        Kind("images", finetune, images),
        Kind("points", points, clouds),
        Kind("ranks", (*pretrain, *options({"training.workers": 1})), images, ranks=2),
    ]


def write_images(root: Path) -> None:
    """Gray images of three classes that differ in brightness."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for number, name in enumerate(("dark", "gray", "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 86, (8, 8), dtype=np.uint8) + 85 * number
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")


def write_clouds(root: Path) -> None:
    """Clouds of two classes, round ones and flat ones, in ShapeNet-55's layout."""
    draw = np.random.default_rng(0)
    (root / "shapenet_pc").mkdir(parents=True)
    for split, count in (("train", 24), ("test", 8)):
        names = []
        for number, synset in enumerate(("00000001", "00000002")):
            for i in range(count):
                names.append(f"{synset}-{split}{i}.npy")
                points = draw.normal(size=(64, 3)) * (1, 1, 1 - 0.9 * number)
                np.save(root / "shapenet_pc" / names[-1], points.astype(np.float32))
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")


def run_undisturbed(kind: Kind, out: Path, log: Path) -> float:
    """Run ``kind`` to its end and return its duration in seconds.

    Raises:
        AssertionError: the run failed.
    """
    start, run = time.monotonic(), kind.start(out, log)
    if not run.wait(600) or set(run.statuses.values()) != {0}:
        raise AssertionError(f"{kind.name} fails undisturbed: {log.read_text()[-2000:]}")
    return time.monotonic() - start


def find_difference(out: Path, whole: Path) -> str | None:
    """Describe how a run differs from the undisturbed one, except in times, or return None."""
    if metrics(out) != metrics(whole):
        return "metrics.jsonl differs"
    for path in sorted(path for path in files(whole) if path.suffix == ".safetensors"):
        if not (out / path).exists():
            return f"{path} is missing"
        one, other = load_file(out / path), load_file(whole / path)
        if one.keys() != other.keys() or any(one[key].tobytes() != other[key].tobytes() for key in one):
            return f"{path} differs"
    if files(out) != files(whole):
        return f"other files: {sorted(map(str, files(out) ^ files(whole)))}"
    return None


def files(out: Path) -> set[Path]:
    """The files to compare: all but older checkpoints, which a SIGTERM may have added."""
    newest = max((out / "checkpoints").glob("step_*"))
    older = set((out / "checkpoints").iterdir()) - {newest}
    return {path.relative_to(out) for path in out.rglob("*") if not older & {path, *path.parents}}


def metrics(out: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without times."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def temporary_files(out: Path) -> list[str]:
    """Temporary files and folders, which a killed run may leave but a finished one may not."""
    return [str(path) for path in out.rglob("*") if path.name.startswith(".") and os.path.lexists(path)]
