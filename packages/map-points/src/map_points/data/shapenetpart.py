"""ShapeNetPart: objects of 16 categories whose points are labelled with 50 parts."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from map_core.errors import UserError
from map_points.data.clouds import FileClouds, check_cloud, existing
from map_points.data.modelnet40 import read_lines, read_txt

COLUMNS = 7  # x y z, normal, part
CATEGORY_LIST = "synsetoffset2category.txt"
# how many parts each category of the published set has; parts are numbered through in this order
PARTS_OF_SYNSET = {
    "02691156": 4, "02773838": 2, "02954340": 2, "02958343": 4, "03001627": 4, "03261776": 3,
    "03467517": 3, "03624134": 2, "03636649": 4, "03642806": 2, "03790512": 6, "03797390": 2,
    "03948459": 3, "04099429": 3, "04225987": 3, "04379243": 3,
}  # fmt: skip


@dataclass(frozen=True)
class PartClouds(FileClouds):
    """Clouds whose points have parts; ``parts`` lists the part labels of each class (category)."""

    parts: tuple[tuple[int, ...], ...]

    def labelled(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return points (n, 3), float32, and their parts (n), int64.

        Raises:
            UserError: not seven columns, coordinates that are not finite, or a part that the category has not.
        """
        columns, name = self.columns(index), self.name(index)
        if columns.ndim != 2 or columns.shape[1] != COLUMNS:
            raise UserError(f"{name} has shape {columns.shape}; expected (points, 7): x y z, normal, part")
        points, parts = check_cloud(columns, name), columns[:, -1].astype(np.int64)
        category = int(self.labels[index])
        wrong = ~np.isin(parts, self.parts[category]) | (parts != columns[:, -1])
        if wrong.any():
            point = int(wrong.argmax())
            raise UserError(
                f"{name}: point {point} has part {columns[point, -1]:g}, but {self.classes[category]} has "
                f"{', '.join(map(str, self.parts[category]))}; use the list of categories that belongs to "
                "this data"
            )
        return points, parts


def read_shapenetpart(root: Path, split: str) -> PartClouds:
    """Read ``<synset>/<id>.txt`` by the lists in ``train_test_split``; y points up.

    "train" joins the lists train and val, as the field trains. Parts of categories that are not ShapeNetPart's
    are what their training files hold, so that data of one's own can be written in this layout.

    Raises:
        UserError: what is wrong with the files, by name.
    """
    existing(root, "the folder with train_test_split and one folder a category")
    lists = {part: _read_list(root, part) for part in ("train", "val", "test")}
    listed = sorted({synset for items in lists.values() for synset, _ in items})
    names = _category_names(root, listed)
    files = {
        "train": [root / synset / f"{name}.txt" for synset, name in lists["train"] + lists["val"]],
        "test": [root / synset / f"{name}.txt" for synset, name in lists["test"]],
    }
    synsets = sorted(names)
    parts = tuple(
        _parts(synset, [f for f in files["train"] if f.parent.name == synset]) for synset in synsets
    )
    if not files[split]:
        raise UserError(f"{root / 'train_test_split'} lists no clouds for {split}")
    labels = np.array([synsets.index(file.parent.name) for file in files[split]], dtype=np.int64)
    return PartClouds(
        labels, tuple(names[synset] for synset in synsets), "y", tuple(files[split]), read_txt, parts
    )


def _read_list(root: Path, part: str) -> list[tuple[str, str]]:
    """Synset and id of every cloud of ``shuffled_<part>_file_list.json``."""
    path = root / "train_test_split" / f"shuffled_{part}_file_list.json"
    existing(path, "the folder that holds train_test_split")
    try:
        items = [str(item).split("/") for item in json.loads(path.read_text())]
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); copy or download it again") from error
    for item in items:
        if len(item) < 2:
            raise UserError(f"{path} lists {'/'.join(item)!r}; expected shape_data/<synset>/<id>")
    return [(item[-2], item[-1]) for item in items]


def _category_names(root: Path, listed: list[str]) -> dict[str, str]:
    """Names by synset: those of the category list, or the synsets themselves where there is none."""
    path = root / CATEGORY_LIST
    if not path.exists():
        return {synset: synset for synset in listed}
    names = {}
    for line in read_lines(path):
        fields = line.split()
        if len(fields) != 2:
            raise UserError(f"{path} has the line {line!r}; expected a name and a synset")
        names[fields[1]] = fields[0]
    if unknown := [synset for synset in listed if synset not in names]:
        raise UserError(
            f"{root / 'train_test_split'} lists clouds of {unknown[0]}, which {path} does not have"
        )
    return names


def _parts(synset: str, files: list[Path]) -> tuple[int, ...]:
    """Part labels of a category: as published, or all that its training files hold."""
    if synset in PARTS_OF_SYNSET:
        before = [count for other, count in PARTS_OF_SYNSET.items() if other < synset]
        return tuple(range(sum(before), sum(before) + PARTS_OF_SYNSET[synset]))
    found: set[int] = set()
    for file in files:
        try:
            found |= set(read_txt(file)[:, -1].astype(np.int64).tolist())
        except (OSError, ValueError) as error:
            raise UserError(
                f"cannot read {file} ({error}); copy it again or take it out of the list"
            ) from error
    return tuple(sorted(found))
