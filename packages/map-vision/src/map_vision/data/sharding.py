"""Collect the files of a folder of images that shards are written from."""

import os
from functools import partial
from pathlib import Path

import numpy as np

from map_core.data.labels import EVALUATION_SPLITS, read_labels
from map_core.errors import UserError
from map_core.runs.notes import note
from map_core.shards import Files
from map_vision.data.config import DataConfig
from map_vision.data.decoding import check_file
from map_vision.data.folders import (
    eval_folder,
    existing_root,
    read_folder,
    read_unlabelled_folder,
    train_folder,
)
from map_vision.data.formats import ARRAYS, readable_extensions
from map_vision.data.image_files import RefusedImageError
from map_vision.data.listing import images_directly_in, subfolders
from map_vision.data.sources import FileImages


def files_by_split(config: DataConfig) -> dict[str, Files]:
    """All splits of a folder, by name; "" if the folder is a single set.

    Raises:
        UserError: the source is not a folder, has no images, or has evaluation splits with other classes.
    """
    config.validate()
    if config.source not in ("auto", "folder"):
        raise UserError(
            f"shards are written from a folder, not from data.source '{config.source}': leave it out"
        )
    for name in ("holdout", "subset"):
        if getattr(config, name):
            raise UserError(
                f"shards hold whole splits, of which runs take their parts: leave data.{name} out"
            )
    root = existing_root(config.root)
    return _folders(config, root) if config.labels is None else _rows(config.labels, root)


def _folders(config: DataConfig, root: Path) -> dict[str, Files]:
    folder = train_folder(root, config.train_split)
    eval_path = eval_folder(root, config.eval_split) if config.eval_split is not None else None
    held_out = (
        [root / name for name in EVALUATION_SPLITS if (root / name).is_dir()]
        if eval_path is None
        else [eval_path]
    )
    if folder == root and not held_out:
        return {"": _files(_read_whole(root), root)}
    splits: dict[str, Files] = {}
    classes: tuple[str, ...] | None = None
    if folder != root or config.train_split is not None:
        images = _read_whole(folder)
        classes = images.classes
        splits["train" if folder == root else folder.name] = _files(images, folder)
    for path in held_out:
        if path.name in splits:
            raise UserError(f"two splits are called '{path.name}': rename the folder of one of them")
        labelled = classes != () and bool(subfolders(path))
        images = read_folder(path, classes=classes) if labelled else read_unlabelled_folder(path)
        classes = classes or images.classes
        splits[path.name] = _files(images, path)
    return splits


def _read_whole(folder: Path) -> FileImages:
    """All images of a training folder, as pretraining reads them; if some have no class, none has one."""
    images = read_unlabelled_folder(folder)
    loose = images_directly_in(folder)
    if loose and not images.classes and subfolders(folder):
        note(
            f"{loose} of {len(images)} images in {folder} lie beside its subfolders, which then are not classes: for "
            "labels, move or remove them"
        )
    return images


def _rows(labels: str, root: Path) -> dict[str, Files]:
    table = read_labels(labels, root, endings=sorted({*readable_extensions(), *ARRAYS}))
    names = tuple(path.relative_to(root).as_posix() for path in table.paths)
    splits = {name: table.train_rows(name) for name in dict.fromkeys(table.splits)} or {
        "": table.train_rows()
    }
    return {
        split: Files(
            tuple(names[row] for row in rows.tolist()),
            partial(read_file, tuple(table.paths[row] for row in rows.tolist())),
            np.zeros_like(table.labels[rows]) if table.unlabelled else table.labels[rows],
            () if table.unlabelled else table.classes,
        )
        for split, rows in splits.items()
    }


def _files(images: FileImages, folder: Path) -> Files:
    prefix = len(str(folder / "x")) - 1
    names = tuple(str(path)[prefix:].replace(os.sep, "/") for path in images.paths)
    labels = images.labels if images.classes else np.zeros_like(images.labels)
    return Files(names, partial(read_file, images.paths), labels, images.classes)


def read_file(paths: tuple[Path | str, ...], number: int) -> bytes:
    """The bytes of an image file.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    try:
        check_file(paths[number])
        return Path(paths[number]).read_bytes()
    except (OSError, RefusedImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read image {paths[number]} ({reason}): replace or remove it") from error
