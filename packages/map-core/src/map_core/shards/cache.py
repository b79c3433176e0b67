"""A cache of whole shards on a local disk, which all processes of a machine share."""

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from map_core.errors import UserError
from map_core.reading import file_descriptor
from map_core.runs.files import UNFINISHED, is_full
from map_core.shards.fetching import fetch, fetch_checked
from map_core.shards.index import INDEX, NAMES, TABLE, Shard, checksum_of, files_of, read_splits
from map_core.shards.sizes import written_size
from map_core.shards.stores import Store

ABANDONED = 3600.0  # seconds since a broken-off download was last written
OURS = re.compile(
    rf"({re.escape(UNFINISHED)})?[0-9a-f]{{64}}\.tar"
)  # whatever else lies in the folder is not removed


class Cache:
    """Shards of a store, each fetched when it is first read; those that were opened longest ago make room.

    A shard lies under its checksum, so that a set that changes, or moves, finds what is still the same.

    Args:
        store: That has the shards.
        folder: Of the cache.
        limit: Bytes that shards may take in it, about: what several processes fetch at once may come on top.
        split: Subfolder of the store that has the shards; "" for the whole.
    """

    def __init__(self, store: Store, folder: Path, limit: int, split: str = "") -> None:
        self.store, self.folder, self.limit, self.split = store, folder, limit, split

    def name(self, shard: Shard) -> str:
        return self.store.address(within(self.split, shard.name))

    def open(self, shard: Shard) -> int:
        path = self.folder / f"{shard.sha256}.tar"
        with disk_faults(self.folder):
            while True:
                with contextlib.suppress(FileNotFoundError):
                    descriptor = file_descriptor(path)
                    if os.fstat(descriptor).st_size == shard.bytes:
                        with contextlib.suppress(OSError):
                            os.utime(path)  # it was used now
                        return descriptor
                    os.close(descriptor)
                    path.unlink(missing_ok=True)
                self._fetch(shard, path)

    def renew(self, shard: Shard) -> bool:
        path = self.folder / f"{shard.sha256}.tar"
        with contextlib.suppress(OSError):
            if checksum_of(path)["sha256"] == shard.sha256:
                return False  # what the store has, so that it would come again
            path.unlink()
        return True

    def _fetch(self, shard: Shard, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(UNFINISHED + path.name)
        with alone(partial) as first:
            if first:
                make_room(self.folder, self.limit - shard.bytes, keep=partial)
                name = within(self.split, shard.name)
                fetch_checked(self.store, name, partial, size=shard.bytes, sha256=shard.sha256)
                os.replace(partial, path)


@contextlib.contextmanager
def alone(partial: Path) -> Iterator[bool]:
    """Hold a lock on a file that is being written; false where another process finished it meanwhile.

    The system frees the lock when its process ends, however it ends.
    """
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            same = os.path.samestat(os.stat(partial), os.fstat(descriptor))
        except FileNotFoundError:
            same = False
        yield same
    finally:
        os.close(descriptor)


def make_room(folder: Path, limit: int, *, keep: Path) -> None:
    """Remove the shards that were opened longest ago, until those that are left take ``limit`` bytes."""
    files = []
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) is None or path == keep:
            continue
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if not path.name.startswith(UNFINISHED) or time.time() - status.st_mtime > ABANDONED:
                files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        path.unlink(missing_ok=True)  # whoever reads it keeps it until it is done
        total -= size


def fetched_index(store: Store, split: str, folder: Path, limit: int) -> Path:
    """Fetch the index of a set, and return the folder of the cache that has it: one for each state of the index.

    Args:
        store: That has the set.
        split: Subfolder of the set; "" for the whole.
        folder: Of the cache.
        limit: Bytes that each file of it may have.

    Raises:
        UserError: it does not come, is larger, or is none.
    """
    where = store.address(split).rstrip("/")
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as temporary:
            here = Path(temporary)
            fetch(store, within(split, INDEX), here / INDEX)
            there = folder / f"index_{hashlib.sha256((here / INDEX).read_bytes()).hexdigest()[:32]}"
            there.mkdir(exist_ok=True)
            if read_splits(here, where) is None:
                for name, stated in files_of(here, where).items():
                    if stated["bytes"] > limit:
                        raise UserError(
                            f"{where}/{name} has {written_size(stated['bytes'])}, says {INDEX}, and "
                            f"data.shard_cache_size is {written_size(limit)}: raise it, or correct data.root"
                        )
                    if not (there / name).is_file() or checksum_of(there / name) != stated:
                        fetch_checked(
                            store,
                            within(split, name),
                            here / name,
                            size=stated["bytes"],
                            sha256=stated["sha256"],
                        )
            for name in (TABLE, NAMES, INDEX):
                if (here / name).exists():
                    os.replace(here / name, there / name)
    return there


def within(split: str, name: str) -> str:
    """The name in a store of a file of a split."""
    return f"{split}/{name}" if split else name


@contextlib.contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Turn what the cache's disk refuses into a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        cure = (
            "lower data.shard_cache_size, or free some space" if is_full(error) else "choose another folder"
        )
        raise UserError(
            f"cannot keep shards in {folder} ({error.strerror or error}): {cure} (--data.shard_cache), then "
            "continue with --resume auto"
        ) from error
