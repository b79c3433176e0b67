"""What every source of clouds offers: labels, class names, and one cloud at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from map_core.errors import UserError
from map_points.data.config import Axis

SomeClouds = TypeVar("SomeClouds", bound="Clouds")
SomeFiles = TypeVar("SomeFiles", bound="FileClouds")


def check_cloud(points: np.ndarray, name: str) -> np.ndarray:
    """Return the xyz of a cloud as float32; more columns (normals, colours) are left out.

    Raises:
        UserError: fewer than three columns, no points, or coordinates that are not finite.
    """
    if points.ndim != 2 or points.shape[1] < 3 or len(points) == 0 or points.dtype.kind not in "fiu":
        raise UserError(
            f"{name} has shape {points.shape} of {points.dtype}; a cloud is (points, 3 or more columns) of "
            "numbers, x y z first"
        )
    xyz = np.asarray(points[:, :3], dtype=np.float32)
    broken = ~np.isfinite(xyz).all(axis=1)
    if broken.any():
        raise UserError(
            f"{name} has NaN or infinite coordinates at point {int(broken.argmax())} "
            f"({int(broken.sum())} of {len(xyz)} points); repair or remove it"
        )
    return xyz


@dataclass(frozen=True)
class Clouds(ABC):
    """Clouds by index; ``labels`` [n] are int64; ``up_axis`` is the axis that points up in this data set."""

    labels: np.ndarray
    classes: tuple[str, ...]
    up_axis: Axis

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the cloud's file, and its number where a file holds several."""

    @abstractmethod
    def points(self, index: int) -> np.ndarray:
        """Return one cloud (n, 3), float32, finite.

        Raises:
            UserError: naming the cloud.
        """

    @abstractmethod
    def select(self: SomeClouds, positions: np.ndarray) -> SomeClouds:
        """Return the clouds at ``positions``, which keep their names."""

    def relabel(self: SomeClouds, labels: np.ndarray, classes: tuple[str, ...]) -> SomeClouds:
        """Return the same clouds under other labels of other classes."""
        return replace(self, labels=check_labels(labels, classes, "new labels"), classes=classes)


@dataclass(frozen=True)
class ArrayClouds(Clouds):
    """Clouds in memory; ``source`` says where they come from, ``places`` [n] which arrays are meant (all if None)."""

    arrays: Sequence[np.ndarray] | np.ndarray
    source: str
    places: np.ndarray | None = None

    def name(self, index: int) -> str:
        return f"{self.source}, cloud {self._place(index)}"

    def points(self, index: int) -> np.ndarray:
        return check_cloud(self.arrays[self._place(index)], self.name(index))

    def select(self, positions: np.ndarray) -> "ArrayClouds":
        places = positions if self.places is None else self.places[positions]
        return replace(self, labels=self.labels[positions], places=places)

    def _place(self, index: int) -> int:
        return index if self.places is None else int(self.places[index])


@dataclass(frozen=True)
class FileClouds(Clouds):
    """Clouds in files of their own."""

    paths: tuple[Path, ...]
    read: Callable[[Path], np.ndarray]

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def points(self, index: int) -> np.ndarray:
        return check_cloud(self.columns(index), self.name(index))

    def columns(self, index: int) -> np.ndarray:
        """Return all columns of a file.

        Raises:
            UserError: it cannot be read.
        """
        try:
            return self.read(self.paths[index])
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read {self.paths[index]} ({error}); copy it again or take it out of the list"
            ) from error

    def select(self: SomeFiles, positions: np.ndarray) -> SomeFiles:
        paths = tuple(self.paths[i] for i in positions)
        return replace(self, labels=self.labels[positions], paths=paths)


def check_labels(labels: np.ndarray, classes: tuple[str, ...], source: str) -> np.ndarray:
    """Return flat int64 labels.

    Raises:
        UserError: a label outside the class list.
    """
    labels = np.asarray(labels).astype(np.int64).reshape(-1)
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        index = int(outside.argmax())
        raise UserError(
            f"{source}: cloud {index} has label {labels[index]}, but there are {len(classes)} classes "
            f"(0 to {len(classes) - 1}); use the class list that belongs to this data"
        )
    return labels


def existing(path: Path, what: str) -> Path:
    """Return ``path``.

    Raises:
        UserError: it does not exist.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; --data.root must name {what}")
    return path
