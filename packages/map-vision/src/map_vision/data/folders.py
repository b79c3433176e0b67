"""Folders of images: ImageFolder trees with class subfolders, and flat or nested folders without labels."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from map_core.data.labels import EVALUATION_SPLITS
from map_core.errors import UserError, abbreviate, near_matches
from map_core.paths import expand_user
from map_vision.data.formats import ARRAYS, readable_extensions
from map_vision.data.listing import Listing, count_by_kind, images_directly_in, list_folder, subfolders
from map_vision.data.sources import FileImages


def train_folder(root: Path, split: str | None) -> Path:
    """Return the folder of the training split: ``split``, else root/train if it exists, else root itself."""
    if split is not None:
        return _named_split(root, split, "train_split")
    return root / "train" if (root / "train").is_dir() else root


def eval_folder(root: Path, split: str | None) -> Path | None:
    """Return the folder of the evaluation split: ``split``, else the first of val, validation, test."""
    if split is not None:
        return _named_split(root, split, "eval_split")
    return next((root / name for name in EVALUATION_SPLITS if (root / name).is_dir()), None)


def existing_root(root: str | None) -> Path:
    """Return ``root`` as a path, ``~`` expanded.

    Raises:
        UserError: it is not given, does not exist or is not a folder.
    """
    if root is None:
        raise UserError("source 'folder' needs the folder of the images: pass --data.root FOLDER")
    path = expand_user(root)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # a name that is too long, a parent that may not be entered
        raise UserError(f"cannot read --data.root {root} ({error.strerror}): correct it") from error
    if not exists:
        parent = next(p for p in path.absolute().parents if p.exists())
        raise UserError(f"data folder {root} does not exist ({parent} does): correct --data.root")
    if not is_folder:
        raise UserError(f"--data.root {root} is a file: give the folder that holds the images")
    return path


def _named_split(root: Path, split: str, argument: str) -> Path:
    if (root / split).is_dir():
        return root / split
    names = subfolders(root)
    hint = near_matches(split, names) if names else "it has no subfolders"
    raise UserError(f"{argument} '{split}' is not a folder in {root}: {hint}")


def read_folder(folder: Path, *, classes: Sequence[str] | None = None) -> FileImages:
    """Read a folder with one subfolder per class; ``classes`` are the expected names, if known.

    Images beside the class folders have no label: they are ignored, and counted as such.

    Raises:
        UserError: no images or class folders, a class without images, or unexpected classes.
    """
    listing = list_folder(folder)
    _require_images(folder, listing)
    names = subfolders(folder)
    class_images = [path for path in listing.images if os.sep in path]
    if not class_images:
        raise UserError(
            f"{folder} holds images but no class subfolders: labels need "
            f"{folder}{os.sep}<class>{os.sep}<image> (pretraining takes the folder as it is)"
        )
    label_of = {name: label for label, name in enumerate(names)}
    labels = np.array([label_of[path.split(os.sep, 1)[0]] for path in class_images], dtype=np.int64)
    if classes is None:
        counts = np.bincount(labels, minlength=len(names))
        _refuse_empty_classes([name for name, n in zip(names, counts, strict=True) if not n], folder, listing)
    elif list(classes) != names:
        raise UserError(_describe_difference(folder, names, classes))
    unlabelled = Counter({"images beside the class folders": len(listing.images) - len(class_images)})
    return _file_images(folder, class_images, labels, names, listing.ignored + unlabelled)


def read_unlabelled_folder(folder: Path) -> FileImages:
    """Read a flat or nested folder; subfolders are the classes if every image lies in one.

    Images beside subfolders have label -1, and the images in these the labels that :func:`read_folder` gives them.

    Raises:
        UserError: no images.
    """
    listing = list_folder(folder)
    _require_images(folder, listing)
    top_folders = [path[: max(0, path.find(os.sep))] for path in listing.images]
    names = sorted({*top_folders} - {""})
    label_of = {name: label for label, name in enumerate(names)} | {"": -1 if names else 0}
    labels = np.array([label_of[top_folder] for top_folder in top_folders], dtype=np.int64)
    classes = [] if "" in top_folders else names
    return _file_images(folder, listing.images, labels, classes, listing.ignored)


def beside_train(root: Path, folder: Path) -> Counter[str]:
    """Count the images directly in ``root``, which are not read when the training split is a folder in it."""
    return Counter(
        {f"images beside {folder.name}{os.sep}": 0 if folder == root else images_directly_in(root)}
    )


def _file_images(
    folder: Path, images: Sequence[str], labels: np.ndarray, classes: Sequence[str], ignored: Counter[str]
) -> FileImages:
    # joined as strings: for a million paths, pathlib takes longer than the disk
    prefix = str(folder / "x")[:-1]
    paths = tuple(prefix + path for path in images)
    return FileImages(labels, tuple(classes), paths, tuple(sorted((+ignored).items())))


def _require_images(folder: Path, listing: Listing) -> None:
    if not listing.images:
        search = f"looked in all subfolders for {' '.join(sorted({*readable_extensions(), *ARRAYS}))}"
        ignored = count_by_kind(listing.ignored.items())
        if listing.ignored[".tar"]:
            ignored += f"; for images in tar files, write their index: map-vision shard --index {folder}"
        raise UserError(f"no images in {folder}: {search}" + (f"; {ignored}" if ignored else ""))


def _refuse_empty_classes(empty: Sequence[str], folder: Path, listing: Listing) -> None:
    if not empty:
        return
    links = [name for name in empty if name in listing.repeated]
    reason = f" ({abbreviate(links, 5)}: linked to a folder that is listed already)" if links else ""
    raise UserError(
        f"class folders without images in {folder}: {abbreviate(empty, 5)}{reason}; fill or remove them"
    )


def _describe_difference(folder: Path, names: Sequence[str], expected: Sequence[str]) -> str:
    unknown, missing = sorted(set(names) - set(expected)), sorted(set(expected) - set(names))
    parts = [f"not among the {len(expected)} training classes: {abbreviate(unknown, 5)}"] if unknown else []
    parts += [f"without a folder here: {abbreviate(missing, 5)}"] if missing else []
    return f"the classes in {folder} differ from the training split's; {'; '.join(parts)}"
