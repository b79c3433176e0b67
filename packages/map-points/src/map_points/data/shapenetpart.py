"""ShapeNetPart: objects of 16 categories whose points are labelled with 50 parts."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from map_core.errors import UserError, in_one_line
from map_points.data.clouds import FileClouds, check_cloud
from map_points.data.files import (
    BROKEN_CLOUD,
    check_names,
    looks_like,
    path_below,
    read_lines,
    read_text,
    require_listed,
    require_root,
)
from map_points.data.txt import read_txt

COLUMNS = 7  # x y z, normal, part
LARGEST_PART = 10_000  # the head has a score for every part up to the largest
CATEGORY_LIST, LISTS = "synsetoffset2category.txt", "train_test_split"
# how many parts each category of the published set has; parts are numbered consecutively in this order
PARTS_OF_SYNSET = {
    "02691156": 4, "02773838": 2, "02954340": 2, "02958343": 4, "03001627": 4, "03261776": 3,
    "03467517": 3, "03624134": 2, "03636649": 4, "03642806": 2, "03790512": 6, "03797390": 2,
    "03948459": 3, "04099429": 3, "04225987": 3, "04379243": 3,
}  # fmt: skip
# their names in the published list, in this order
CATEGORIES = (
    "Airplane", "Bag", "Cap", "Car", "Chair", "Earphone", "Guitar", "Knife", "Lamp", "Laptop", "Motorbike", "Mug",
    "Pistol", "Rocket", "Skateboard", "Table",
)  # fmt: skip
UNLABELLED = -100  # torch's cross-entropy skips this label by default
SUSPECT = 255  # the usual mark of points without a label


@dataclass(frozen=True)
class PartClouds(FileClouds):
    """Clouds whose points are labelled with parts.

    Attributes:
        parts: The part labels of each class (category).
        ignore_label: The label of points without a part, if there are any.
        left_out: Names of categories that have no clouds in any list.
    """

    parts: tuple[tuple[int, ...], ...]
    ignore_label: int | None = None
    left_out: tuple[str, ...] = ()

    def labelled(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return points (n, 3), float64, and their parts (n), int64, UNLABELLED where there is none.

        Raises:
            UserError: there are not seven columns, coordinates are not finite, or a part is not one of the category's.
        """
        columns, name = self.columns(index), self.name(index)
        points, category = check_cloud(columns, name), int(self.labels[index])
        parts = part_column(columns, name, self.ignore_label)
        wrong = ~np.isin(parts, (*self.parts[category], UNLABELLED))
        if wrong.any():
            point = int(wrong.argmax())
            reason = self._why_not(index, int(parts[point]))
            raise UserError(f"{name}: point {point} has part {parts[point]}, but {reason}")
        if (parts == UNLABELLED).all():
            raise UserError(f"{name}: every point has the ignored label {self.ignore_label}; {BROKEN_CLOUD}")
        return points, parts

    def _why_not(self, index: int, part: int) -> str:
        """Why the category of a cloud does not have a part, and what to do."""
        category = int(self.labels[index])
        name, labels = in_one_line(self.classes[category]), ", ".join(map(str, self.parts[category]))
        ignoring = "or give the label of points without a part as --data.ignore_label"
        if self.paths[index].parent.name not in PARTS_OF_SYNSET:
            return (
                f"no training file of {name} has part {part}, only {labels}; train on one that has it, correct it, "
                f"{ignoring}"
            )
        numbering = f"{name} has {labels}; parts count from 0, through all categories: correct it"
        # up to the number of parts it is another category's, or that of files that count from 1
        return numbering if part <= sum(PARTS_OF_SYNSET.values()) else f"{numbering}, {ignoring}"


def part_column(columns: np.ndarray, name: str, ignore_label: int | None) -> np.ndarray:
    """Return the last of seven columns as parts (n), int64, UNLABELLED where it is ``ignore_label``.

    Raises:
        UserError: there are not seven columns, or a part is not a whole number from 0.
    """
    if columns.ndim != 2 or columns.shape[1] != COLUMNS:
        raise UserError(f"{name} has shape {columns.shape}; expected (points, 7): x y z, normal, part")
    values = columns[:, -1]
    if ignore_label is not None:
        values = np.where(values == ignore_label, UNLABELLED, values)
    wrong = ~((values >= 0) & (values < LARGEST_PART) & (np.floor(values) == values) | (values == UNLABELLED))
    if ignore_label != UNLABELLED:
        wrong |= columns[:, -1] == UNLABELLED
    if wrong.any():
        point = int(wrong.argmax())
        raise UserError(
            f"{name}: point {point} has part {columns[point, -1]:g}; parts are whole numbers from 0 to "
            f"{LARGEST_PART - 1}: correct it, or give the label of points without a part as --data.ignore_label"
        )
    return values.astype(np.int64)


def read_shapenetpart(
    root: Path,
    split: str,
    *,
    ignore_label: int | None = None,
    parts: tuple[tuple[int, ...], ...] | None = None,
) -> PartClouds:
    """Read ``<synset>/<id>.txt`` by the lists in ``train_test_split``; y points up.

    "train" joins the lists train and val, as is usual. Categories that are not ShapeNetPart's have the parts that their
    training files hold, so that users can write their own data in this layout. Categories without clouds are left out.

    Args:
        root: The folder.
        split: train or test.
        ignore_label: The label of points without a part, if there are any.
        parts: The part labels of each category, where another split of the same folder has found them.

    Raises:
        UserError: a file cannot be used; the message names it.
    """
    require_root(root, f"the folder with {LISTS} and one folder per category", LISTS)
    names = _category_names(root)
    lists = {name: _read_list(root, name, names) for name in ("train", "val", "test")}
    files = {"train": lists["train"] + lists["val"], "test": lists["test"]}
    synsets = sorted({file.parent.name for paths in files.values() for file in paths})
    names = names or {synset: synset for synset in synsets}
    if not files[split]:
        raise UserError(f"{root / LISTS} lists no clouds for {split}")
    for name in ("train", "val") if split == "train" else ("test",):
        require_listed(lists[name], _list_file(root, name))
    if parts is None:
        parts = tuple(
            _parts(synset, [f for f in files["train"] if f.parent.name == synset], ignore_label)
            for synset in synsets
        )
    return PartClouds(
        labels=np.array([synsets.index(file.parent.name) for file in files[split]], dtype=np.int64),
        classes=check_names((names[synset] for synset in synsets), str(root / CATEGORY_LIST)),
        paths=tuple(files[split]),
        read=read_txt,
        parts=parts,
        ignore_label=ignore_label,
        left_out=tuple(name for synset, name in sorted(names.items()) if synset not in synsets),
    )


def _read_list(root: Path, split: str, names: dict[str, str] | None) -> list[Path]:
    """Read the files that ``shuffled_<split>_file_list.json`` lists; their categories must be among ``names``."""
    path = _list_file(root, split)
    text = read_text(path)
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = in_one_line(str(error)) + looks_like(path)
        raise UserError(f"{path} is not JSON ({reason}); copy or download it again") from error
    if not isinstance(items, list):
        raise UserError(f"{path} holds a {type(items).__name__}; expected a list of shape_data/<synset>/<id>")
    files = []
    for index, item in enumerate(items):
        fields = item.split("/") if isinstance(item, str) else []
        if len(fields) < 2 or not all(fields[-2:]):
            description = (
                in_one_line(repr(item)) if isinstance(item, str | int | float | None) else type(item).__name__
            )
            raise UserError(f"{path} lists {description} (item {index}); expected shape_data/<synset>/<id>")
        synset, name = fields[-2:]
        files.append(path_below(root, f"{synset}/{name}.txt", f"{path}, item {index},"))
        if names is not None and synset not in names:
            raise UserError(
                f"{path} lists clouds of {in_one_line(synset)} (item {index}), which {root / CATEGORY_LIST} does not "
                "have"
            )
    return files


def _list_file(root: Path, split: str) -> Path:
    return root / LISTS / f"shuffled_{split}_file_list.json"


def _category_names(root: Path) -> dict[str, str] | None:
    """Read names by synset from the category list; None where there is no list, and synsets serve as names."""
    path = root / CATEGORY_LIST
    if not path.exists():
        return None
    names = {}
    for number, line in read_lines(path).items():
        fields = line.split()
        if len(fields) != 2:
            raise UserError(
                f"{path}, line {number}, has the line {in_one_line(line)!r}; expected a name and a synset"
            )
        names[fields[1]] = fields[0]
    return names


def _parts(synset: str, files: list[Path], ignore_label: int | None) -> tuple[int, ...]:
    """Part labels of a category: the published ones, or all those in its training files."""
    if synset in PARTS_OF_SYNSET:
        earlier_counts = [count for other, count in PARTS_OF_SYNSET.items() if other < synset]
        return tuple(range(sum(earlier_counts), sum(earlier_counts) + PARTS_OF_SYNSET[synset]))
    labels: set[int] = set()
    for file in files:
        labels |= set(part_column(read_txt(file), str(file), ignore_label).tolist())
    labels -= {UNLABELLED}
    if not labels:
        raise UserError(f"{synset} has no labelled points in its training files; its parts cannot be known")
    if SUSPECT in labels and SUSPECT - 1 not in labels:
        raise UserError(
            f"{synset} has points of part {SUSPECT}, the usual mark of points without a part: give "
            f"--data.ignore_label {SUSPECT}, or number the parts consecutively"
        )
    return tuple(sorted(labels))
