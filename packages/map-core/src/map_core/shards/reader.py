"""Reading samples from shards, in any order, and returning only bytes that match the index."""

import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from map_core.errors import UserError
from map_core.reading import file_descriptor
from map_core.shards.index import Shard, ShardIndex

OPEN_SHARDS = 64  # per process
RESUME_HINT = "then continue with --resume auto"


@runtime_checkable
class ShardSource(Protocol):
    """Where shards are: a folder, or a store whose shards are fetched into a cache."""

    def open(self, shard: Shard) -> int:
        """Open a shard and return its descriptor, which the caller closes.

        Raises:
            UserError: the shard is missing, or is not the one in the index.
        """

    def name(self, shard: Shard) -> str:
        """Name of a shard in messages."""

    def discard(self, shard: Shard) -> bool:
        """Discard a damaged copy of a shard; return whether opening the shard again gives other bytes."""


class Folder:
    """Shards in a folder.

    Args:
        path: Path of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def name(self, shard: Shard) -> str:
        return str(self.path / shard.name)

    def discard(self, shard: Shard) -> bool:
        return False

    def open(self, shard: Shard) -> int:
        path = self.path / shard.name
        try:
            descriptor = file_descriptor(path)
        except FileNotFoundError as error:
            raise UserError(f"shard {path} is missing, which the index names: copy it there again") from error
        except OSError as error:
            raise UserError(
                f"cannot read shard {path} ({error.strerror}): cure that, {RESUME_HINT}"
            ) from error
        size = os.fstat(descriptor).st_size
        if size != shard.bytes:
            os.close(descriptor)
            what = "it was cut off" if size < shard.bytes else "it is another"
            raise UserError(
                f"shard {path} has {size} bytes, of {shard.bytes} in the index ({what}): copy it again, {RESUME_HINT}"
            )
        return descriptor

    def check(self, index: ShardIndex) -> None:
        """Check, before training starts, that all shards exist and have the right sizes.

        Raises:
            UserError: naming the first that does not.
        """
        for shard in index.shards:
            os.close(self.open(shard))


class OpenShard:
    """A file descriptor that is closed once nobody reads from it any more.

    Args:
        descriptor: The descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @property
    def is_removed(self) -> bool:
        """Whether the file was deleted, as by a cache that evicts it; its bytes occupy the disk until it is closed."""
        return os.fstat(self.descriptor).st_nlink == 0

    def __del__(self) -> None:
        os.close(self.descriptor)


class ShardReader:
    """Reads the bytes of samples by number.

    Processes and threads can read concurrently: each reads at its own offsets, and a process keeps open the shards
    that it used last.

    Args:
        index: Index of the set.
        source: Where its shards are.
    """

    def __init__(self, index: ShardIndex, source: ShardSource) -> None:
        self.index, self.source = index, source
        self._reset()

    def _reset(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()  # by shard number, most recently used last

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.index)

    def where(self, number: int) -> str:
        """A sample in messages: its name and its shard."""
        return f"{self.index.name(number)} of {self.source.name(self.index.shard_of(number))}"

    def read(self, number: int) -> bytes:
        """The bytes of a sample.

        Raises:
            UserError: its shard is missing or damaged, or cannot be read.
        """
        row = self.index.samples[number]
        shard, offset, size = int(row["shard"]), int(row["offset"]), int(row["bytes"])
        opened: OpenShard | None = None
        for _ in range(2):
            if opened is not None and not self._can_retry(shard, opened):
                break
            try:
                opened = self._open_shard(shard)
                data = read_at(opened, offset, size)
            except OSError as error:
                raise UserError(
                    f"cannot read {self.where(number)} ({error.strerror}): look at its file system, {RESUME_HINT}"
                ) from error
            if len(data) == size and zlib.crc32(data) == row["crc32"]:
                return data
        fault = f"ends {size - len(data)} bytes earlier" if len(data) < size else "has another checksum"
        raise UserError(
            f"{self.where(number)} {fault} than the index says, so the shard was changed or damaged: put it back "
            f"as it was, {RESUME_HINT}, or write or index the set anew"
        )

    def _can_retry(self, number: int, damaged: OpenShard) -> bool:
        """Close a damaged shard; return whether opening it again may give other bytes."""
        with self._lock:
            if self._open.get(number) is damaged:  # else another thread has opened it again
                del self._open[number]
        return damaged.is_removed or self.source.discard(self.index.shards[number])

    def _open_shard(self, number: int) -> OpenShard:
        if self._process != os.getpid():  # a loader process, forked while its parent may have been reading
            self._reset()
        with self._lock:
            shard = self._open.get(number)
            if shard is None:
                shard = OpenShard(self.source.open(self.index.shards[number]))
                others = [item for item in self._open.items() if not item[1].is_removed]
                self._open = OrderedDict([*others[max(0, len(others) - OPEN_SHARDS + 1) :], (number, shard)])
            self._open.move_to_end(number)
            return shard


def read_at(shard: OpenShard, offset: int, size: int) -> bytes:
    """Read ``size`` bytes, or up to the end of the file; a single system call may return fewer."""
    parts = []
    while size > 0 and (part := os.pread(shard.descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
