"""Writing a sharded data set: the same files for the same samples and settings, all of them or none."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from map_core.errors import UserError, visible
from map_core.randomness import derive_seed
from map_core.runs.files import UNFINISHED, is_full, require_folder, sync
from map_core.runs.lock import RunLock
from map_core.shards.index import SAMPLE, Shard, is_plain_name, save_index, save_splits

HEADER = BLOCK = tarfile.BLOCKSIZE
KEY_DIGITS = 9  # of a sample's key, which is a number


@dataclass(frozen=True)
class Files:
    """The samples of one split, to be written into shards.

    Attributes:
        names: Unique names of the files, such as their paths below the set's folder; their endings tell the format.
        read: Returns the bytes of a file by its number.
        labels: Labels of the files, as indices into ``classes``; zeros without classes.
        classes: Names of the classes; () without labels.
    """

    names: Sequence[str]
    read: Callable[[int], bytes]
    labels: np.ndarray
    classes: tuple[str, ...] = ()


def write_shards(
    splits: dict[str, Files], out: Path, *, size: int, seed: int = 0, progress: bool = False
) -> None:
    """Write each split as shards in a subfolder of ``out``; a single split named "" goes to ``out`` itself.

    Samples are spread over the shards at random, so that each shard is a random sample of the whole; the index lists
    them in their original order, so that number i is the same sample in the shards as among the files.

    Args:
        splits: Samples by the name of their subfolder.
        out: Folder to make.
        size: Largest size of a shard in bytes; a single sample may be larger.
        seed: Seed of the random spread.
        progress: Show a progress bar.

    Raises:
        UserError: the folder is not empty, cannot be written or is being written by another command, or a file cannot
            be read; nothing is then left behind.
    """
    require_folder(out)
    if not out.name:
        raise UserError(f"{out} is where this runs or the root of a disk: name a new folder with --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: remove it, or choose another --out")
    for name in splits:
        if name and not is_plain_name(name):
            raise UserError(f"split {visible(name)!r} has a name that no index takes: rename its folder")
    count = sum(len(files.names) for files in splits.values())
    with (
        complete_folder(out) as partial,
        tqdm(total=count, desc="shards", disable=not progress, leave=False) as bar,
    ):
        for name, files in splits.items():
            folder = partial / name
            folder.mkdir(exist_ok=True)
            _write_split(files, folder, size=size, seed=seed, advance=bar.update)
        if "" not in splits:
            save_splits(partial, list(splits))
        for path in sorted(partial.rglob("*")):
            sync(path)


@contextlib.contextmanager
def complete_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder, which is renamed to ``out`` when the block succeeds; otherwise it is removed.

    Raises:
        UserError: another command writes ``out``, or the disk is full, or has another error.
    """
    place = out.with_name(UNFINISHED + out.name)
    with RunLock(place) as lock:
        lock.acquire()
        partial = place / "set"
        try:
            shutil.rmtree(partial, ignore_errors=True)  # left by a command that was killed
            partial.mkdir()
            yield partial
            os.replace(partial, out)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise UserError(
                    f"{out} was filled by somebody else meanwhile: choose another --out"
                ) from error
            cure = "free some space" if is_full(error) else "choose another --out"
            raise UserError(f"cannot write shards to {out} ({error.strerror or error}): {cure}") from error
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _write_split(files: Files, folder: Path, *, size: int, seed: int, advance: Callable[[], object]) -> None:
    count = len(files.names)
    rank = np.random.PCG64(derive_seed(seed, "shards")).random_raw(count)
    samples, shards = np.zeros(count, dtype=SAMPLE), list[Shard]()
    shard: _ShardFile | None = None
    for position, number in enumerate(np.argsort(rank, kind="stable").tolist()):
        data = files.read(number)
        entries = _entries(f"{position:0{KEY_DIGITS}}", files, number, data)
        needed = sum(HEADER + padded_size(len(content)) for _, content in entries)
        if shard is not None and archive_size(shard.written + needed) > size:
            shards.append(shard.close())
            shard = None
        if shard is None:
            shard = _ShardFile(folder / f"{len(shards):06}.tar")
        samples[number] = (
            len(shards),
            shard.add(entries),
            len(data),
            zlib.crc32(data),
            files.labels[number],
            0,
        )
        advance()
    if shard is not None:
        shards.append(shard.close())
    save_index(folder, shards, files.classes, samples, files.names)


def _entries(key: str, files: Files, number: int, data: bytes) -> list[tuple[str, bytes]]:
    """The entries of a sample in a shard: the file itself, its label, and its original name."""
    ending = os.path.splitext(files.names[number])[1].lower() or ".bin"
    entries = [(key + ending, data)]
    if files.classes:
        entries.append((key + ".cls", str(int(files.labels[number])).encode()))
    origin = {"path": files.names[number]} | (
        {"class": files.classes[files.labels[number]]} if files.classes else {}
    )
    entries.append((key + ".json", json.dumps(origin).encode()))
    return entries


class _ShardFile:
    """A tar file that is being written, with the facts that the index needs about it."""

    def __init__(self, path: Path) -> None:
        self.path, self.written, self.samples = path, 0, 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("wb")

    def add(self, entries: Sequence[tuple[str, bytes]]) -> int:
        """Append the entries of a sample; return the offset of the first one's content."""
        offset = self.written + HEADER
        for name, content in entries:
            header = tarfile.TarInfo(name)  # no times, no owner: the same bytes whoever writes them
            header.size = len(content)
            self._write(header.tobuf(tarfile.USTAR_FORMAT))
            self._write(content.ljust(padded_size(len(content)), b"\0"))
        self.samples += 1
        return offset

    def close(self) -> Shard:
        """End the archive as tar does, and return its entry for the index."""
        self._write(bytes(archive_size(self.written) - self.written))
        self._file.close()
        return Shard(self.path.name, self.written, self.samples, self._digest.hexdigest())

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.written += len(content)


def archive_size(size: int) -> int:
    """Size of a tar file with ``size`` bytes of entries: two blocks end it, and it is padded to whole records."""
    return size + 2 * BLOCK + -(size + 2 * BLOCK) % tarfile.RECORDSIZE


def padded_size(size: int) -> int:
    """Size that ``size`` bytes of content take in a tar file."""
    return size + -size % BLOCK
