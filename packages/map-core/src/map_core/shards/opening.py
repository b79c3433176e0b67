"""Opening a set in shards, in a folder or in a store."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from map_core.errors import UserError, near_matches
from map_core.paths import cache_folder, expanded
from map_core.reading import open_file
from map_core.shards.cache import Cache, fetched_index
from map_core.shards.index import FORMAT, INDEX, ShardIndex, read_index, read_splits
from map_core.shards.reader import Folder, ShardReader
from map_core.shards.sizes import written_size
from map_core.shards.stores import Store, is_address, store_at


@dataclass(frozen=True)
class ShardSettings:
    """How shards of a store are read; those of a folder are read where they are.

    Attributes:
        cache: Folder of the shards that were fetched.
        limit: Bytes that they may take there.
    """

    cache: Path
    limit: int


class ShardRoot:
    """A set in shards, or several that are its splits.

    Args:
        root: A folder, or the address of one in a store, or of the index.json in it.
        settings: See :class:`ShardSettings`.
    """

    def __init__(self, root: str, settings: ShardSettings) -> None:
        self.root, self.settings = root.removesuffix("/" + INDEX), settings
        self.store: Store | None = store_at(self.root) if is_address(self.root) else None

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits; () where the root itself is the set.

        Raises:
            UserError: there is no index.
        """
        folder = (
            expanded(self.root)
            if self.store is None
            else fetched_index(self.store, "", self.settings.cache, self.settings.limit)
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

    def open(self, split: str, at_once: int | None = None) -> ShardReader:
        """Open a split and look whether its shards are there, or, of a store, whether the cache can hold what is read.

        Args:
            split: Its subfolder; "" for the root itself.
            at_once: Shards that are read from at a time; None for any order, which reads from all of them.

        Raises:
            UserError: index or shards are missing or damaged, or the cache is too small.
        """
        if self.store is None:
            folder = expanded(self.root) / split
            place = Folder(folder)
            index = read_index(folder)
            place.check(index)
            return ShardReader(index, place)
        where = self.store.address(split).rstrip("/")
        index = read_index(fetched_index(self.store, split, self.settings.cache, self.settings.limit), where)
        self._require_room(index, where, at_once)
        return ShardReader(index, Cache(self.store, self.settings.cache, self.settings.limit, split))

    def _require_room(self, index: ShardIndex, where: str, at_once: int | None) -> None:
        """Refuse a cache that drops shards which the next samples are in."""
        sizes = sorted((shard.bytes for shard in index.shards), reverse=True)
        needed = sum(sizes if at_once is None else sizes[: at_once + 1])
        if self.settings.limit < needed:
            fewer = "" if at_once is None else f", or lower data.shuffle_shards ({at_once})"
            raise UserError(
                f"{written_size(needed)} of the shards of {where} are read at a time, and data.shard_cache_size is "
                f"{written_size(self.settings.limit)}: raise it{fewer}"
            )


def default_cache() -> Path:
    """Where shards are kept unless a folder is named."""
    return cache_folder() / "shards"


def has_index(root: str) -> bool:
    """Whether a data root is a set in shards: an address, or a folder with an index of shards, be it a broken one."""
    if is_address(root):
        return True
    try:
        with open_file(expanded(root) / INDEX) as file:
            return FORMAT.encode() in file.read(100)  # other sets have an index.json, too
    except (OSError, ValueError):
        return False
