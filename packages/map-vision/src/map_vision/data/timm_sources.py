"""Data sets by the names that timm's ``create_dataset`` reads: torch/cifar10, hfds/<owner>/<name>, ..."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import IterableDataset

from map_core.errors import UserError, near_matches
from map_core.paths import expand_user
from map_vision.data.decoding import decode, unreadable
from map_vision.data.sources import ImageSource

PREFIXES = ("torch", "hfds", "hfids", "tfds", "wds")
TRAIN_NAMES, EVAL_NAMES = ("train", "training"), ("val", "valid", "validation", "eval", "evaluation")
TWO_SPLITS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")


@dataclass(frozen=True)
class TimmImages(ImageSource):
    """A data set with random access, made by timm."""

    dataset: Any
    title: str

    def name(self, index: int) -> str:
        if hasattr(self.dataset, "filename"):
            try:
                return str(self.dataset.filename(index, absolute=True))
            except (KeyError, NotImplementedError, TypeError, AttributeError):
                pass  # readers of data without file names
        if hasattr(self.dataset, "samples"):
            return str(self.dataset.samples[index][0])
        return f"{self.title}[{index}]"

    def image(self, index: int, mode: str) -> Image.Image:
        # timm's own data set replaces unreadable images silently; its reader does not.
        items = getattr(self.dataset, "reader", self.dataset)
        try:
            image = items[index][0]
        except OSError as error:
            raise unreadable(self.name(index), error) from error
        return (
            image.convert(mode)
            if isinstance(image, Image.Image)
            else decode(image, mode, name=self.name(index))
        )


@dataclass(frozen=True)
class StreamedImages(ImageSource):
    """A data set that can only be read in order; it is read once into memory as decoded pictures."""

    images: tuple[Image.Image, ...]
    title: str

    def name(self, index: int) -> str:
        return f"{self.title}[{index}]"

    def image(self, index: int, mode: str) -> Image.Image:
        return self.images[index].convert(mode)


def read_timm(name: str, root: str | None, split: str, *, mode: str, in_memory: bool) -> ImageSource:
    """Open one split of a data set by its timm name.

    Raises:
        UserError: an unknown name, a missing package, root or split, or data that can only be read in order.
    """
    prefix, _, dataset_name = name.partition("/")
    if prefix not in PREFIXES or not dataset_name:
        names = ["auto", "digits", "folder", "torch/cifar10", "torch/image_folder"]
        prefixes = ", ".join(f"{p}/" for p in PREFIXES)
        raise UserError(
            f"data source {name!r} is unknown; {near_matches(name, names)} (names of timm begin with {prefixes})"
        )
    folder = None if root is None else str(expand_user(root))
    if prefix == "torch":
        _check_split(dataset_name.lower(), folder, split)
    try:
        dataset = create_dataset(name, root=folder, split=split, is_training=False, input_img_mode=mode)
    except ImportError as error:
        raise UserError(
            f"source '{name}' needs a package that is not installed ({error}): pip install it"
        ) from error
    except Exception as error:  # each of timm's backends raises its own
        reason = " ".join(str(error).split()) or type(error).__name__
        if "download=True" in reason:  # torchvision's advice, for which there is no option here
            call = f"timm.data.create_dataset('{name}', root='{folder}', download=True)"
            reason = f'its files are not there or damaged; fetch them once: python -c "import timm; {call}"'
        raise UserError(
            f"source '{name}', split '{split}', root {root} cannot be opened: {reason}"
        ) from error
    title = f"{name}:{split}"
    if not isinstance(dataset, IterableDataset):
        if hasattr(dataset, "loader"):  # torchvision's folders: their loader opens whatever Pillow does
            dataset.loader = partial(_load, mode=mode)
        try:
            labels = _labels(dataset)
        except UserError:  # from an image that is read for its label
            raise
        except (KeyError, ValueError, TypeError) as error:
            column = getattr(getattr(dataset, "reader", None), "label_key", "label")
            reason = " ".join(str(error).split())
            raise UserError(
                f"source '{name}', split '{split}' has no column '{column}' of whole numbers ({reason}): give its "
                "labels that name and the type ClassLabel, or write the images as a folder with a subfolder per class"
            ) from error
        classes = _classes(dataset) if _has_labels(labels) else ()
        return TimmImages(np.maximum(labels, 0), classes, dataset, title)
    if not in_memory:
        raise UserError(
            f"source '{name}' can only be read in order, and training reads at random: pass "
            "--data.cache memory to read it once into memory, or convert it to a folder (tar files need no "
            "more than an index: map-vision shard --index)"
        )
    return _read_stream(dataset, title, mode)


def _check_split(name: str, root: str | None, split: str) -> None:
    """Refuse splits for which timm would silently open another: the test split, or the whole root."""
    if name in TWO_SPLITS and split not in (*TRAIN_NAMES, *EVAL_NAMES, "test"):
        raise UserError(f"split '{split}' does not exist: torch/{name} has 'train' and 'test' only")
    if name in ("image_folder", "folder") and root is not None and os.path.isdir(root):
        aliases = next((names for names in (TRAIN_NAMES, EVAL_NAMES) if split in names), ())
        if split not in TRAIN_NAMES and not any(
            os.path.isdir(os.path.join(root, n)) for n in (split, *aliases)
        ):
            raise UserError(
                f"split '{split}' is not a folder in {root}: {near_matches(split, os.listdir(root))}"
            )


def _load(path: str, *, mode: str) -> Image.Image:
    return decode(path, mode, name=path)


def _read_stream(dataset: Iterable, title: str, mode: str) -> StreamedImages:
    images, labels = [], []
    for image, label in dataset:
        images.append(image.convert(mode))
        labels.append(int(label))
    label_array = np.array(labels, dtype=np.int64)
    classes = tuple(map(str, range(int(label_array.max(initial=-1)) + 1))) if _has_labels(label_array) else ()
    return StreamedImages(np.maximum(label_array, 0), classes, tuple(images), title)


def _has_labels(labels: np.ndarray) -> bool:
    """Whether a split has labels: they are -1 where a benchmark keeps them secret."""
    return not (labels < 0).any()


def _labels(dataset: Any) -> np.ndarray:
    """Read the labels from where torchvision or timm keeps them, without decoding images."""
    reader: Any = getattr(dataset, "reader", None)
    if hasattr(dataset, "targets"):
        labels = dataset.targets
    elif hasattr(reader, "samples"):
        labels = [target for _, target in reader.samples]
    elif hasattr(reader, "label_key"):
        labels = reader.dataset[reader.label_key]
    else:
        labels = [dataset[index][1] for index in range(len(dataset))]
    array = np.array(labels)
    array = array[:, 0] if array.ndim == 2 else array  # QMNIST: the digit, then its origin
    return array.astype(np.int64)


def _classes(dataset: Any) -> tuple[str, ...]:
    reader: Any = getattr(dataset, "reader", None)
    if hasattr(dataset, "classes"):
        return tuple(map(str, dataset.classes))
    if getattr(reader, "class_to_idx", None):
        return tuple(sorted(reader.class_to_idx, key=reader.class_to_idx.get))
    features = getattr(getattr(reader, "dataset", None), "features", None)
    if features and hasattr(features.get(reader.label_key), "names"):
        return tuple(features[reader.label_key].names)
    return tuple(map(str, range(int(_labels(dataset).max(initial=-1)) + 1)))
