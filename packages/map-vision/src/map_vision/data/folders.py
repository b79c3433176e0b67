"""Folders of images: ImageFolder trees with class subfolders, and flat or nested folders without labels."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from map_core.errors import UserError, near_matches

from .sources import FileImages

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp"})
EVAL_SPLITS = ("val", "validation", "test")


def find_images(folder: Path) -> list[str]:
    """Return the paths of all images below ``folder``, relative to it and sorted, hidden files left out."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(parent, folder)
        prefix = "" if relative == "." else relative + os.sep
        found += [
            prefix + name
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    return sorted(found, key=lambda path: path.split(os.sep))


def train_folder(root: Path, split: str | None) -> Path:
    """Return the folder of the training split: ``split``, else root/train if it exists, else root itself."""
    if split is not None:
        return _named_split(root, split, "train_split")
    return root / "train" if (root / "train").is_dir() else root


def eval_folder(root: Path, split: str | None) -> Path | None:
    """Return the folder of the evaluation split: ``split``, else the first of val, validation, test."""
    if split is not None:
        return _named_split(root, split, "eval_split")
    return next((root / name for name in EVAL_SPLITS if (root / name).is_dir()), None)


def existing_root(root: str | None) -> Path:
    """Return ``root`` as a path.

    Raises:
        UserError: when it is not given, does not exist or is no folder.
    """
    if root is None:
        raise UserError("source 'folder' needs the folder of the images: pass --data.root FOLDER")
    path = Path(root).expanduser()
    if not path.exists():
        parent = next(p for p in path.absolute().parents if p.exists())
        raise UserError(f"data folder {root} does not exist ({parent} does): correct --data.root")
    if not path.is_dir():
        raise UserError(f"--data.root {root} is a file: give the folder that holds the images")
    return path


def subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders directly below, hidden ones left out."""
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))


def _named_split(root: Path, split: str, argument: str) -> Path:
    if (root / split).is_dir():
        return root / split
    names = subfolders(root)
    hint = near_matches(split, names) if names else "it has no subfolders"
    raise UserError(f"{argument} '{split}' is no folder in {root}: {hint}")


def read_folder(folder: Path, *, classes: Sequence[str] | None = None) -> FileImages:
    """Read a folder with one subfolder a class; ``classes`` are the expected names, if known.

    Raises:
        UserError: without images or class folders, for a class without images, for unexpected classes.
    """
    images = _some_images(folder)
    found = subfolders(folder)
    inside = [path for path in images if os.sep in path]
    if not inside:
        raise UserError(
            f"{folder} holds images but no class subfolders: labels need "
            f"{folder}{os.sep}<class>{os.sep}<image> (pretraining takes the folder as it is)"
        )
    label_of = {name: label for label, name in enumerate(found)}
    labels = np.array([label_of[path.split(os.sep, 1)[0]] for path in inside], dtype=np.int64)
    if classes is None:
        counts = np.bincount(labels, minlength=len(found))
        if empty := [name for name, count in zip(found, counts, strict=True) if not count]:
            raise UserError(f"class folders without images in {folder}: {_some(empty)}; fill or remove them")
    elif list(classes) != found:
        raise UserError(_difference(folder, found, classes))
    return FileImages(labels, tuple(found), tuple(str(folder / path) for path in inside))


def read_unlabelled_folder(folder: Path) -> FileImages:
    """Read a flat or nested folder; subfolders serve as classes if every image lies in one.

    Raises:
        UserError: without images.
    """
    images = _some_images(folder)
    tops = [path.split(os.sep, 1)[0] if os.sep in path else "" for path in images]
    classes = [] if "" in tops else sorted(set(tops))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of.get(top, 0) for top in tops], dtype=np.int64)
    return FileImages(labels, tuple(classes), tuple(str(folder / path) for path in images))


def list_images(paths: Sequence[str | Path]) -> list[str]:
    """Expand files and folders, in the order given, to image paths; a folder's are sorted.

    Raises:
        UserError: for a path that does not exist or a folder without images.
    """
    found: list[str] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"image or folder {path} does not exist")
        found += [str(path / name) for name in _some_images(path)] if path.is_dir() else [str(path)]
    return found


def _some_images(folder: Path) -> list[str]:
    images = find_images(folder)
    if not images:
        raise UserError(f"no images in {folder}: looked in all subfolders for {' '.join(sorted(EXTENSIONS))}")
    return images


def _difference(folder: Path, found: Sequence[str], expected: Sequence[str]) -> str:
    unknown, missing = sorted(set(found) - set(expected)), sorted(set(expected) - set(found))
    parts = [f"not among the {len(expected)} training classes: {_some(unknown)}"] if unknown else []
    parts += [f"without a folder here: {_some(missing)}"] if missing else []
    return f"the classes in {folder} differ from the training split's; {'; '.join(parts)}"


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
