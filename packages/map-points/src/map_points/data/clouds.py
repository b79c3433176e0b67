"""The interface of every source of clouds: labels, class names, and one cloud at a time."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from map_core.errors import UserError, abbreviate, in_one_line
from map_points.data.files import BROKEN_CLOUD, reading

SomeClouds = TypeVar("SomeClouds", bound="Clouds")
SomeFiles = TypeVar("SomeFiles", bound="FileClouds")


def check_cloud(points: np.ndarray, name: str, channels: int = 0) -> np.ndarray:
    """Return x y z and ``channels`` channels of a cloud (n, 3 + channels), float64; further columns are left out.

    Channels are chosen by the names of columns: a cloud that has some is not transposed, however few its points are.

    Raises:
        UserError: it is not such a table of numbers, or coordinates or channels are not finite.
    """
    check_layout(points.shape, name, named=channels > 0)
    if points.dtype.kind not in "fiu":
        raise UserError(f"{name} holds {points.dtype}; a cloud is (points, 3 or more columns) of numbers")
    with np.errstate(invalid="ignore"):  # NaN of every kind is reported below
        xyz = np.array(points[:, : 3 + channels], dtype=np.float64)  # a copy: the array may be read-only
    broken = ~np.isfinite(xyz).all(axis=1)
    if broken.any():
        raise UserError(
            f"{name} has NaN or infinite {'coordinates' if not channels else 'values'} at point {int(broken.argmax())} "
            f"({int(broken.sum())} of {len(xyz)} points); {BROKEN_CLOUD}"
        )
    return xyz


def check_layout(shape: tuple[int, ...], name: str, *, named: bool = False) -> None:
    """Check that a cloud's shape is (points, 3 or more columns).

    Raises:
        UserError: it is not, or is that of a transposed cloud, unless the columns were ``named``.
    """
    if len(shape) != 2 or shape[1] < 3 or shape[0] == 0:
        raise UserError(f"{name} has shape {shape}; a cloud is (points, 3 or more columns), x y z first")
    if shape[0] < shape[1] and shape[1] > 3 and not named:
        raise UserError(
            f"{name} has shape {shape}, more columns than points; a cloud is (points, 3 or more columns): "
            "transpose it"
        )


@dataclass(frozen=True)
class Clouds(ABC):
    """Clouds by index.

    Attributes:
        labels: [n], int64.
        classes: Class names; () without labels.
        split: What they are of their data, such as ``val split``; empty where the source has only one to evaluate on.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    split: str = field(default="", kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the cloud's file, and its number where a file holds several."""

    @abstractmethod
    def points(self, index: int) -> np.ndarray:
        """Return one cloud (n, 3 + channels), float64, finite.

        Raises:
            UserError: the cloud cannot be used; the message names it.
        """

    @abstractmethod
    def select(self: SomeClouds, positions: np.ndarray) -> SomeClouds:
        """Return the clouds at ``positions``; they keep their names."""

    def relabel(self: SomeClouds, labels: np.ndarray, classes: tuple[str, ...]) -> SomeClouds:
        """Return the same clouds with labels of other classes."""
        return replace(
            self, labels=check_labels(labels, classes, "new labels", count=len(self)), classes=classes
        )


@dataclass(frozen=True)
class ArrayClouds(Clouds):
    """Clouds in memory; ``source`` says where they come from, ``indices`` [n] which arrays are used (all if None)."""

    arrays: Sequence[np.ndarray] | np.ndarray
    source: str
    indices: np.ndarray | None = None

    def name(self, index: int) -> str:
        return f"{self.source}, cloud {self._locate(index)}"

    def points(self, index: int) -> np.ndarray:
        return check_cloud(self.arrays[self._locate(index)], self.name(index))

    def select(self, positions: np.ndarray) -> "ArrayClouds":
        indices = positions if self.indices is None else self.indices[positions]
        return replace(self, labels=self.labels[positions], indices=indices)

    def _locate(self, index: int) -> int:
        return index if self.indices is None else int(self.indices[index])


@dataclass(frozen=True)
class JoinedClouds(Clouds):
    """Clouds of several sources, one after the other; ``indices`` [n, 2] are source and index in it."""

    sources: tuple[Clouds, ...]
    indices: np.ndarray

    @classmethod
    def join(cls, sources: Sequence[Clouds]) -> "JoinedClouds":
        """Join sources that have the same classes."""
        first = sources[0]
        indices = [(number, index) for number, source in enumerate(sources) for index in range(len(source))]
        labels = np.concatenate([source.labels for source in sources])
        return cls(labels, first.classes, tuple(sources), np.array(indices))

    def name(self, index: int) -> str:
        source, source_index = self._locate(index)
        return source.name(source_index)

    def points(self, index: int) -> np.ndarray:
        source, source_index = self._locate(index)
        return source.points(source_index)

    def select(self, positions: np.ndarray) -> "JoinedClouds":
        return replace(self, labels=self.labels[positions], indices=self.indices[positions])

    def _locate(self, index: int) -> tuple[Clouds, int]:
        number, source_index = self.indices[index].tolist()
        return self.sources[number], source_index


@dataclass(frozen=True)
class Ignored:
    """How many files of one kind, such as ``.csv``, lie in a folder beside those that are read."""

    folder: Path
    kind: str
    count: int


def describe_ignored(clouds: Sequence[Clouds]) -> str:
    """What was left out of the folders of ``clouds``, such as ``" (ignored: 2 .csv, 1 .md)"``; empty if nothing was."""
    files = {entry for part in clouds if isinstance(part, FileClouds) for entry in part.ignored}
    counts = Counter[str]()
    for entry in files:  # a folder of which several parts are used counts once
        counts[entry.kind] += entry.count
    kinds = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f" (ignored: {abbreviate([f'{count} {kind}' for kind, count in kinds])})" if kinds else ""


@dataclass(frozen=True)
class FileClouds(Clouds):
    """Clouds in one file each.

    Attributes:
        paths: The files.
        read: Reads one.
        channels: Values beside the coordinates.
        ignored: What was left out of the folder.
        scaling: Applied to each cloud.
    """

    paths: tuple[Path, ...]
    read: Callable[[Path], np.ndarray]
    channels: int = field(default=0, kw_only=True)
    ignored: tuple[Ignored, ...] = field(default=(), kw_only=True)
    scaling: Callable[[np.ndarray], np.ndarray] | None = field(default=None, kw_only=True)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def points(self, index: int) -> np.ndarray:
        points = check_cloud(self.columns(index), self.name(index), self.channels)
        return points if self.scaling is None else self.scaling(points)

    def columns(self, index: int) -> np.ndarray:
        """Return all columns of a file.

        Raises:
            UserError: it cannot be read.
        """
        with reading(self.paths[index]):
            return self.read(self.paths[index])

    def select(self: SomeFiles, positions: np.ndarray) -> SomeFiles:
        paths = tuple(self.paths[i] for i in positions)
        return replace(self, labels=self.labels[positions], paths=paths)


def check_labels(
    labels: np.ndarray | list[Any],
    classes: tuple[str, ...],
    source: str,
    *,
    count: int,
    class_list: Path | None = None,
) -> np.ndarray:
    """Return the labels of ``count`` clouds, flat, int64; ``class_list`` is the file that lists the classes, if any.

    Raises:
        UserError: there is not one label for each cloud, or one is not a whole number or outside the class list.
    """
    labels = np.asarray(labels)
    if count == 0:
        raise UserError(f"{source} holds no clouds; copy or download it again")
    if labels.shape not in ((count,), (count, 1)):
        raise UserError(f"{source} holds {count} clouds, but labels of shape {labels.shape}; give one each")
    labels = labels.reshape(-1)
    if labels.dtype.kind not in "iuf":
        raise UserError(
            f"{source}: labels are {in_one_line(str(labels.dtype), 40)} (the first "
            f"{in_one_line(str(labels[:1].tolist()), 40)}); expected whole numbers, 0 to {len(classes) - 1}"
        )
    wrong = ~((labels >= 0) & (labels < len(classes)) & (np.floor(labels) == labels))
    if wrong.any():
        index = int(wrong.argmax())
        has, cure = "there are", "labels count from 0: is it another release?"
        if class_list:
            has, cure = f"{class_list} has", "use the class list that belongs to this data"
        raise UserError(
            f"{source}: cloud {index} has label {labels[index]}, but {has} {len(classes)} classes "
            f"(0 to {len(classes) - 1}); {cure}"
        )
    return labels.astype(np.int64)
