"""ShapeNet-55: clouds of 8192 points in npy files, for pretraining."""

from pathlib import Path

import numpy as np

from map_core.errors import UserError
from map_points.data.clouds import Clouds, FileClouds, existing
from map_points.data.modelnet40 import read_lines


def read_shapenet55(root: Path, split: str) -> Clouds:
    """Read ``shapenet_pc/<synset>-<id>.npy`` by the lists train.txt and test.txt; y points up.

    Classes are the synsets of both lists.
    """
    existing(root, "the folder with train.txt, test.txt and shapenet_pc")
    names = {part: read_lines(root / f"{part}.txt") for part in ("train", "test")}
    synsets = sorted({name.split("-")[0] for part in names.values() for name in part})
    if not names[split]:
        raise UserError(f"{root / f'{split}.txt'} lists no clouds")
    known = {synset: label for label, synset in enumerate(synsets)}
    return FileClouds(
        np.array([known[name.split("-")[0]] for name in names[split]], dtype=np.int64),
        tuple(synsets),
        "y",
        tuple(root / "shapenet_pc" / name for name in names[split]),
        read_npy,
    )


def read_npy(path: Path) -> np.ndarray:
    """Read an array; pickled objects are refused."""
    return np.load(path, allow_pickle=False)
