"""Few-shot episodes: published folds of ModelNet40, and folds generated from any labelled source."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from map_core.errors import UserError, abbreviate
from map_core.paths import expand_user
from map_core.randomness import derive_seed
from map_points.data.clouds import ArrayClouds, Clouds
from map_points.data.files import require_root
from map_points.data.modelnet40 import pickled_clouds
from map_points.data.pickles import read_pickle

FOLDERS = "*way*shot"  # 5way_10shot as in Point-BERT's code, 5way10shot as in its instructions


@dataclass(frozen=True)
class FewShotEpisode:
    """One fold: clouds to train on, clouds to classify, of the same classes."""

    train: Clouds
    test: Clouds


def read_fold(root: Path, way: int, shot: int, fold: int) -> FewShotEpisode:
    """Read ``<way>way_<shot>shot/<fold>.pkl``: {'train', 'test'}, lists of (points, label, ...); y points up.

    Raises:
        UserError: the file is missing or has other content, a label is outside 0 .. way - 1, or a class has no clouds.
    """
    (path,) = find_folds(root, way, shot, [fold])
    content = read_pickle(path)
    if not (isinstance(content, dict) and {"train", "test"} <= set(content)):
        raise UserError(f"{path} must hold a dict with train and test; is it another file?")
    classes = tuple(str(i) for i in range(way))
    return FewShotEpisode(
        *(_fold_clouds(content[split], classes, f"{path} ({split})") for split in ("train", "test"))
    )


def find_folds(root: Path, way: int, shot: int, folds: Iterable[int]) -> list[Path]:
    """Return the files of published folds, below ``<way>way_<shot>shot`` or ``<way>way<shot>shot``.

    Raises:
        UserError: ``root`` has no such folder, or a fold is missing.
    """
    root = expand_user(str(root))
    require_root(root, "the folder that holds 5way_10shot and the like", FOLDERS)
    names = (f"{way}way_{shot}shot", f"{way}way{shot}shot")
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        held = sorted(path.name for path in root.glob(FOLDERS))
        raise UserError(
            f"{root} holds {abbreviate(held)}, but not {names[0]}; choose --fewshot.way and --fewshot.shot among these"
        )
    paths = [folder / f"{fold}.pkl" for fold in folds]
    if missing := [path.name for path in paths if not path.exists()]:
        raise UserError(
            f"{folder} has no {abbreviate(missing)}; copy or download it again, or lower --fewshot.folds"
        )
    return paths


def _fold_clouds(items: Any, classes: tuple[str, ...], source: str) -> ArrayClouds:
    if not isinstance(items, list | tuple) or not items:
        raise UserError(f"{source} must be a list of (points, label, ...)")
    if any(not isinstance(item, list | tuple) or len(item) < 2 for item in items):
        raise UserError(f"{source} must be a list of (points, label, ...)")
    clouds = pickled_clouds([item[0] for item in items], [item[1] for item in items], classes, source)
    if missing := set(range(len(classes))) - set(clouds.labels.tolist()):
        raise UserError(
            f"{source} has no clouds of class {min(missing)} of {len(classes)}; get the fold again"
        )
    return clouds


def sample_fold(
    train: Clouds, test: Clouds, *, way: int, shot: int, queries: int, fold: int, seed: int = 0
) -> FewShotEpisode:
    """Draw a fold: ``way`` classes at random, ``shot`` training clouds and ``queries`` test clouds of each.

    The draw depends on the arguments alone. It is not a published fold.

    Raises:
        UserError: too few classes have that many clouds.
    """
    eligible = [
        label
        for label in range(len(train.classes))
        if (train.labels == label).sum() >= shot and (test.labels == label).sum() >= queries
    ]
    if len(eligible) < way:
        raise UserError(
            f"{len(eligible)} of {len(train.classes)} classes have {shot} training and {queries} test clouds; "
            f"{way} ways need {way} (lower --fewshot.way, --fewshot.shot or --fewshot.queries)"
        )
    key = (seed, "few-shot", way, shot, fold)
    labels = sorted(_draw(np.array(eligible), way, *key, "classes").tolist())
    classes = tuple(train.classes[label] for label in labels)

    def draw_clouds(clouds: Clouds, count: int, name: str) -> Clouds:
        indices = [
            _draw(np.flatnonzero(clouds.labels == label), count, *key, name, label) for label in labels
        ]
        return clouds.select(np.concatenate(indices)).relabel(np.repeat(np.arange(way), count), classes)

    return FewShotEpisode(draw_clouds(train, shot, "train"), draw_clouds(test, queries, "test"))


def _draw(values: np.ndarray, count: int, *key: int | str) -> np.ndarray:
    """Draw ``count`` values without repeats; bit generators keep their streams across numpy versions."""
    rank = np.random.PCG64(derive_seed(*key)).random_raw(len(values))
    return values[np.argsort(rank, kind="stable")[:count]]
