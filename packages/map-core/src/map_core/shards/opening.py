"""Opening a set in shards, in a folder or in a store."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from map_core.errors import UserError, near_matches
from map_core.paths import expanded
from map_core.shards.cache import Cache, fetched_index
from map_core.shards.index import FORMAT, INDEX, read_index, read_splits
from map_core.shards.reader import Folder, ShardReader
from map_core.shards.sizes import written_size
from map_core.shards.stores import Store, is_address, store_at


@dataclass(frozen=True)
class ShardSettings:
    """How shards of a store are read; those of a folder are read where they are.

    Attributes:
        cache: Folder of the shards that were fetched.
        limit: Bytes that they may take there.
        window: Shards that an epoch reads from at a time; None for any order, which reads from all of them.
    """

    cache: Path
    limit: int
    window: int | None = None


class ShardRoot:
    """A set in shards, or several that are its splits.

    Args:
        root: A folder, or the address of one in a store.
        settings: See :class:`ShardSettings`.
    """

    def __init__(self, root: str, settings: ShardSettings) -> None:
        self.root, self.settings = root, settings
        self.store: Store | None = store_at(root) if is_address(root) else None

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits; () where the root itself is the set.

        Raises:
            UserError: there is no index.
        """
        folder = (
            expanded(self.root) if self.store is None else fetched_index(self.store, "", self.settings.cache)
        )
        return read_splits(folder, self.root) or ()

    def require(self, split: str, argument: str) -> str:
        """The subfolder of a split that somebody names; "." is the root itself.

        Args:
            split: Its name.
            argument: That names it, for messages.

        Raises:
            UserError: there is none of this name.
        """
        if split == "." and not self.splits:
            return ""
        if split not in self.splits:
            hint = near_matches(split, self.splits) if self.splits else "it has no splits"
            raise UserError(f"{argument} '{split}' is no split of the shards in {self.root}: {hint}")
        return split

    def open(self, split: str) -> ShardReader:
        """Open a split and look whether its shards are there.

        Args:
            split: Its subfolder; "" for the root itself.

        Raises:
            UserError: index or shards are missing or damaged.
        """
        if self.store is None:
            folder = expanded(self.root) / split
            place = Folder(folder)
            index = read_index(folder)
            place.check(index)
            return ShardReader(index, place)
        where = self.root.rstrip("/") + (split and "/" + split)
        index = read_index(fetched_index(self.store, split, self.settings.cache), where)
        largest = max(shard.bytes for shard in index.shards)
        needed = min(len(index.shards), self.settings.window or len(index.shards)) + 1
        if self.settings.limit < needed * largest and self.settings.limit < sum(
            s.bytes for s in index.shards
        ):
            raise UserError(
                f"an epoch of {where} reads from {needed} shards of {written_size(largest)} at a time, and "
                f"data.shard_cache_size is {written_size(self.settings.limit)}: raise it, or let an epoch read from "
                "fewer with --data.shuffle shards --data.shuffle_shards 8"
            )
        return ShardReader(index, Cache(store_at(where), self.settings.cache, self.settings.limit))


def default_cache() -> Path:
    """Where shards are kept unless a folder is named."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(home) / "map" / "shards"


def has_index(root: str) -> bool:
    """Whether a data root is a set in shards: an address, or a folder with an index of shards, be it a broken one."""
    if is_address(root):
        return True
    try:
        with (expanded(root) / INDEX).open("rb") as file:
            return FORMAT.encode() in file.read(100)  # other sets have an index.json, too
    except OSError:
        return False
