"""ModelNet40 in the layouts that people have."""

from pathlib import Path

import numpy as np

from map_core.errors import UserError
from map_points.data.clouds import ArrayClouds, Clouds, FileClouds, check_labels, existing
from map_points.data.hdf5 import read_h5
from map_points.data.pickles import read_pickle

CHARACTERS_OF_NUMBER = len("_0001")


def read_npz(root: Path, split: str) -> Clouds:
    """One npz with train_x (n, points, 3), train_y, test_x, test_y and classes; z points up."""
    file = root / "modelnet40_1024.npz" if root.is_dir() else root
    existing(file, "the npz file of ModelNet40, or its folder")
    with np.load(file) as arrays:  # object arrays are refused
        wanted = {f"{split}_x", f"{split}_y", "classes"}
        if missing := wanted - set(arrays.files):
            raise UserError(f"{file} has no {', '.join(sorted(missing))}; it holds {', '.join(arrays.files)}")
        points, labels = arrays[f"{split}_x"], arrays[f"{split}_y"]
        classes = tuple(map(str, arrays["classes"]))
    source = f"{file} ({split})"
    return ArrayClouds(check_labels(labels, classes, source), classes, "z", points, source)


def read_hdf5(root: Path, split: str) -> Clouds:
    """The hdf5_2048 release: lists of h5 files with data and label, and shape_names.txt; y points up."""
    existing(root, "the folder with train_files.txt, test_files.txt and shape_names.txt")
    classes = tuple(read_lines(root / "shape_names.txt"))
    files = [root / Path(line).name for line in read_lines(root / f"{split}_files.txt")]
    if not files:
        raise UserError(f"{root / f'{split}_files.txt'} lists no files")
    read = [read_h5(file) for file in files]
    sizes = {points.shape[1] for points, _ in read}
    if len(sizes) > 1:
        raise UserError(f"the files of {root / f'{split}_files.txt'} hold clouds of {sorted(sizes)} points")
    points = np.concatenate([points for points, _ in read])
    labels = np.concatenate([labels for _, labels in read])
    source = f"{root} ({split})"
    return ArrayClouds(check_labels(labels, classes, source), classes, "y", points, source)


def read_normal_resampled(root: Path, split: str) -> Clouds:
    """modelnet40_normal_resampled: <class>/<class>_<nnnn>.txt, six columns, with lists; y points up."""
    existing(root, "the folder modelnet40_normal_resampled")
    classes = tuple(read_lines(root / "modelnet40_shape_names.txt"))
    names = read_lines(root / f"modelnet40_{split}.txt")
    folders = [name[:-CHARACTERS_OF_NUMBER] for name in names]
    known = {name: label for label, name in enumerate(classes)}
    if unknown := sorted(set(folders) - set(known)):
        raise UserError(
            f"{root / f'modelnet40_{split}.txt'} lists clouds of {unknown[0]!r}, which "
            f"{root / 'modelnet40_shape_names.txt'} does not have"
        )
    return FileClouds(
        np.array([known[folder] for folder in folders], dtype=np.int64),
        classes,
        "y",
        tuple(root / folder / f"{name}.txt" for folder, name in zip(folders, names, strict=True)),
        read_txt,
    )


def read_dat(root: Path, split: str) -> Clouds:
    """Point-BERT's modelnet40_<split>_<points>pts_fps.dat: a pickle of [clouds, labels]; y points up."""
    existing(root, "the folder of the .dat files")
    found = sorted(root.glob(f"modelnet40_{split}_*.dat"))
    if len(found) != 1:
        raise UserError(
            f"{root} must hold one modelnet40_{split}_*.dat; found "
            f"{', '.join(file.name for file in found) or 'none'}"
        )
    content = read_pickle(found[0])
    if not (isinstance(content, list | tuple) and len(content) == 2 and len(content[0]) == len(content[1])):
        raise UserError(f"{found[0]} must hold [clouds, labels] of one length")
    names = root / "modelnet40_shape_names.txt"
    classes = tuple(read_lines(names))
    labels = np.array([int(np.asarray(label).reshape(-1)[0]) for label in content[1]], dtype=np.int64)
    clouds = [np.asarray(cloud) for cloud in content[0]]
    return ArrayClouds(check_labels(labels, classes, str(found[0])), classes, "y", clouds, str(found[0]))


def read_txt(path: Path) -> np.ndarray:
    """Read columns separated by commas or blanks."""
    with path.open() as file:
        comma = "," in file.readline()
    return np.loadtxt(path, delimiter="," if comma else None, dtype=np.float32, ndmin=2)


def read_lines(path: Path) -> list[str]:
    """Read the lines of a list that are not blank.

    Raises:
        UserError: there is no such file.
    """
    existing(path, "the folder that holds it")
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]
