"""Which images of which source a run trains on and evaluates on."""

import os
from dataclasses import dataclass

import numpy as np

from map_core.data import hold_out, take_subset
from map_core.errors import UserError

from .config import DataConfig, Purpose
from .digits import load_digits, split_digits
from .folders import (
    EVAL_SPLITS,
    eval_folder,
    existing_root,
    read_folder,
    read_unlabelled_folder,
    subfolders,
    train_folder,
)
from .normalization import reads_digits
from .sources import ImageSource
from .timm_sources import StreamedImages, read_timm


@dataclass(frozen=True)
class Split:
    """The images ``indices`` of a source."""

    source: ImageSource
    indices: np.ndarray

    @classmethod
    def whole(cls, source: ImageSource) -> "Split":
        return cls(source, np.arange(len(source)))

    def select(self, positions: np.ndarray) -> "Split":
        return Split(self.source, self.indices[positions])

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.indices]


@dataclass(frozen=True)
class Splits:
    """Training and evaluation images; pretraining has none of the second, evaluation none of the first."""

    train: Split | None
    evaluation: Split | None


def choose_splits(config: DataConfig, mode: str, purpose: Purpose) -> Splits:
    """Open the source, set the held-out part aside, then take the subset of what is left for training.

    A split that ``purpose`` has no use for is not read.
    """
    if not 0.0 <= config.holdout < 1.0:
        raise UserError(
            f"holdout ({config.holdout}) must lie in [0, 1): it is a fraction of the training set"
        )
    splits = _open(config, mode, purpose)
    train, evaluation = splits.train, splits.evaluation
    if train is not None and config.holdout:
        kept, held = hold_out(train.labels, config.holdout, seed=config.holdout_seed)
        train, evaluation = train.select(kept), train.select(held)
    if purpose == "evaluate":
        return Splits(None, evaluation)
    if train is not None and config.subset is not None:
        train = train.select(take_subset(train.labels, config.subset, seed=config.subset_seed))
    return Splits(train, None if purpose == "pretrain" else evaluation)


def _open(config: DataConfig, mode: str, purpose: Purpose) -> Splits:
    if reads_digits(config):
        return _digits(config)
    if config.source in ("auto", "folder"):
        return _folder(config, purpose)
    return _timm(config, mode, purpose)


def _digits(config: DataConfig) -> Splits:
    if config.root is not None:
        raise UserError(
            f"data.root is {config.root}, but data.source is the digits, which have no folder; "
            "for that folder pass --data.source folder, for the digits leave root out"
        )
    for argument, split, only in (
        ("train_split", config.train_split, "train"),
        ("eval_split", config.eval_split, "test"),
    ):
        if split not in (None, only):
            raise UserError(f"{argument} '{split}' does not exist: the digits have 'train' and 'test' only")
    digits = load_digits()
    parts = split_digits(digits)
    return Splits(Split(digits, parts["train"]), Split(digits, parts["test"]))


def _folder(config: DataConfig, purpose: Purpose) -> Splits:
    root = existing_root(config.root)
    folder = train_folder(root, config.train_split)
    if purpose == "pretrain":
        _check_not_evaluation(root, folder, config)
        return Splits(Split.whole(read_unlabelled_folder(folder)), None)
    if config.holdout:
        _check_not_evaluation(root, folder, config)
        return Splits(Split.whole(read_folder(folder)), None)
    held_out = eval_folder(root, config.eval_split)
    if held_out is None:
        raise UserError(
            f"no evaluation split in {root}: looked for {', '.join(EVAL_SPLITS)}, found {_listing(root)}; "
            "name it with --data.eval_split ('.' is the folder itself), or hold a part of the training set "
            "out with --data.holdout 0.1"
        )
    if purpose in ("evaluate", "features") and folder == root and config.train_split is None:
        return Splits(None, Split.whole(read_folder(held_out)))
    if purpose == "evaluate":
        return Splits(None, Split.whole(read_folder(held_out, classes=subfolders(folder))))
    _check_not_evaluation(root, folder, config)
    train = read_folder(folder)
    return Splits(Split.whole(train), Split.whole(read_folder(held_out, classes=train.classes)))


def _check_not_evaluation(root: os.PathLike[str], folder: os.PathLike[str], config: DataConfig) -> None:
    """Refuse to train on a root whose subfolders are evaluation splits."""
    names = set(subfolders(folder))  # type: ignore[arg-type]
    if folder == root and config.train_split is None and names & set(EVAL_SPLITS):
        raise UserError(
            f"no training split in {root}: looked for train, found {_listing(root)}; "
            "name it with --data.train_split ('.' is the folder itself with all that is in it)"
        )


def _timm(config: DataConfig, mode: str, purpose: Purpose) -> Splits:
    def read(split: str) -> Split:
        in_memory = config.cache == "memory"
        return Split.whole(read_timm(config.source, config.root, split, mode=mode, in_memory=in_memory))

    if purpose == "evaluate" and not config.holdout:
        return Splits(None, read(config.eval_split or "validation"))
    train = read(config.train_split or "train")
    if purpose == "pretrain" or config.holdout:
        return Splits(train, None)
    evaluation = read(config.eval_split or "validation")
    known = not isinstance(train.source, StreamedImages)
    if known and train.source.classes != evaluation.source.classes:
        raise UserError(
            f"the evaluation split of '{config.source}' has other classes "
            f"({len(evaluation.source.classes)}) than the training split ({len(train.source.classes)})"
        )
    return Splits(train, evaluation)


def _listing(root: os.PathLike[str], limit: int = 8) -> str:
    names = subfolders(root)  # type: ignore[arg-type]
    if not names:
        return "no subfolders"
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
