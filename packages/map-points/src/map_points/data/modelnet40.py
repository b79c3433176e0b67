"""ModelNet40 in the layouts in use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from map_core.errors import UserError, in_one_line
from map_points.data.clouds import ArrayClouds, Clouds, FileClouds, JoinedClouds, check_labels, check_layout
from map_points.data.files import (
    check_names,
    path_below,
    read_lines,
    read_names,
    reading,
    require_existing,
    require_listed,
    require_root,
)
from map_points.data.hdf5 import read_h5
from map_points.data.npy import read_npz
from map_points.data.pickles import read_pickle
from map_points.data.txt import read_txt

# files by which the folder of a release is known, by data.source
RELEASES = {
    "hdf5": ("train_files.txt", "test_files.txt"),
    "normal_resampled": ("modelnet40_train.txt", "modelnet40_test.txt"),
    "modelnet_dat": ("modelnet40_train_*.dat", "modelnet40_test_*.dat"),
}


def read_modelnet40_npz(root: Path, split: str) -> Clouds:
    """Read one npz with train_x (n, points, 3), train_y, test_x, test_y and classes; z points up."""
    file = root / "modelnet40_1024.npz" if root.is_dir() else root
    require_existing(file, "the npz file of ModelNet40, or its folder")
    arrays = read_npz(file, (f"{split}_x", f"{split}_y", "classes"))
    points, labels, names = arrays.values()
    source = f"{file} ({split})"
    if points.ndim != 3:
        raise UserError(f"{source} has clouds of shape {points.shape}; expected (n, points, 3)")
    check_layout(points.shape[1:], source)
    if names.ndim != 1 or names.dtype.kind not in "SU":
        raise UserError(
            f"{file} has classes of {names.dtype} in shape {names.shape}; expected a list of names"
        )
    # as bytes, names of any encoding can be told apart
    texts = (name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names.tolist())
    classes = check_names(texts, f"{file} (classes)")
    return ArrayClouds(check_labels(labels, classes, source, count=len(points)), classes, points, source)


def read_hdf5(root: Path, split: str) -> Clouds:
    """Read the hdf5_2048 release: lists of h5 files with data and label, and shape_names.txt; y points up."""
    _require_release(root, "hdf5")
    names = root / "shape_names.txt"
    classes = read_names(names)
    listing = root / f"{split}_files.txt"
    sources = []
    for number, line in read_lines(listing).items():
        file = path_below(root, Path(line).name, f"{listing}, line {number},")
        points, labels = read_h5(file, root)
        labels = check_labels(labels, classes, str(file), count=len(points), class_list=names)
        sources.append(ArrayClouds(labels, classes, points, str(file)))
    if not sources:
        raise UserError(f"{listing} lists no files")
    if len(sizes := {len(source.arrays[0]) for source in sources}) > 1:
        raise UserError(f"the files of {listing} hold clouds of {sorted(sizes)} points")
    return JoinedClouds.join(sources)


def read_normal_resampled(root: Path, split: str) -> Clouds:
    """Read modelnet40_normal_resampled: <class>/<class>_<nnnn>.txt, six columns, with lists; y points up."""
    _require_release(root, "normal_resampled")
    classes = read_names(root / "modelnet40_shape_names.txt")
    label_of_class = {name: label for label, name in enumerate(classes)}
    listing = root / f"modelnet40_{split}.txt"
    labels, paths = [], []
    for number, name in read_lines(listing).items():
        folder, underscore, _ = name.rpartition("_")
        if not underscore or folder not in label_of_class:
            raise UserError(
                f"{listing}, line {number}, lists {in_one_line(name)!r}, a cloud of {in_one_line(folder)!r}, which "
                f"{root / 'modelnet40_shape_names.txt'} does not have"
            )
        labels.append(label_of_class[folder])
        paths.append(path_below(root, f"{folder}/{name}.txt", f"{listing}, line {number},"))
    if not paths:
        raise UserError(f"{listing} lists no clouds")
    require_listed(paths, listing)
    return FileClouds(np.array(labels, dtype=np.int64), classes, tuple(paths), read_txt)


def read_dat(root: Path, split: str) -> Clouds:
    """Read Point-BERT's modelnet40_<split>_<points>pts_fps.dat: a pickle of [clouds, labels]; y points up."""
    _require_release(root, "modelnet_dat")
    files = sorted(root.glob(f"modelnet40_{split}_*.dat"))
    if len(files) != 1:
        raise UserError(
            f"{root} must hold one modelnet40_{split}_*.dat; found "
            f"{', '.join(file.name for file in files) or 'none'}"
        )
    names = root / "modelnet40_shape_names.txt"
    classes = read_names(names)
    match read_pickle(files[0]):
        case list() | tuple() as content if len(content) == 2 and all(
            isinstance(c, list | tuple) for c in content
        ):
            clouds, labels = content
        case _:
            raise UserError(f"{files[0]} must hold [clouds, labels], two lists of one length")
    return pickled_clouds(clouds, labels, classes, str(files[0]), class_list=names)


def _require_release(root: Path, source: str) -> None:
    """Refuse a folder that does not hold the release of ``source``, or holds another one.

    Raises:
        UserError: saying which ``--data.source`` reads it, if any does.
    """
    with reading(root):
        held = [name for name, files in RELEASES.items() if any(any(root.glob(file)) for file in files)]
    if held and source not in held:
        raise UserError(
            f"{root} holds another release of ModelNet40 than data.source {source} reads: give --data.source "
            f"{held[0]}, or another --data.root"
        )
    require_root(root, f"the folder with {' and '.join(RELEASES[source])}", *RELEASES[source])


def pickled_clouds(
    clouds: Sequence[Any],
    labels: Sequence[Any],
    classes: tuple[str, ...],
    source: str,
    *,
    class_list: Path | None = None,
) -> ArrayClouds:
    """Clouds from a pickle's content: a list of arrays, and a list of numbers or arrays of one number; y points up.

    Raises:
        UserError: the content differs; the message has its index.
    """
    if not clouds:
        raise UserError(f"{source} holds no clouds")
    for index, cloud in enumerate(clouds):
        if not isinstance(cloud, np.ndarray):
            raise UserError(f"{source}: cloud {index} is a {type(cloud).__name__}; expected an array")
        check_layout(cloud.shape, f"{source}, cloud {index}")
    numbers = [_single_number(label, f"{source}: the label of cloud {i}") for i, label in enumerate(labels)]
    checked = check_labels(numbers, classes, source, count=len(clouds), class_list=class_list)
    return ArrayClouds(checked, classes, clouds, source)


def _single_number(value: Any, name: str) -> int | float:
    if isinstance(value, np.ndarray | np.generic) and value.size == 1 and value.dtype.kind in "iuf":
        return value.item()
    if isinstance(value, int | float):
        return value
    raise UserError(f"{name} is a {type(value).__name__}; expected one whole number")
