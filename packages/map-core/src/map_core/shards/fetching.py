"""Fetching a file from a store: with retries at growing intervals, continuing where a transfer broke off."""

import os
import time
from pathlib import Path

from map_core.errors import UserError
from map_core.shards.index import MAX_INDEX_BYTES, checksum_of
from map_core.shards.sizes import written_size
from map_core.shards.stores import Store, TransientError

ATTEMPTS = 6  # in a row that bring no byte
WAIT = 1.0  # seconds before the second attempt; each further one waits twice as long


def fetch(store: Store, name: str, partial: Path, *, size: int | None = None) -> None:
    """Download a whole file to ``partial``, continuing where an earlier attempt stopped.

    Args:
        store: The store that has the file.
        name: Name of the file.
        partial: File to write; existing content is taken as the beginning.
        size: Size of the file; None for the index, which is the first to be fetched.

    Raises:
        UserError: the file cannot be fetched, does not exist, has another size, or is too large for an index.
        OSError: ``partial`` cannot be written.
    """
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            total = _receive(store, name, partial, before if size is None or before <= size else 0, size)
            received = partial.stat().st_size
            if total is None or received == total:
                return
            reason = f"the connection ended after {received} of {total} bytes"
        except TransientError as error:
            reason = str(error)
        failures = 1 if partial.exists() and partial.stat().st_size > before else failures + 1
        if failures >= ATTEMPTS:
            raise UserError(
                f"cannot fetch {store.address(name)} ({reason}, {failures} times in a row): look at the network and "
                "the store, then continue with --resume auto"
            )
        time.sleep(WAIT * 2 ** (failures - 1))


def _receive(store: Store, name: str, partial: Path, start: int, size: int | None) -> int | None:
    """Append what a store sends; return the size of the whole file, if it is known."""
    if size is not None and start == size:
        return size
    transfer = store.open(name, start)
    if None not in (size, transfer.size) and transfer.size != size:
        transfer.blocks.close()
        raise UserError(
            f"{store.address(name)} has {transfer.size} bytes, of {size} in the index: it was changed or cut off; copy "
            "it there again, or index the set anew"
        )
    total = size if size is not None else transfer.size
    limit = MAX_INDEX_BYTES if size is None else size
    with partial.open("r+b" if partial.exists() else "w+b") as file:
        file.truncate(transfer.start)
        file.seek(transfer.start)
        for block in transfer.blocks:
            if max(file.tell() + len(block), total or 0) > limit:
                transfer.blocks.close()
                raise UserError(
                    f"{store.address(name)} is longer than {written_size(limit)}: it is not a file of this set; "
                    "correct data.root"
                )
            file.write(block)
    return total


def fetch_checked(store: Store, name: str, partial: Path, *, size: int, sha256: str) -> None:
    """Download a file as :func:`fetch` does and verify its checksum, with a second try if it differs.

    Raises:
        UserError: as for :func:`fetch`, or the content differs.
        OSError: ``partial`` cannot be written.
    """
    for _ in range(2):  # an unfinished download may have been continued with another file
        fetch(store, name, partial, size=size)
        if checksum_of(partial)["sha256"] == sha256:
            return
        os.truncate(partial, 0)  # removing it would give up a lock on it
    partial.unlink()
    raise UserError(
        f"{store.address(name)} has another checksum than the index says: it was changed or damaged; copy it there "
        "again, or write or index the set anew"
    )
