"""Features of samples as files, and how well their nearest neighbours tell classes apart."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from map_core.paths import is_device
from map_core.reading import read_small
from map_core.runs.files import replacing, save_text
from map_core.runs.notes import tell_of

TASK = "features"  # marks the file of a score
QUERIES = 1024  # scored at once
BANK_ROWS = 65536  # rows that are searched for neighbours at once


def save_arrays(out: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as NPZ, under exactly the given name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # an open file, since np.savez would append .npz to a path without it
    with replacing(out) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    tell_of(out, f"{', '.join(f'{key} {value.shape}' for key, value in arrays.items())} -> {out}")


def score_file(out: Path) -> Path:
    """Where the score of features goes: beside them, as JSON."""
    return out.with_suffix(".json")


def remove_score(out: Path) -> None:
    """Remove the score of earlier features in ``out``, which would be wrong for the new ones; other JSON files stay."""
    if is_score(file := score_file(out)):
        file.unlink(missing_ok=True)


def is_score(file: Path) -> bool:
    """Whether a file is a score of features."""
    with contextlib.suppress(OSError, ValueError, RecursionError):  # there is none, or it is not JSON
        score = json.loads(read_small(file))
        return isinstance(score, dict) and score.get("task") == TASK
    return False


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
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write the features of each split as NPZ; where "train" and "test" have several classes, score them by kNN.

    The score is printed and, unless ``out`` is a device, written beside it as JSON; an older one there is removed.

    Args:
        out: NPZ to write.
        splits: By name.
        classes: In the order of the labels.
        neighbors: Number of neighbours that vote.
        evaluated_on: What "test" is, where that is not obvious.
        facts: Further entries of the score's file, such as the device.
    """
    remove_score(out)
    arrays = {"classes": np.array(classes, dtype=str)}
    for name, split in splits.items():
        arrays[f"{name}_features"], arrays[f"{name}_labels"] = split.features, split.labels
        arrays[f"{name}_names"] = np.array(split.names)
    save_arrays(out, arrays)
    if len(classes) < 2 or not {"train", "test"} <= splits.keys():
        return
    train, test = splits["train"], splits["test"]
    score = knn_accuracy(train.features, train.labels, test.features, test.labels, neighbors=neighbors)
    where = f" on {evaluated_on}" if evaluated_on else ""
    voters = min(neighbors, len(train.features))
    every = ", every training sample" if voters < neighbors else ""
    line = f"kNN accuracy ({voters} neighbours{every}): {score:.2f} %{where}"
    if is_device(out):  # beside which no file can be
        tell_of(out, line)
        return
    tell_of(out, f"{line} -> {score_file(out)}")
    report: dict[str, Any] = {"task": TASK, "knn_accuracy": score, "neighbors": voters}
    if evaluated_on is not None:
        report["evaluated_on"] = evaluated_on
    report |= facts or {}
    save_text(score_file(out), json.dumps(report) + "\n")


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
    bank_labels = torch.from_numpy(train_labels).long()
    num_classes = int(max(train_labels.max(), labels.max())) + 1
    correct = 0
    for start in range(0, len(features), QUERIES):
        queries = F.normalize(torch.from_numpy(features[start : start + QUERIES]), dim=1)
        similarity, index = nearest(queries, train_features, neighbors)
        votes = torch.zeros(len(queries), num_classes)
        votes.scatter_add_(1, bank_labels[index], (similarity / temperature).exp())
        correct += int((votes.argmax(1) == torch.from_numpy(labels[start : start + QUERIES])).sum())
    return 100 * correct / len(features)


@torch.autocast("cpu", enabled=False)  # cosines near 1 are alike in bf16
def nearest(
    queries: Float[Tensor, "q f"], bank: Float[np.ndarray, "n f"], neighbors: int
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """Cosine similarity and index of the nearest rows of ``bank``, read in parts, of normalised queries."""
    similarity = torch.empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(bank), BANK_ROWS):
        rows = F.normalize(torch.from_numpy(bank[start : start + BANK_ROWS]), dim=1)
        closest = (queries @ rows.T).topk(min(neighbors, len(rows)), dim=1)
        similarity = torch.cat([similarity, closest.values], dim=1)
        index = torch.cat([index, closest.indices + start], dim=1)
        similarity, columns = similarity.topk(min(neighbors, similarity.shape[1]), dim=1)
        index = index.gather(1, columns)
    return similarity, index
