"""Folders of a user's own clouds: splits by folders, lists or a CSV file, or any files without labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from map_core.data.labels import EVALUATION_SPLITS, EVERYTHING, LabelTable, read_labels
from map_core.errors import UserError, in_one_line, near_matches
from map_points.data.cloud_files import READERS, Listing, clouds_below, file_clouds
from map_points.data.clouds import FileClouds, Ignored
from map_points.data.files import check_names, path_below, read_lines, require_existing
from map_points.data.txt import begins_like_a_cloud

# class folders beside each other that are called like this are splits
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")


def read_cloud_folder(root: Path, split: str, *, eval_split: str | None = None, **options: Any) -> FileClouds:
    """Read the clouds of one split: train (or the folder itself), or the one to evaluate on.

    A split is a subfolder, or a list in the folder, such as train.txt, whose lines are paths of clouds below it.
    Subfolders are classes if every cloud lies in one; otherwise there are no classes. z points up unless
    ``data.up_axis`` says otherwise.

    Args:
        root: The folder.
        split: train or test.
        eval_split: The split that stands for test; when None, the first of val, validation and test.
        options: Channels, names of columns and scaling, see :func:`~map_points.data.cloud_files.file_clouds`.

    Raises:
        UserError: there is no such folder or split, there are no clouds in it, or a class is called like a split.
    """
    _require_folder(root)
    lists = find_lists(root)
    name = "train" if split == "train" else _required_split(root, lists, eval_split)
    folder, listing = _clouds_of(root, lists, name)
    paths = listing.clouds
    if name == "train" and folder == root and not lists:
        _refuse_splits(root, paths)
    relative_parts = [path.relative_to(folder).parts for path in paths]
    classes = [] if _strays(folder, paths) else sorted({parts[0] for parts in relative_parts})
    labels = np.array([classes.index(parts[0]) if classes else 0 for parts in relative_parts], dtype=np.int64)
    names = check_names(classes, str(folder)) if classes else ()
    words = "the whole folder" if name == EVERYTHING else f"{name} split"
    return file_clouds(paths, labels, names, split=words, ignored=listing.ignored, **options)


def _refuse_splits(root: Path, paths: Sequence[Path]) -> None:
    """Refuse to train on a folder whose subfolders are splits: their clouds would be trained on, too.

    Raises:
        UserError: a subfolder is called like a split.
    """
    parts = [path.relative_to(root).parts for path in paths]
    folders = {first for first, *rest in parts if rest}
    if splits := sorted(name for name in folders if name.lower() in SPLIT_NAMES):
        raise UserError(
            f"{root} has no folder train, and its subfolder {splits[0]} is called like a split, not like a class: call "
            "the folder of the training clouds train (train/<class>/<cloud>), rename the class, or name one subfolder "
            "as --data.root"
        )


def why_no_classes(root: Path, split: str = "train", *, eval_split: str | None = None) -> str:
    """Say why the clouds of a split (see :func:`read_cloud_folder`) have no classes, and what to do."""
    lists = find_lists(root)
    name = "train" if split == "train" else _required_split(root, lists, eval_split)
    folder, listing = _clouds_of(root, lists, name)
    strays = _strays(folder, listing.clouds)
    if len(strays) < len(listing.clouds):
        return (
            f"{strays[0]} lies in no class folder, as other clouds of {folder} do: move it into one, or away"
        )
    return (
        f"{folder} holds clouds but no class subfolders: labels need {name}/<class>/<cloud> (pretraining takes the "
        "folder as it is)"
    )


def _clouds_of(root: Path, lists: Mapping[str, Path], name: str) -> tuple[Path, Listing]:
    """The folder of the split called ``name``, and its clouds."""
    if lists:
        return root, Listing(tuple(_listed_clouds(root, lists, name)), ())
    folder = root / name
    if name == "train" and not folder.is_dir():
        folder = root
    return folder, clouds_below(folder)


def _strays(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """The clouds that lie in no subfolder."""
    return [path for path in paths if len(path.relative_to(folder).parts) == 1]


def find_lists(root: Path) -> dict[str, Path]:
    """The lists of a folder, by split: text files named after a split, whose first line is the path of a file below.

    Raises:
        UserError: a text named after a split is neither a list nor a cloud, or the training clouds have no list.
    """
    lists = {}
    for name in ("train", *EVALUATION_SPLITS):
        path = root / f"{name}.txt"
        if not path.is_file():
            continue
        first = next(iter(read_lines(path).values()), "")
        if Path(first).suffix.lower() in READERS:
            lists[name] = path
        elif not (root / "train").is_dir() and not begins_like_a_cloud(path):
            raise UserError(
                f"{path} is neither a list nor a cloud, as its first line is {in_one_line(first, 60)!r}: every line of "
                f"a list is the path of a cloud below {root} alone, with its ending, such as chair/1.npy"
            )
    if lists and "train" not in lists and not (root / "train").is_dir():
        raise UserError(
            f"{root} has {next(iter(lists))}.txt but no train.txt: add the list of the training clouds"
        )
    return lists if "train" in lists else {}


def find_evaluation_split(root: Path, eval_split: str | None = None) -> Path | None:
    """The list or subfolder of a folder to evaluate on, if there is one.

    Raises:
        UserError: there is no such folder, or ``eval_split`` names no split of it.
    """
    _require_folder(root)
    lists = find_lists(root)
    name = _find_split(root, lists, eval_split)
    return None if name is None else lists.get(name, root / name)


def _find_split(root: Path, lists: Mapping[str, Path], eval_split: str | None) -> str | None:
    """The name of the split to evaluate on: ``eval_split``, else the first of val, validation and test, if any."""
    if eval_split is None:
        return next(
            (name for name in EVALUATION_SPLITS if (name in lists if lists else (root / name).is_dir())), None
        )
    if lists and eval_split not in lists:
        hint = near_matches(eval_split, lists)
        raise UserError(f"data.eval_split '{eval_split}' is not a list in {root}: {hint}")
    if not lists and not (root / eval_split).is_dir():
        folders = [path.name for path in root.iterdir() if path.is_dir()]
        hint = near_matches(eval_split, folders) if folders else "it has no subfolders"
        raise UserError(f"data.eval_split '{eval_split}' is not a folder in {root}: {hint}")
    return eval_split


def _required_split(root: Path, lists: Mapping[str, Path], eval_split: str | None) -> str:
    """As :func:`_find_split`, where there must be one."""
    name = _find_split(root, lists, eval_split)
    if name is None:
        missing = f"none of the folders {', '.join(EVALUATION_SPLITS)}"
        cure = "add one, name another with --data.eval_split"
        if lists:
            missing = f"train.txt but none of {', '.join(f'{name}.txt' for name in EVALUATION_SPLITS)}"
            cure = "add one"
        raise UserError(
            f"{root} has {missing} to evaluate on: {cure}, or set a part of the training clouds aside with "
            "--data.holdout 0.1"
        )
    return name


def _listed_clouds(root: Path, lists: Mapping[str, Path], name: str) -> list[Path]:
    """The clouds in the list called ``name``, after a check that none to train on is listed again.

    Lists to evaluate on, such as ``val`` and ``test``, may name the same clouds.
    """
    clouds = []
    places: dict[Path, tuple[str, str]] = {}  # the list's split, and where it stands
    for split, listing in lists.items():
        for number, line in read_lines(listing).items():
            source, shown = f"{listing}, line {number},", repr(in_one_line(line, 60))
            path = path_below(root, line, source)
            if split == name and (path.suffix.lower() not in READERS or not path.is_file()):
                raise UserError(f"{source} names {shown}, which is not a cloud file in {root}; correct it")
            if path not in places:
                places[path] = split, f"line {number} of {listing.name}"
            elif places[path][0] in (split, "train"):
                raise UserError(
                    f"{source} names {shown} again, after {places[path][1]}; name every cloud once, in one list"
                )
            if split == name:
                clouds.append(path)
    return clouds


def cloud_labels(root: Path, labels: str) -> LabelTable:
    """Read the CSV file that lists the clouds below a folder.

    Raises:
        UserError: there is no such folder or file, or a row is wrong.
    """
    _require_folder(root)
    return read_labels(labels, root, endings=sorted(READERS))


def read_labelled_clouds(
    root: Path, split: str, labels: str, *, eval_split: str | None = None, **options: Any
) -> FileClouds:
    """Read the clouds of one split of a CSV file: the training rows, or those to evaluate on.

    ``eval_split`` names the latter; when None, they are the first of val, validation and test.

    Raises:
        UserError: the folder, the file or a row is wrong, or no row is in that split.
    """
    table = cloud_labels(root, labels)
    name = "train" if split == "train" else table.evaluation_split(eval_split)
    rows = table.train_rows() if split == "train" else table.evaluation_rows(eval_split)
    paths = [table.paths[row] for row in rows.tolist()]
    words = f"all rows of {table.file.name}" if name == EVERYTHING else f"{name} split"
    count = _count_unlisted(root, table) if split == "train" else 0
    ignored = (Ignored(root, f"clouds without a row in {table.file.name}", count),) if count else ()
    return file_clouds(paths, table.labels[rows], table.classes, split=words, ignored=ignored, **options)


def _count_unlisted(root: Path, table: LabelTable) -> int:
    """How many clouds below ``root`` have no row; the table itself, which may lie there, is none."""
    try:
        unlisted = {*clouds_below(root).clouds} - {*table.paths}
    except UserError:  # a folder beside the clouds that may not be read
        return 0
    return sum(path.name != table.file.name or not path.samefile(table.file) for path in unlisted)


def _require_folder(root: Path) -> None:
    require_existing(root, "the folder of the clouds")
    if not root.is_dir():
        raise UserError(f"--data.root {root} is a file: give the folder that holds the clouds")
