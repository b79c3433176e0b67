"""Folders of a user's own clouds: splits by folders, lists or a CSV file, or any files without labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from map_core.data.labels import LabelTable, read_labels
from map_core.errors import UserError, in_one_line
from map_points.data.cloud_files import READERS, clouds_below, file_clouds
from map_points.data.clouds import FileClouds
from map_points.data.files import check_names, path_below, read_lines, require_existing

TEST_NAMES = ("val", "validation", "test")


def read_cloud_folder(root: Path, split: str, **options: Any) -> FileClouds:
    """Read the clouds of one split: train (or the folder itself), or the first of val, validation and test.

    A split is a subfolder, or a list in the folder, such as train.txt, whose lines are paths of clouds below it.
    Subfolders are classes if every cloud lies in one; otherwise there are no classes. z points up unless
    ``data.up_axis`` says otherwise.

    Args:
        root: The folder.
        split: train or test.
        options: Channels, names of columns and scaling, see :func:`~map_points.data.cloud_files.file_clouds`.

    Raises:
        UserError: there is no such folder, or there are no clouds in it.
    """
    folder, paths = _clouds_of(root, split)
    relative_parts = [path.relative_to(folder).parts for path in paths]
    classes = [] if _strays(folder, paths) else sorted({parts[0] for parts in relative_parts})
    labels = np.array([classes.index(parts[0]) if classes else 0 for parts in relative_parts], dtype=np.int64)
    return file_clouds(paths, labels, check_names(classes, str(folder)) if classes else (), **options)


def why_no_classes(root: Path) -> str:
    """Say why the training clouds of a folder have no classes, and what to do."""
    folder, paths = _clouds_of(root, "train")
    strays = _strays(folder, paths)
    if len(strays) < len(paths):
        return (
            f"{strays[0]} lies in no class folder, as other clouds of {folder} do: move it into one, or away"
        )
    return (
        f"{root} holds clouds but no class subfolders: labels need train/<class>/<cloud> (pretraining takes the "
        "folder as it is)"
    )


def _clouds_of(root: Path, split: str) -> tuple[Path, list[Path]]:
    """The folder of a split, and its clouds."""
    _require_folder(root)
    lists = find_lists(root)
    if lists:
        return root, _paths_of(lists, split, root)
    folder = split_folder(root, split)
    return folder, clouds_below(folder)


def _strays(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """The clouds that lie in no subfolder."""
    return [path for path in paths if len(path.relative_to(folder).parts) == 1]


def find_lists(root: Path) -> dict[str, Path]:
    """The lists of a folder, by split: text files named after a split, whose first line is the path of a file below."""
    lists = {}
    for name in ("train", *TEST_NAMES):
        path = root / f"{name}.txt"
        if path.is_file():
            first = next(iter(read_lines(path).values()), "")
            if Path(first).suffix.lower() in READERS:
                lists[name] = path
    return lists if "train" in lists else {}


def has_test_split(root: Path) -> bool:
    """Whether a folder has a list or subfolder to evaluate on."""
    lists = find_lists(root)
    return any(name in lists if lists else (root / name).is_dir() for name in TEST_NAMES)


def _paths_of(lists: dict[str, Path], split: str, root: Path) -> list[Path]:
    name = "train" if split == "train" else next((name for name in TEST_NAMES if name in lists), None)
    if name is None:
        raise UserError(
            f"{root} has train.txt but none of {', '.join(f'{name}.txt' for name in TEST_NAMES)} to evaluate on: add "
            "one, or set a part of the training clouds aside with --data.holdout 0.1"
        )
    paths: dict[Path, int] = {}
    for number, line in read_lines(lists[name]).items():
        source = f"{lists[name]}, line {number},"
        path = path_below(root, line, source)
        if path.suffix.lower() not in READERS or not path.is_file():
            raise UserError(
                f"{source} names {in_one_line(line, 60)!r}, which is no cloud file in {root}; correct it"
            )
        if path in paths:
            raise UserError(
                f"{source} names {in_one_line(line, 60)!r} again, after line {paths[path]}; name every cloud once"
            )
        paths[path] = number
    return list(paths)


def cloud_labels(root: Path, labels: str) -> LabelTable:
    """Read the CSV file that lists the clouds below a folder.

    Raises:
        UserError: there is no such folder or file, or a row is wrong.
    """
    _require_folder(root)
    return read_labels(labels, root, endings=sorted(READERS))


def read_labelled_clouds(root: Path, split: str, labels: str, **options: Any) -> FileClouds:
    """Read the clouds of one split of a CSV file: the training rows, or the first of val, validation and test.

    Raises:
        UserError: the folder, the file or a row is wrong, or no row is in that split.
    """
    table = cloud_labels(root, labels)
    rows = table.train_rows() if split == "train" else table.evaluation_rows()
    paths = [table.paths[row] for row in rows.tolist()]
    return file_clouds(paths, table.labels[rows], table.classes, **options)


def _require_folder(root: Path) -> None:
    require_existing(root, "the folder of the clouds")
    if not root.is_dir():
        raise UserError(f"--data.root {root} is a file: give the folder that holds the clouds")


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split.

    Raises:
        UserError: there is none to evaluate on.
    """
    if split == "train":
        return root / "train" if (root / "train").is_dir() else root
    folder = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(
            f"{root} has none of the folders {', '.join(TEST_NAMES)} to evaluate on: add one, or set a part of the "
            "training clouds aside with --data.holdout 0.1"
        )
    return folder
