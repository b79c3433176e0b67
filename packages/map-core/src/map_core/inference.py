"""What commands that only run a model share: the device, its arithmetic, the time it takes, what is installed, and
the files and scores they leave."""

import csv
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from map_core.errors import UserError
from map_core.ops import conv_backends, linear_backends, scan_backends
from map_core.training.summary import commit, device_name, peak_memory_bytes, versions


def choose_device(name: str) -> torch.device:
    """The device that ``auto``, ``cpu`` or ``cuda`` names.

    Raises:
        UserError: an unknown name, or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu or cuda; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' asked for, but torch sees no GPU; use --evaluation.device cpu")
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocast to bf16 where ``precision`` is bf16, else to nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


class Stopwatch:
    """Wall time, speed and memory of a block, for summary.json."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> "Stopwatch":
        self.start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.seconds = time.perf_counter() - self.start

    def report(self, samples: int) -> dict[str, Any]:
        """What summary.json says of a block that ran over so many samples."""
        return {
            "seconds": self.seconds,
            "samples_per_second": samples / self.seconds,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "versions": versions(),
            "commit": commit(),
            "device": device_name(self.device),
        }


def describe_environment() -> str:
    """Versions, devices, and the implementations of each op with the reason of each refusal."""
    lines = ["versions", *(f"  {name:14} {version}" for name, version in versions().items())]
    lines += ["devices", f"  {device_name(torch.device('cpu'))}"]
    lines += [f"  cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    ops = {"selective scan": scan_backends(), "causal conv1d": conv_backends(), "linear": linear_backends()}
    for title, statuses in ops.items():
        lines.append(title)
        for status in statuses:
            lines.append(f"  {status.name:14} {status}")
    return "\n".join(lines)


def refuse_training_run(out: Path) -> None:
    """Keep an evaluation from replacing what a training run left.

    Raises:
        UserError: ``out`` is the directory of one.
    """
    if (out / "checkpoints").is_dir():
        raise UserError(
            f"{out} is a training run, whose summary.json would be replaced; choose another --out"
        )


def refuse_other_classes(found: Sequence[str], trained: Sequence[str], *, data: str, init: str) -> None:
    """Keep a classifier from being evaluated on labels that mean something else.

    Args:
        found: Classes of the data.
        trained: Classes of the classifier.
        data: What the data is called.
        init: Where the classifier is from.

    Raises:
        UserError: they differ.
    """
    if tuple(found) != tuple(trained):
        raise UserError(
            f"the classes of {data} are not those of {init}: {len(found)} classes {', '.join(found[:4])}, ... "
            f"against {len(trained)} {', '.join(trained[:4])}, ...; evaluate on data with the same classes"
        )


def write_predictions(
    out: Path,
    kind: str,
    names: Sequence[str],
    classes: Sequence[str],
    probabilities: Float[np.ndarray, "n c"],
    *,
    top: int,
) -> None:
    """Write a CSV with the most probable classes of each sample and their probabilities.

    Args:
        out: File to write.
        kind: Title of the column of names, such as "image".
        names: Of the samples.
        classes: In the order of the columns of ``probabilities``.
        probabilities: Of every sample and class.
        top: Classes a row, most probable first; all of them where there are fewer.
    """
    top = min(top, len(classes))
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([kind, *(f"{what}_{i + 1}" for i in range(top) for what in ("class", "probability"))])
        for name, row, values in zip(names, best, probabilities, strict=True):
            writer.writerow([name, *(cell for i in row for cell in (classes[i], f"{values[i]:.6f}"))])
    print(f"{len(names)} {kind}s -> {out}")


def save_arrays(out: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as NPZ, under just the name that was given."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:  # np.savez would append .npz to a path without it
        np.savez(file, **arrays)  # type: ignore[arg-type]
    print(f"{', '.join(f'{key} {value.shape}' for key, value in arrays.items())} -> {out}")


@dataclass(frozen=True)
class SplitFeatures:
    """Features, labels and names of the samples of one split."""

    features: Float[np.ndarray, "n f"]
    labels: Int[np.ndarray, " n"]
    names: Sequence[str]


def write_features(
    out: Path,
    splits: Mapping[str, SplitFeatures],
    classes: Sequence[str],
    *,
    neighbors: int,
    evaluated_on: str | None = None,
) -> None:
    """Write the features of each split as NPZ; where "train" and "test" have several classes, score them by kNN.

    The score is printed and written beside ``out`` as JSON.

    Args:
        out: NPZ to write.
        splits: By name.
        classes: In the order of the labels.
        neighbors: Of the score.
        evaluated_on: What "test" is, where it is not plain.
    """
    arrays = {"classes": np.array(classes, dtype=str)}
    for split, found in splits.items():
        arrays[f"{split}_features"], arrays[f"{split}_labels"] = found.features, found.labels
        arrays[f"{split}_names"] = np.array(found.names)
    save_arrays(out, arrays)
    if len(classes) < 2 or not {"train", "test"} <= splits.keys():
        return
    train, test = splits["train"], splits["test"]
    score = knn_accuracy(train.features, train.labels, test.features, test.labels, neighbors=neighbors)
    told = f" ({evaluated_on})" if evaluated_on else ""
    print(f"kNN accuracy ({neighbors} neighbours): {score:.2f} %{told}")
    report = {"task": "features", "knn_accuracy": score, "neighbors": neighbors}
    out.with_suffix(".json").write_text(json.dumps(report) + "\n")


def knn_accuracy(
    train_features: Float[np.ndarray, "n f"],
    train_labels: Int[np.ndarray, " n"],
    features: Float[np.ndarray, "m f"],
    labels: Int[np.ndarray, " m"],
    *,
    neighbors: int = 20,
    temperature: float = 0.07,
) -> float:
    """Accuracy in percent of cosine nearest neighbours voting with weights exp(similarity / temperature).

    Source: the protocol of instance discrimination (arXiv 1805.01978, section 3.4).
    """
    neighbors = min(neighbors, len(train_features))
    bank = F.normalize(torch.from_numpy(train_features), dim=1)
    bank_labels = torch.from_numpy(train_labels).long()
    num_classes = int(max(train_labels.max(), labels.max())) + 1
    correct = 0
    for start in range(0, len(features), 1024):
        queries = F.normalize(torch.from_numpy(features[start : start + 1024]), dim=1)
        similarity, index = (queries @ bank.T).topk(neighbors, dim=1)
        votes = F.one_hot(bank_labels[index], num_classes) * (similarity / temperature).exp().unsqueeze(-1)
        correct += int((votes.sum(1).argmax(1) == torch.from_numpy(labels[start : start + 1024])).sum())
    return 100 * correct / len(features)
