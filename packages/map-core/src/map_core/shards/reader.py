"""Reading samples out of shards, any of them at any time, with nothing but what the index vouches for."""

import os
import threading
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from map_core.errors import UserError
from map_core.reading import file_descriptor
from map_core.shards.index import Shard, ShardIndex

OPEN_SHARDS = 64  # of each process
GO_ON = "then continue with --resume auto"


@runtime_checkable
class Place(Protocol):
    """Where shards are: a folder, or a store whose shards are fetched into a cache."""

    def open(self, shard: Shard) -> int:
        """A descriptor of a shard, which the caller closes.

        Raises:
            UserError: there is no such shard, or it is not the one of the index.
        """

    def name(self, shard: Shard) -> str:
        """What messages call it."""

    def renew(self, shard: Shard) -> bool:
        """Whether opening a shard, whose bytes are not those of the index, gives others from now on."""


class Folder:
    """Shards in a folder.

    Args:
        path: Of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def name(self, shard: Shard) -> str:
        return str(self.path / shard.name)

    def renew(self, shard: Shard) -> bool:
        return False

    def open(self, shard: Shard) -> int:
        path = self.path / shard.name
        try:
            descriptor = file_descriptor(path)
        except FileNotFoundError as error:
            raise UserError(f"shard {path} is missing, which the index names: copy it there again") from error
        except OSError as error:
            raise UserError(f"cannot read shard {path} ({error.strerror}): cure that, {GO_ON}") from error
        size = os.fstat(descriptor).st_size
        if size != shard.bytes:
            os.close(descriptor)
            what = "it was cut off" if size < shard.bytes else "it is another"
            raise UserError(
                f"shard {path} has {size} bytes, of {shard.bytes} in the index ({what}): copy it again, {GO_ON}"
            )
        return descriptor

    def check(self, index: ShardIndex) -> None:
        """Look, before anything is trained, whether all shards are there in their size.

        Raises:
            UserError: naming the first that is not.
        """
        for shard in index.shards:
            os.close(self.open(shard))


class OpenShard:
    """A descriptor that is closed when nobody reads from it any more.

    Args:
        descriptor: Of a file.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @property
    def removed(self) -> bool:
        """Whether the file has no name any more, as what a cache made room with: its bytes stay until it is closed."""
        return os.fstat(self.descriptor).st_nlink == 0

    def __del__(self) -> None:
        os.close(self.descriptor)


class ShardReader:
    """The bytes of samples by their number.

    Processes and threads read side by side: each reads at offsets of its own, and a process keeps the shards open that
    it read last.

    Args:
        index: Of the set.
        place: Where its shards are.
    """

    def __init__(self, index: ShardIndex, place: Place) -> None:
        self.index, self.place = index, place
        self._forget()

    def _forget(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._open: OrderedDict[int, OpenShard] = OrderedDict()  # by the shard's number, the last used last

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "place": self.place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.index)

    def where(self, number: int) -> str:
        """What messages call a sample: its name, and the shard that it lies in."""
        return f"{self.index.name(number)} of {self.place.name(self.index.shard_of(number))}"

    def read(self, number: int) -> bytes:
        """The bytes of a sample.

        Raises:
            UserError: its shard is missing or damaged, or cannot be read.
        """
        row = self.index.samples[number]
        shard, offset, size = int(row["shard"]), int(row["offset"]), int(row["bytes"])
        for again in (False, True):
            if again and not self._renewed(shard):
                break
            try:
                data = read_at(self._opened(shard), offset, size)
            except OSError as error:
                raise UserError(
                    f"cannot read {self.where(number)} ({error.strerror}): look at its file system, {GO_ON}"
                ) from error
            if len(data) == size and zlib.crc32(data) == row["crc32"]:
                return data
        fault = f"ends {size - len(data)} bytes too early" if len(data) < size else "has another checksum"
        raise UserError(
            f"{self.where(number)} {fault} than the index says, so the shard was changed or damaged: put it back "
            f"as it was, {GO_ON}, or write or index the set anew"
        )

    def _renewed(self, number: int) -> bool:
        """Whether a damaged shard was a copy, and is to be opened anew."""
        with self._lock:
            self._open.pop(number, None)
        return self.place.renew(self.index.shards[number])

    def _opened(self, number: int) -> OpenShard:
        if self._process != os.getpid():  # a loading process: its parent may have been reading as it began
            self._forget()
        with self._lock:
            opened = self._open.get(number)
            if opened is None:
                opened = OpenShard(self.place.open(self.index.shards[number]))
                kept = [(place, shard) for place, shard in self._open.items() if not shard.removed]
                self._open = OrderedDict([*kept[max(0, len(kept) - OPEN_SHARDS + 1) :], (number, opened)])
            self._open.move_to_end(number)
            return opened


def read_at(opened: OpenShard, offset: int, size: int) -> bytes:
    """Read so many bytes, or as many as there are; one call may give fewer."""
    parts = []
    while size > 0 and (part := os.pread(opened.descriptor, size, offset)):
        parts.append(part)
        offset, size = offset + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
