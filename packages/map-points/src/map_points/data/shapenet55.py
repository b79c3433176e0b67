"""ShapeNet-55: clouds of 8192 points in npy files, for pretraining."""

from pathlib import Path

import numpy as np

from map_core.errors import UserError, in_one_line
from map_points.data.clouds import Clouds, FileClouds
from map_points.data.files import path_below, read_lines, require_listed, require_root
from map_points.data.npy import read_npy

LISTS, CLOUDS = "ShapeNet-55", "shapenet_pc"  # folders of ShapeNet55-34, as published


def read_shapenet55(root: Path, split: str) -> Clouds:
    """Read ``shapenet_pc/<synset>-<id>.npy`` by the lists train.txt and test.txt; y points up.

    The lists lie in ``root`` or its folder ShapeNet-55, the clouds in ``root`` or beside it. So ``root`` is the
    published ShapeNet55-34, one of the folders of lists in it, such as ShapeNet-34, or a folder of lists and clouds.
    Classes are the synsets of both lists.

    Raises:
        UserError: a list or a cloud is missing; the message names it.
    """
    what = f"ShapeNet55-34, or the folder with train.txt, test.txt and {CLOUDS}"
    require_root(root, what, "train.txt", "test.txt", LISTS, CLOUDS)
    is_published = (root / LISTS).is_dir() and not (root / "train.txt").exists()
    lists = root / LISTS if is_published else root
    beside = root.resolve().parent / CLOUDS
    clouds = beside if beside.is_dir() and not (root / CLOUDS).is_dir() else root / CLOUDS
    paths_of_split = {part: _read_list(clouds, lists / f"{part}.txt") for part in ("train", "test")}
    if not paths_of_split[split]:
        raise UserError(f"{lists / f'{split}.txt'} lists no clouds")
    require_listed(paths_of_split[split], lists / f"{split}.txt")
    synsets = sorted({_synset(path) for paths in paths_of_split.values() for path in paths})
    label_of_synset = {synset: label for label, synset in enumerate(synsets)}
    labels = np.array([label_of_synset[_synset(path)] for path in paths_of_split[split]], dtype=np.int64)
    return FileClouds(labels, tuple(synsets), tuple(paths_of_split[split]), read_npy)


def _read_list(clouds: Path, listing: Path) -> list[Path]:
    paths = []
    for number, name in read_lines(listing).items():
        if not name.endswith(".npy") or "-" not in name:
            raise UserError(
                f"{listing}, line {number}, has {in_one_line(name)!r}; expected <synset>-<id>.npy, as in "
                "02691156-1a2b.npy"
            )
        paths.append(path_below(clouds, name, f"{listing}, line {number},"))
    return paths


def _synset(path: Path) -> str:
    return path.name.split("-")[0]
