"""Folders of a user's own clouds: train, val and test with class subfolders, or any files without labels."""

from pathlib import Path

import numpy as np

from map_core.data.labels import LabelTable, read_labels
from map_core.errors import UserError
from map_points.data.cloud_files import READERS, read_cloud
from map_points.data.clouds import FileClouds
from map_points.data.files import check_names, existing, files_below

TEST_FOLDERS = ("val", "validation", "test")


def read_cloud_folder(root: Path, split: str) -> FileClouds:
    """Read the clouds of one split: ``train`` or the folder itself, or else the first of val, validation and test.

    Subfolders are classes where every cloud lies in one; else there are no classes. z points up unless
    ``data.up_axis`` says otherwise.

    Raises:
        UserError: no such folder, or no clouds in it.
    """
    _require_folder(root)
    folder = split_folder(root, split)
    paths = sorted(file for file in files_below(folder) if file.suffix.lower() in READERS)
    if not paths:
        raise UserError(f"{folder} holds no cloud files ({', '.join(READERS)})")
    tops = [path.relative_to(folder).parts for path in paths]
    classes = sorted({parts[0] for parts in tops}) if all(len(parts) > 1 for parts in tops) else []
    labels = np.array([classes.index(parts[0]) if classes else 0 for parts in tops], dtype=np.int64)
    names = check_names(classes, str(folder)) if classes else ()
    return FileClouds(labels, names, "z", tuple(paths), read_cloud)


def cloud_labels(root: Path, labels: str) -> LabelTable:
    """The CSV file that lists the clouds below a folder.

    Raises:
        UserError: no such folder or file, or a row is wrong.
    """
    _require_folder(root)
    return read_labels(labels, root, endings=sorted(READERS))


def read_labelled_clouds(root: Path, split: str, labels: str) -> FileClouds:
    """Read the clouds of one split of a CSV file: the training rows, or the first of val, validation and test.

    Raises:
        UserError: the folder, the file or a row is wrong, or no row is in that split.
    """
    table = cloud_labels(root, labels)
    rows = table.train_rows() if split == "train" else table.evaluation_rows()
    paths = tuple(table.paths[row] for row in rows.tolist())
    return FileClouds(table.labels[rows], table.classes, "z", paths, read_cloud)


def _require_folder(root: Path) -> None:
    existing(root, "the folder of the clouds")
    if not root.is_dir():
        raise UserError(f"--data.root {root} is a file: give the folder that holds the clouds")


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split.

    Raises:
        UserError: there is none to evaluate on.
    """
    if split == "train":
        return root / "train" if (root / "train").is_dir() else root
    found = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if found is None:
        raise UserError(
            f"{root} has none of the folders {', '.join(TEST_FOLDERS)} to evaluate on: add one, or set a part of the "
            "training clouds aside with --data.holdout 0.1"
        )
    return found
