"""Opening a sharded data set, in a folder or in a store."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from map_core.errors import UserError, near_matches
from map_core.paths import cache_folder, expand_user
from map_core.reading import open_file
from map_core.shards.cache import Cache, fetch_index
from map_core.shards.index import FORMAT, INDEX, ShardIndex, read_index, read_splits
from map_core.shards.reader import Folder, ShardReader
from map_core.shards.sizes import written_size
from map_core.shards.stores import Store, is_address, store_at


@dataclass(frozen=True)
class ShardSettings:
    """Where and how much of a store's shards is cached; shards in a folder are read in place.

    Attributes:
        cache: Folder for fetched shards.
        limit: Bytes that they may take there.
    """

    cache: Path
    limit: int


class ShardRoot:
    """A sharded data set, or several that are its splits.

    Args:
        root: A folder, or the address of a folder in a store, or of the index.json in it.
        settings: See :class:`ShardSettings`.
    """

    def __init__(self, root: str, settings: ShardSettings) -> None:
        self.root, self.settings = root.removesuffix("/" + INDEX), settings
        self.store: Store | None = store_at(self.root) if is_address(self.root) else None

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits; () where the root itself is the set.

        Raises:
            UserError: there is no valid index.
        """
        folder = (
            expand_user(self.root)
            if self.store is None
            else fetch_index(self.store, "", self.settings.cache, self.settings.limit)
        )
        return read_splits(folder, self.root) or ()

    def require(self, split: str, argument: str) -> str:
        """The subfolder of a split named by the user; "." is the root itself.

        Args:
            split: Name of the split.
            argument: Name of the argument with it, for messages.

        Raises:
            UserError: there is no split of this name.
        """
        if split == "." and not self.splits:
            return ""
        if split not in self.splits:
            hint = near_matches(split, self.splits) if self.splits else "it has no splits"
            raise UserError(f"{argument} '{split}' is not a split of the shards in {self.root}: {hint}")
        return split

    def open(self, split: str, at_once: int | None = None) -> ShardReader:
        """Open a split, after checking that its shards exist or, for a store, that the cache is large enough.

        Args:
            split: Subfolder of the split; "" for the root itself.
            at_once: Number of shards that are read from at a time; None for any order, which reads from all of them.

        Raises:
            UserError: index or shards are missing or damaged, or the cache is too small.
        """
        if self.store is None:
            folder = expand_user(self.root) / split
            source = Folder(folder)
            index = read_index(folder)
            source.check(index)
            return ShardReader(index, source)
        where = self.store.address(split).rstrip("/")
        index = read_index(fetch_index(self.store, split, self.settings.cache, self.settings.limit), where)
        self._require_room(index, where, at_once)
        return ShardReader(index, Cache(self.store, self.settings.cache, self.settings.limit, split))

    def _require_room(self, index: ShardIndex, where: str, at_once: int | None) -> None:
        """Refuse a cache that would evict shards before their next samples are read."""
        sizes = sorted((shard.bytes for shard in index.shards), reverse=True)
        needed = sum(sizes if at_once is None else sizes[: at_once + 1])
        if self.settings.limit < needed:
            fewer = "" if at_once is None else f", or lower data.shuffle_shards ({at_once})"
            raise UserError(
                f"{written_size(needed)} of the shards of {where} are read at a time, and data.shard_cache_size is "
                f"{written_size(self.settings.limit)}: raise it{fewer}"
            )


def default_cache() -> Path:
    """The cache folder for shards unless the user names one."""
    return cache_folder() / "shards"


def has_index(root: str) -> bool:
    """Whether a data root is a sharded set: an address, or a folder with an index of shards, even a broken one."""
    if is_address(root):
        return True
    try:
        with open_file(expand_user(root) / INDEX) as file:
            return FORMAT.encode() in file.read(100)  # other data sets can have an index.json, too
    except (OSError, ValueError):
        return False
