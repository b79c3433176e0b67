"""ShapeNet-55: clouds of 8192 points in npy files, for pretraining."""

from pathlib import Path

import numpy as np

from map_core.errors import UserError, in_one_line
from map_points.data.clouds import Clouds, FileClouds
from map_points.data.files import existing, inside, read_lines
from map_points.data.npy import read_npy


def read_shapenet55(root: Path, split: str) -> Clouds:
    """Read ``shapenet_pc/<synset>-<id>.npy`` by the lists train.txt and test.txt; y points up.

    Classes are the synsets of both lists.
    """
    existing(root, "the folder with train.txt, test.txt and shapenet_pc")
    listed = {part: _read_list(root, root / f"{part}.txt") for part in ("train", "test")}
    if not listed[split]:
        raise UserError(f"{root / f'{split}.txt'} lists no clouds")
    synsets = sorted({_synset(path) for paths in listed.values() for path in paths})
    known = {synset: label for label, synset in enumerate(synsets)}
    labels = np.array([known[_synset(path)] for path in listed[split]], dtype=np.int64)
    return FileClouds(labels, tuple(synsets), tuple(listed[split]), read_npy)


def _read_list(root: Path, listing: Path) -> list[Path]:
    paths = []
    for number, name in read_lines(listing).items():
        if not name.endswith(".npy") or "-" not in name:
            raise UserError(
                f"{listing}, line {number}, has {in_one_line(name)!r}; expected <synset>-<id>.npy, as in "
                "02691156-1a2b.npy"
            )
        paths.append(inside(root / "shapenet_pc", name, f"{listing}, line {number},"))
    return paths


def _synset(path: Path) -> str:
    return path.name.split("-")[0]
