"""Images in shards: the splits that a run reads, and one decoded image at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from map_core.data import evaluates_held_out, report_unused_split
from map_core.data.labels import EVALUATION_SPLITS
from map_core.errors import UserError
from map_core.paths import expand_user
from map_core.runs.notes import note
from map_core.shards import (
    ShardReader,
    ShardRoot,
    ShardSettings,
    default_cache,
    has_index,
    in_windows,
    parse_size,
)
from map_core.shards.stores import is_address
from map_core.tasks.domain import Purpose
from map_core.training.plan import Shuffled
from map_vision.data.bands import bands_of
from map_vision.data.config import DataConfig
from map_vision.data.decoding import Pixels, decode, stored_values
from map_vision.data.image_files import FileInMemory
from map_vision.data.sources import ImageSource


@dataclass(frozen=True)
class ShardImages(ImageSource):
    """Images in shards; an epoch reads from ``window`` shards at a time (None: from all); ``title`` is the split."""

    reader: ShardReader
    window: int | None
    title: str

    def name(self, index: int) -> str:
        return self.reader.index.name(index)

    def file(self, index: int) -> FileInMemory:
        """The image file of a sample.

        Raises:
            UserError: its shard cannot be read, or is damaged.
        """
        return FileInMemory(self.reader.read(index), self.name(index))

    def image(self, index: int, mode: str) -> Pixels:
        file, name = self.file(index), self.reader.where(index)
        if (channels := bands_of(mode)) is not None:
            return stored_values(file, channels, name=name)
        return decode(file, mode, name=name)

    def shuffled(self, indices: np.ndarray) -> Shuffled | None:
        if self.window is None:
            return None
        shard = torch.from_numpy(self.reader.index.samples["shard"][indices].astype(np.int64))
        return partial(in_windows, shard, self.window)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "shards (checksum of index.json)": self.reader.index.digest,
            "shuffle": "all" if self.window is None else "shards",
        }


def reads_shards(config: DataConfig) -> bool:
    """Whether the source is shards."""
    if config.source in ("auto", "folder") and config.labels is None:
        return config.root is not None and has_index(config.root)
    return config.source == "shards"


def refuse_shuffle(config: DataConfig) -> None:
    """Raise a :class:`UserError` if images that are not in shards are to be read shard by shard."""
    if config.shuffle == "shards":
        where = f"data.source '{config.source}'" if config.root is None else config.root
        raise UserError(f"data.shuffle 'shards' is for images in shards, and {where} has none: leave it out")


def read_shards(config: DataConfig, purpose: Purpose) -> tuple[ShardImages | None, ShardImages | None]:
    """Open the training and the evaluation images that ``purpose`` needs, as for folders.

    Raises:
        UserError: a missing split, shard or labels.
    """
    if config.root is None:
        raise UserError("source 'shards' needs the folder or address of the shards: pass --data.root")
    shuffle = config.shuffle or ("shards" if is_address(config.root) else "all")
    cache = default_cache() if config.shard_cache is None else expand_user(config.shard_cache)
    limit = parse_size(config.shard_cache_size, "data.shard_cache_size")
    root = ShardRoot(config.root, ShardSettings(cache, limit))
    train, evaluation = _splits(root, config, purpose)
    labelled = purpose in ("finetune", "evaluate")
    # only training reads shard by shard: everything else reads samples by index, from all shards
    window = config.shuffle_shards if shuffle == "shards" and purpose in ("pretrain", "finetune") else None
    # the held-out part is read by index, from all shards: the cache must hold them all
    holds_out = purpose == "finetune" and config.holdout > 0
    at_once = None if holds_out else window
    train_images = None if train is None else _open(root, train, window, at_once, labelled=labelled)
    eval_images = None if evaluation is None else _open(root, evaluation, None, None, labelled=labelled)
    if train_images is not None and eval_images is not None and train_images.classes != eval_images.classes:
        raise UserError(
            f"the shards of split '{evaluation}' in {root.root} have other classes ({len(eval_images.classes)}) than "
            f"those of '{train}' ({len(train_images.classes)}): write them together, from one folder; for other "
            f"tar files, name the classes in {root.root}/classnames.txt, remove index.json there and index them anew"
        )
    return train_images, eval_images


def _splits(root: ShardRoot, config: DataConfig, purpose: Purpose) -> tuple[str | None, str | None]:
    """The subfolders to train and to evaluate on; None for one that ``purpose`` does not need."""
    train = (
        root.require(config.train_split, "train_split")
        if config.train_split is not None
        else ("train" if "train" in root.splits else None if root.splits else "")
    )
    evaluation = (
        root.require(config.eval_split, "eval_split")
        if config.eval_split is not None
        else next((name for name in EVALUATION_SPLITS if name in root.splits), None)
    )
    holds_out = evaluates_held_out(config)
    if train is None and (holds_out or purpose in ("pretrain", "finetune")):
        raise UserError(
            f"no training split in the shards of {root.root}: looked for train, found {', '.join(root.splits)}; name "
            "it with --data.train_split"
        )
    if evaluation is not None and purpose in ("finetune", "evaluate"):
        report_unused_split(f"split {evaluation} of {root.root}", config, note)
    if purpose == "pretrain" or holds_out or (purpose == "features" and evaluation is None):
        return train, None
    if evaluation is None:
        raise UserError(
            f"no evaluation split in the shards of {root.root}: looked for {', '.join(EVALUATION_SPLITS)}, found "
            f"{', '.join(root.splits) or 'no splits'}; name it with --data.eval_split, or hold a part of the training "
            "set out with --data.holdout 0.1"
        )
    return (None if purpose == "evaluate" else train), evaluation


def _open(
    root: ShardRoot, split: str, window: int | None, at_once: int | None, *, labelled: bool
) -> ShardImages:
    reader = root.open(split, at_once)
    index = reader.index
    if labelled and not index.classes:
        raise UserError(
            f"the shards of {'/'.join(filter(None, (root.root, split)))} have no labels, which this needs: write them "
            "from a folder with a subfolder per class and no image beside them, or with --data.labels"
        )
    return ShardImages(
        index.labels, index.classes, reader, window, split or root.root.rstrip("/").split("/")[-1]
    )
