"""The images that a run trains on and evaluates on."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from map_core.data import (
    evaluates_held_out,
    hold_out,
    refuse_two_evaluation_sets,
    report_unused_split,
    take_subset,
)
from map_core.data.labels import EVALUATION_SPLITS, EVERYTHING, LabelTable, read_labels
from map_core.errors import UserError
from map_core.runs.notes import note
from map_core.tasks.domain import Purpose
from map_vision.data.config import DataConfig
from map_vision.data.digits import load_digits, split_digits
from map_vision.data.folders import (
    beside_train,
    eval_folder,
    existing_root,
    read_folder,
    read_unlabelled_folder,
    train_folder,
)
from map_vision.data.formats import ARRAYS, readable_extensions
from map_vision.data.listing import list_folder, subfolders
from map_vision.data.preprocessing import reads_digits
from map_vision.data.shard_images import read_shards, reads_shards, refuse_shuffle
from map_vision.data.sources import FileImages, ImageSource
from map_vision.data.timm_sources import StreamedImages, read_timm


@dataclass(frozen=True)
class Split:
    """The images ``indices`` of a source; ``name`` is the name of the split."""

    source: ImageSource
    indices: np.ndarray
    name: str

    @classmethod
    def whole(cls, source: ImageSource, name: str) -> "Split":
        return cls(source, np.arange(len(source)), name)

    def select(self, positions: np.ndarray, name: str | None = None) -> "Split":
        return Split(self.source, self.indices[positions], name or self.name)

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.indices]


@dataclass(frozen=True)
class Splits:
    """Training and evaluation images: pretraining has no evaluation images, evaluation no training images.

    ``ignored`` counts the files that were left out, by kind.
    """

    train: Split | None
    evaluation: Split | None
    ignored: tuple[tuple[str, int], ...] = ()


def choose_splits(config: DataConfig, mode: str, purpose: Purpose) -> Splits:
    """Open the source, set the held-out part aside, then take the subset of the remaining training images.

    A split that ``purpose`` does not need is not read.

    Raises:
        UserError: a split that does not exist, or training with two evaluation splits.
    """
    if purpose == "finetune":
        refuse_two_evaluation_sets(config)
    splits = _open(config, mode, purpose)
    train, evaluation = splits.train, splits.evaluation
    if train is not None and config.holdout:
        held_out = _held_out(train.labels, config, every_class=purpose == "finetune")
        if evaluates_held_out(config):
            evaluation = train.select(held_out, f"{config.holdout:g} held out of {train.name}")
        train = train.select(np.setdiff1d(np.arange(len(train.labels)), held_out))
    if purpose == "evaluate":
        train = None
    if train is not None and config.subset is not None:
        train = train.select(take_subset(train.labels, config.subset, seed=config.subset_seed))
    return Splits(train, None if purpose == "pretrain" else evaluation, splits.ignored)


def _held_out(labels: np.ndarray, config: DataConfig, *, every_class: bool) -> np.ndarray:
    """The positions of the held-out part, chosen among images with labels.

    Images beside class folders (label -1), which pretraining alone reads, do not change it.
    """
    labelled = np.flatnonzero(labels >= 0)
    _, held_out = hold_out(
        labels[labelled], config.holdout, seed=config.holdout_seed, every_class=every_class
    )
    return labelled[held_out]


def _open(config: DataConfig, mode: str, purpose: Purpose) -> Splits:
    if reads_shards(config):
        train, evaluation = read_shards(config, purpose)
        return Splits(
            None if train is None else Split.whole(train, train.title),
            None if evaluation is None else Split.whole(evaluation, evaluation.title),
        )
    refuse_shuffle(config)
    if reads_digits(config):
        return _digits(config)
    if config.source in ("auto", "folder"):
        return _folder(config, purpose) if config.labels is None else _csv(config, config.labels, purpose)
    return _timm(config, mode, purpose)


def _digits(config: DataConfig) -> Splits:
    if config.root is not None:
        raise UserError(
            f"data.root is {config.root}, but data.source is the digits, which have no folder; "
            "for that folder pass --data.source folder, for the digits leave root out"
        )
    for argument, split, expected in (
        ("train_split", config.train_split, "train"),
        ("eval_split", config.eval_split, "test"),
    ):
        if split not in (None, expected):
            raise UserError(f"{argument} '{split}' does not exist: the digits have 'train' and 'test' only")
    digits = load_digits()
    indices = split_digits(digits)
    return Splits(Split(digits, indices["train"], "train"), Split(digits, indices["test"], "test"))


def _folder(config: DataConfig, purpose: Purpose) -> Splits:
    root = existing_root(config.root)
    folder = train_folder(root, config.train_split)
    eval_path = eval_folder(root, config.eval_split)  # a wrong name is an error, used or not
    holds_out = evaluates_held_out(config)
    train: FileImages | None = None
    evaluation: FileImages | None = None
    if purpose == "pretrain" or (purpose == "features" and eval_path is None and not holds_out):
        # all images of one folder, labelled or not
        _check_not_evaluation(root, folder, config)
        train = read_unlabelled_folder(folder)
        if purpose == "features" and not train.classes:
            train = _without_labels(train)
    elif holds_out:
        # the training folder alone: choose_splits cuts the held-out part from it
        _check_not_evaluation(root, folder, config)
        if eval_path is not None and purpose != "features":
            report_unused_split(str(eval_path), config, note)
        train = _read_labelled(folder, purpose)
    elif eval_path is None:
        raise UserError(
            f"no evaluation split in {root}: looked for {', '.join(EVALUATION_SPLITS)}, found {_listing(root)}; "
            "name it with --data.eval_split ('.' is the folder itself), or hold a part of the training set "
            "out with --data.holdout 0.1"
        )
    elif purpose in ("evaluate", "features") and folder == root and config.train_split is None:
        # no training folder: the evaluation split alone, with its own classes
        evaluation = _read_labelled(eval_path, purpose)
    elif purpose == "evaluate":
        # the training folder gives the classes, and none of its images is read
        evaluation = read_folder(eval_path, classes=subfolders(folder))
    else:
        # both splits, with the classes of training
        _check_not_evaluation(root, folder, config)
        train = _read_labelled(folder, purpose)
        evaluation = read_folder(eval_path, classes=train.classes) if train.classes else _read_flat(eval_path)
    ignored = beside_train(root, folder) if config.train_split is None else Counter[str]()
    for source in (train, evaluation):
        ignored += Counter(dict(source.ignored)) if source is not None else Counter()
    return Splits(
        None if train is None else Split.whole(train, _name(folder, root)),
        None if evaluation is None or eval_path is None else Split.whole(evaluation, _name(eval_path, root)),
        tuple(ignored.items()),
    )


def _csv(config: DataConfig, labels: str, purpose: Purpose) -> Splits:
    """Splits of a folder whose files and labels are listed in a CSV file."""
    root = existing_root(config.root)
    table = read_labels(labels, root, endings=sorted({*readable_extensions(), *ARRAYS}))
    holds_out = evaluates_held_out(config)
    if purpose == "finetune":
        table.require_classes_to_train(config.train_split)
    elif purpose == "evaluate":
        table.require_labels()
    eval_split = table.evaluation_split(config.eval_split)  # a wrong name is an error, used or not
    train: Split | None = None
    evaluation: Split | None = None
    no_train_split = bool(table.splits) and config.train_split is None and "train" not in table.splits
    if holds_out or not (purpose == "evaluate" or (purpose == "features" and no_train_split and eval_split)):
        train = _rows(table, table.train_rows(config.train_split), config.train_split or "train")
    if eval_split is not None and purpose in ("finetune", "evaluate"):
        report_unused_split(f"split {eval_split} of {table.file}", config, note)
    if not holds_out and (purpose in ("finetune", "evaluate") or (purpose == "features" and eval_split)):
        rows = table.evaluation_rows(config.eval_split)
        evaluation = _rows(table, rows, eval_split or "")
    unlisted = len(set(list_folder(root).images) - {str(path.relative_to(root)) for path in table.paths})
    ignored = Counter({f"images without a row in {table.file.name}": unlisted})
    return Splits(train, evaluation, tuple((+ignored).items()))


def _rows(table: LabelTable, rows: np.ndarray, split: str) -> Split:
    images = FileImages(table.labels[rows], table.classes, tuple(table.paths[row] for row in rows.tolist()))
    return Split.whole(images, split if table.splits and split != EVERYTHING else table.file.name)


def _read_labelled(folder: Path, purpose: Purpose) -> FileImages:
    """Read a folder with classes; for features, a folder without class folders will do."""
    return read_folder(folder) if purpose != "features" or subfolders(folder) else _read_flat(folder)


def _read_flat(folder: Path) -> FileImages:
    """Read all images of a folder as images without labels."""
    return _without_labels(read_unlabelled_folder(folder))


def _without_labels(images: FileImages) -> FileImages:
    return FileImages(np.zeros_like(images.labels), (), images.paths, images.ignored)


def _name(folder: Path, root: Path) -> str:
    return (
        root.name
        if folder == root
        else str(folder.relative_to(root))
        if folder.is_relative_to(root)
        else str(folder)
    )


def _check_not_evaluation(root: Path, folder: Path, config: DataConfig) -> None:
    """Refuse to train on a root whose subfolders are evaluation splits."""
    names = set(subfolders(folder))
    if folder == root and config.train_split is None and names & set(EVALUATION_SPLITS):
        raise UserError(
            f"no training split in {root}: looked for train, found {_listing(root)}; "
            "name it with --data.train_split ('.' is the folder itself with all that is in it)"
        )


def _timm(config: DataConfig, mode: str, purpose: Purpose) -> Splits:
    def read(split: str) -> Split:
        in_memory = config.cache == "memory"
        return Split.whole(
            read_timm(config.source, config.root, split, mode=mode, in_memory=in_memory), split
        )

    holds_out = evaluates_held_out(config)
    if purpose == "evaluate" and not holds_out:
        return Splits(None, read(config.eval_split or "validation"))
    train = read(config.train_split or "train")
    if holds_out or (purpose == "pretrain" and config.eval_split is None):
        return Splits(train, None)
    evaluation = read(config.eval_split or "validation")  # in pretraining, to check its name
    random_access = not isinstance(train.source, StreamedImages)
    if random_access and train.source.classes != evaluation.source.classes:
        raise UserError(
            f"the evaluation split of '{config.source}' has other classes "
            f"({len(evaluation.source.classes)}) than the training split ({len(train.source.classes)})"
        )
    return Splits(train, evaluation)


def _listing(root: Path, limit: int = 8) -> str:
    names = subfolders(root)
    if not names:
        return "no subfolders"
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
