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

ABANDONED_AFTER = 3600.0  # seconds since an unfinished download was last written
CACHED_FILE = re.compile(
    rf"({re.escape(UNFINISHED)})?[0-9a-f]{{64}}\.tar"
)  # other files in the folder are never removed


class Cache:
    """Local copies of a store's shards, fetched at their first use; the least recently opened are evicted.

    Shards are stored under their checksums, so that a set that changes or moves reuses those that stay the same.

    Args:
        store: The store that has the shards.
        folder: Folder of the cache.
        limit: Bytes that the shards may take; what several processes fetch at once may come on top.
        split: Subfolder of the store that has the shards; "" for the store itself.
    """

    def __init__(self, store: Store, folder: Path, limit: int, split: str = "") -> None:
        self.store, self.folder, self.limit, self.split = store, folder, limit, split

    def name(self, shard: Shard) -> str:
        return self.store.address(path_in_split(self.split, shard.name))

    def open(self, shard: Shard) -> int:
        path = self.folder / f"{shard.sha256}.tar"
        with disk_errors(self.folder):
            while True:
                with contextlib.suppress(FileNotFoundError):
                    descriptor = file_descriptor(path)
                    if os.fstat(descriptor).st_size == shard.bytes:
                        with contextlib.suppress(OSError):
                            os.utime(path)  # mark it as recently used
                        return descriptor
                    os.close(descriptor)
                    path.unlink(missing_ok=True)
                self._fetch(shard, path)

    def discard(self, shard: Shard) -> bool:
        path = self.folder / f"{shard.sha256}.tar"
        with contextlib.suppress(OSError):
            if checksum_of(path)["sha256"] == shard.sha256:
                return False  # the store has the same bytes
            path.unlink()
        return True

    def _fetch(self, shard: Shard, path: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(UNFINISHED + path.name)
        with locked(partial) as is_current:
            if is_current and path.exists():  # another process finished it after this one had looked
                partial.unlink()
            elif is_current:
                make_room(self.folder, self.limit - shard.bytes, keep=partial)
                name = path_in_split(self.split, shard.name)
                fetch_checked(self.store, name, partial, size=shard.bytes, sha256=shard.sha256)
                os.replace(partial, path)


@contextlib.contextmanager
def locked(partial: Path) -> Iterator[bool]:
    """Hold a lock on a file that is being written; yields False if another process finished it meanwhile.

    The system releases the lock when the process ends, however it ends.
    """
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            is_current = os.path.samestat(os.stat(partial), os.fstat(descriptor))
        except FileNotFoundError:
            is_current = False
        yield is_current
    finally:
        os.close(descriptor)


def make_room(folder: Path, limit: int, *, keep: Path) -> None:
    """Remove the least recently opened shards until the others take at most ``limit`` bytes."""
    files = []
    for path in folder.iterdir():
        if CACHED_FILE.fullmatch(path.name) is None or path == keep:
            continue
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if not path.name.startswith(UNFINISHED) or time.time() - status.st_mtime > ABANDONED_AFTER:
                files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        path.unlink(missing_ok=True)  # a process that is reading it keeps its bytes until it is done
        total -= size


def fetch_index(store: Store, split: str, folder: Path, limit: int) -> Path:
    """Fetch the index of a set, and return the cache's folder with it: one for each version of the index.

    Args:
        store: The store that has the set.
        split: Subfolder of the set; "" for the set itself.
        folder: Folder of the cache.
        limit: Largest size of each file of the index, in bytes.

    Raises:
        UserError: the index cannot be fetched, is larger, or is invalid.
    """
    where = store.address(split).rstrip("/")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as temporary:
            download = Path(temporary)
            fetch(store, path_in_split(split, INDEX), download / INDEX)
            target = folder / f"index_{hashlib.sha256((download / INDEX).read_bytes()).hexdigest()[:32]}"
            if read_splits(download, where) is None:
                for name, recorded in files_of(download, where).items():
                    if recorded["bytes"] > limit:
                        raise UserError(
                            f"{where}/{name} has {written_size(recorded['bytes'])}, says {INDEX}, and "
                            f"data.shard_cache_size is {written_size(limit)}: raise it, or correct data.root"
                        )
                    if not (target / name).is_file() or checksum_of(target / name) != recorded:
                        fetch_checked(
                            store,
                            path_in_split(split, name),
                            download / name,
                            size=recorded["bytes"],
                            sha256=recorded["sha256"],
                        )
            target.mkdir(exist_ok=True)
            for name in (TABLE, NAMES, INDEX):
                if (download / name).exists():
                    os.replace(download / name, target / name)
    return target


def path_in_split(split: str, name: str) -> str:
    """The path in a store of a split's file."""
    return f"{split}/{name}" if split else name


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the cache's disk into a :class:`UserError`."""
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
