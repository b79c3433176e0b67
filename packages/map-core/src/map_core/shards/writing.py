"""Writing a set in shards: the same files for the same samples and settings, complete or not there."""

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
from map_core.shards.index import SAMPLE, Shard, is_plain_name, save_index, save_splits

HEADER = BLOCK = tarfile.BLOCKSIZE
DIGITS = 9  # of the numbers that are keys


@dataclass(frozen=True)
class Files:
    """The samples of one split, before they are in shards.

    Attributes:
        names: Of the files, unique, such as their paths below the set's folder; their endings tell what they are.
        read: Gives the bytes of a file by its number.
        labels: Of the files, places in ``classes``; zeros without.
        classes: Names of the classes; () without labels.
    """

    names: Sequence[str]
    read: Callable[[int], bytes]
    labels: np.ndarray
    classes: tuple[str, ...] = ()


def write_shards(
    splits: dict[str, Files], out: Path, *, size: int, seed: int = 0, progress: bool = False
) -> None:
    """Write sets in shards, each in a subfolder of ``out``, or in ``out`` itself where the only one is called "".

    Samples are spread over the shards at random, so that each shard is a sample of the whole; the index lists them in
    the order in which they come, so that number i is the same sample in the shards as among the files.

    Args:
        splits: By the name of their subfolder.
        out: Folder to make.
        size: Bytes that a shard may have; a single sample may be larger.
        seed: Of the spread.
        progress: Show a progress bar.

    Raises:
        UserError: the folder is not empty or cannot be written, or a file cannot be read; then nothing is left behind.
    """
    require_folder(out)
    if not out.name:
        raise UserError(f"{out} is where this runs or the root of a disk: name a new folder with --out")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty: remove it, or choose another --out")
    for name in splits:
        if name and not is_plain_name(name):
            raise UserError(f"split {visible(name)!r} has a name that no index takes: rename its folder")
    partial = out.with_name(UNFINISHED + out.name)
    count = sum(len(files.names) for files in splits.values())
    with made_whole(partial, out), tqdm(total=count, desc="shards", disable=not progress, leave=False) as bar:
        for name, files in splits.items():
            folder = partial / name
            folder.mkdir(exist_ok=True)
            _write_split(files, folder, size=size, seed=seed, advance=bar.update)
        if "" not in splits:
            save_splits(partial, list(splits))
        for path in sorted(partial.rglob("*")):
            sync(path)


@contextlib.contextmanager
def made_whole(partial: Path, out: Path) -> Iterator[None]:
    """Make the folder ``partial``, and give it the name ``out`` once the block is through; otherwise remove it.

    Raises:
        UserError: the disk is full, or refuses otherwise.
    """
    shutil.rmtree(partial, ignore_errors=True)  # of a command that was killed
    try:
        partial.mkdir(parents=True)
        yield
        os.replace(partial, out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UserError(f"{out} was filled by somebody else meanwhile: choose another --out") from error
        cure = "free some space" if is_full(error) else "choose another --out"
        raise UserError(f"cannot write shards to {out} ({error.strerror or error}): {cure}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_split(files: Files, folder: Path, *, size: int, seed: int, advance: Callable[[], object]) -> None:
    count = len(files.names)
    rank = np.random.PCG64(derive_seed(seed, "shards")).random_raw(count)
    samples, shards = np.zeros(count, dtype=SAMPLE), list[Shard]()
    shard: _ShardFile | None = None
    for place, number in enumerate(np.argsort(rank, kind="stable").tolist()):
        data = files.read(number)
        entries = _entries(f"{place:0{DIGITS}}", files, number, data)
        needed = sum(HEADER + padded(len(content)) for _, content in entries)
        if shard is not None and ended(shard.written + needed) > size:
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
    """What a sample is in a shard: the file itself, its label, and what it was called."""
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
    """A tar file that is being written, with what its index needs to know of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.written, self.samples = path, 0, 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("wb")

    def add(self, entries: Sequence[tuple[str, bytes]]) -> int:
        """Append the entries of a sample; return where the content of the first one begins."""
        first = self.written + HEADER
        for name, content in entries:
            header = tarfile.TarInfo(name)  # no times, no owner: the same bytes whoever writes them
            header.size = len(content)
            self._write(header.tobuf(tarfile.USTAR_FORMAT))
            self._write(content.ljust(padded(len(content)), b"\0"))
        self.samples += 1
        return first

    def close(self) -> Shard:
        """End the archive as tar does."""
        self._write(bytes(ended(self.written) - self.written))
        self._file.close()
        return Shard(self.path.name, self.written, self.samples, self._digest.hexdigest())

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._digest.update(content)
        self.written += len(content)


def ended(size: int) -> int:
    """The bytes of a tar file whose entries take so many: two blocks end it, and it is a whole number of records."""
    return size + 2 * BLOCK + -(size + 2 * BLOCK) % tarfile.RECORDSIZE


def padded(size: int) -> int:
    """The bytes that so many take in a tar file."""
    return size + -size % BLOCK
