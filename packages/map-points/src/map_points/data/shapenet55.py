"""ShapeNet-55: clouds of 8192 points in npy files, for pretraining."""

from pathlib import Path

import numpy as np

from map_core.errors import UserError, in_one_line
from map_points.data.clouds import Clouds, FileClouds
from map_points.data.files import path_below, read_lines, require_existing
from map_points.data.npy import read_npy


def read_shapenet55(root: Path, split: str) -> Clouds:
    """Read ``shapenet_pc/<synset>-<id>.npy`` by the lists train.txt and test.txt; y points up.

    Classes are the synsets of both lists.
    """
    require_existing(root, "the folder with train.txt, test.txt and shapenet_pc")
    paths_of_split = {part: _read_list(root, root / f"{part}.txt") for part in ("train", "test")}
    if not paths_of_split[split]:
        raise UserError(f"{root / f'{split}.txt'} lists no clouds")
    synsets = sorted({_synset(path) for paths in paths_of_split.values() for path in paths})
    label_of_synset = {synset: label for label, synset in enumerate(synsets)}
    labels = np.array([label_of_synset[_synset(path)] for path in paths_of_split[split]], dtype=np.int64)
    return FileClouds(labels, tuple(synsets), tuple(paths_of_split[split]), read_npy)


def _read_list(root: Path, listing: Path) -> list[Path]:
    paths = []
    for number, name in read_lines(listing).items():
        if not name.endswith(".npy") or "-" not in name:
            raise UserError(
                f"{listing}, line {number}, has {in_one_line(name)!r}; expected <synset>-<id>.npy, as in "
                "02691156-1a2b.npy"
            )
        paths.append(path_below(root / "shapenet_pc", name, f"{listing}, line {number},"))
    return paths


def _synset(path: Path) -> str:
    return path.name.split("-")[0]
