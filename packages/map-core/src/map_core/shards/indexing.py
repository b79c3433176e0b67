"""Indexing tar files that are there already: in WebDataset's layout, files of a sample share all but their endings."""

import hashlib
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
from tqdm import tqdm

from map_core.errors import UserError, visible
from map_core.reading import open_file, read_small
from map_core.runs.files import is_full, require_folder
from map_core.shards.index import BLOCK, INDEX, SAMPLE, Shard, is_plain_name, save_index, save_splits

TAR = ".tar"
LABEL, CLASSES = "cls", "classnames.txt"
LONGEST_LABEL = 50  # bytes, blanks included
LONGEST_HEADER = 2**20  # bytes: headers of long names and the like
MOST_CLASSES = 10**6  # that are numbers, and not named in classnames.txt
Kinds = tuple[frozenset[str], ...]  # of endings, those of the first before those of the next


@dataclass(slots=True)
class _Sample:
    """What the index has of a sample."""

    name: str
    row: tuple[int, int, int, int]  # shard, offset, bytes, crc32
    label: int | None


@dataclass
class _Set:
    """The samples of a folder of shards."""

    shards: list[Shard] = field(default_factory=list)
    samples: list[_Sample] = field(default_factory=list)


def index_shards(
    folder: Path,
    endings: frozenset[str],
    *,
    fallback: frozenset[str] = frozenset(),
    progress: bool = False,
) -> dict[str, int]:
    """Write the index of the tar files in a folder, or of those in each of its subfolders, as splits.

    Of a sample, the file with one of ``endings`` counts (``x.jpg`` before ``x.depth.png``), and ``.cls`` as its label,
    a whole number. Classes are the lines of ``classnames.txt`` in the folder of the tar files or in ``folder``, or the
    numbers up to the largest of all splits. What else a sample has (texts, JSON) is left where it is.

    Args:
        folder: Of the tar files, or of their folders.
        endings: Such as ``.jpg``.
        fallback: Endings that count in samples without any of ``endings``.
        progress: Show a progress bar.

    Returns:
        The number of samples, by subfolder; "" is the folder itself.

    Raises:
        UserError: there are none, or one is cut off, holds links or paths out of its folder, a label that is none, or
            a sample with several files that might count.
    """
    if not folder.is_dir():
        raise UserError(f"--index {folder} is no folder: name the one that holds the tar files")
    require_folder(folder, option="--index")
    if (folder / INDEX).exists():
        raise UserError(f"{folder} has an {INDEX} already: remove it to index its shards anew")
    splits = {
        place.relative_to(folder).as_posix(): _tars(place)
        for place in sorted(path for path in folder.iterdir() if path.is_dir())
    }
    splits = {name: tars for name, tars in splits.items() if tars}
    if tars := _tars(folder):
        splits = {"": tars}
    if not splits:
        raise UserError(f"no {TAR} files in {folder} or its subfolders: correct --index")
    try:
        sets = {
            name: _read_split(folder / name, tars, (endings, fallback), progress=progress)
            for name, tars in splits.items()
        }
        most = max((sample.label or 0 for whole in sets.values() for sample in whole.samples), default=0)
        classes = {name: _classes(folder / name, folder, whole, most) for name, whole in sets.items()}
        for name, whole in sets.items():
            _save_split(folder / name, whole, classes[name])
        if "" not in splits:
            save_splits(folder, list(splits))
    except OSError as error:
        cure = (
            "free some space"
            if is_full(error)
            else "make the folder and all shards in it readable and writable"
        )
        raise UserError(f"cannot index the shards in {folder} ({error.strerror or error}): {cure}") from error
    return {name: len(whole.samples) for name, whole in sets.items()}


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == TAR and path.is_file())


def _read_split(folder: Path, tars: list[Path], kinds: Kinds, *, progress: bool) -> _Set:
    whole = _Set()
    for path in tqdm(tars, desc=folder.name, disable=not progress, leave=False):
        _read_shard(path, whole, kinds)
    if not whole.samples:
        endings = " ".join(sorted(frozenset[str]().union(*kinds)))
        raise UserError(f"the {len(tars)} shards in {folder} hold no {endings}: correct --index")
    return whole


def _save_split(folder: Path, whole: _Set, classes: tuple[str, ...]) -> None:
    samples = np.zeros(len(whole.samples), dtype=SAMPLE)
    for column, values in zip(
        ("shard", "offset", "bytes", "crc32"), zip(*(s.row for s in whole.samples), strict=True), strict=True
    ):
        samples[column] = values
    samples["label"] = [sample.label or 0 for sample in whole.samples]
    save_index(folder, whole.shards, classes, samples, [sample.name for sample in whole.samples])


def _classes(folder: Path, root: Path, whole: _Set, most: int) -> tuple[str, ...]:
    """Names of the classes of a split, () where no sample has a label; ``most`` is the largest of all splits."""
    without = next((sample for sample in whole.samples if sample.label is None), None)
    if without is not None:
        if any(sample.label is not None for sample in whole.samples):
            raise UserError(
                f"sample {visible(without.name)} in {folder} has no .{LABEL}, and others have: give all of them a "
                "label, or none"
            )
        return ()
    file = next((place / CLASSES for place in (folder, root) if (place / CLASSES).exists()), None)
    if file is None:
        if most >= MOST_CLASSES:
            raise UserError(
                f"labels in {root} go up to {most}, of more than {MOST_CLASSES:,} classes: correct them, or name the "
                f"classes in {CLASSES}"
            )
        return tuple(map(str, range(most + 1)))
    needed = 1 + max(sample.label or 0 for sample in whole.samples)
    names = tuple(read_small(file).decode("utf-8-sig", errors="surrogateescape").splitlines())
    if len(names) < needed or len(set(names)) < len(names):
        raise UserError(
            f"{file} must name {needed} classes, each once; it has {len(set(names))} names: complete it"
        )
    return names


def _read_shard(path: Path, whole: _Set, kinds: Kinds) -> None:
    if not is_plain_name(path.name):
        raise UserError(f"shard {visible(str(path))} has a name that no index takes: rename it")
    number, before = len(whole.shards), len(whole.samples)
    digest = hashlib.sha256()
    with open_file(path) as file:
        for _, group in groupby(_members(path, file), lambda member: _key_and_ending(member.name)[0]):
            members = list(group)
            labels = (member for member in members if _endings(member)[-1] == f".{LABEL}")
            label = next((_label(_beginning(file, member), path, member.name) for member in labels), None)
            if (chosen := _chosen(members, kinds, path)) is not None:
                row = (number, chosen.offset_data, chosen.size, _crc32(file, chosen))
                whole.samples.append(_Sample(f"{path.name}/{chosen.name}", row, label))
        file.seek(0)
        while block := file.read(BLOCK):
            digest.update(block)
    shard = Shard(path.name, path.stat().st_size, len(whole.samples) - before, digest.hexdigest())
    whole.shards.append(shard)


def _chosen(members: Sequence[tarfile.TarInfo], kinds: Kinds, path: Path) -> tarfile.TarInfo | None:
    """The file of a sample that counts: one whose ending is a kind's as a whole (.jpg, not .depth.png), if any is."""
    for part in (0, -1):
        for endings in kinds:
            fitting = [member for member in members if _endings(member)[part] in endings]
            if len(fitting) > 1:
                names = " and ".join(visible(member.name) for member in fitting[:2])
                raise UserError(
                    f"shard {path} holds {names} of one sample, and nothing says which of them counts: write one"
                )
            if fitting:
                return fitting[0]
    return None


class _Headers:
    """What tarfile reads of a file: headers, whose stated sizes may be anything; contents are read beside it.

    Args:
        file: Of the archive.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)


def _members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The files in an archive; nothing is unpacked."""
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as archive:
            for member in archive:
                if member.size < 0:  # from which tarfile would go back, again and again
                    raise tarfile.ReadError(f"{member.name} has a size of {member.size}")
                _refuse_unsafe(path, member)
                if not member.isfile() or os.path.basename(member.name).startswith("."):
                    continue  # folders, and the hidden files that some systems add
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends within {member.name}")
                yield member
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # with which tar ends an archive
                raise tarfile.ReadError(f"it breaks off after {archive.offset} bytes")
    except (tarfile.TarError, ArithmeticError, EOFError, OSError, RecursionError, ValueError) as error:
        raise UserError(
            f"shard {path} is no whole tar file ({visible(str(error))}): copy it again, or remove it"
        ) from error


def _crc32(file: BinaryIO, member: tarfile.TarInfo) -> int:
    """The checksum of a member's content."""
    file.seek(member.offset_data)
    left, crc32 = member.size, 0
    while left > 0 and (block := file.read(min(left, BLOCK))):
        left, crc32 = left - len(block), zlib.crc32(block, crc32)
    return crc32


def _beginning(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """The content of a member that is as short as a label; of another, more than any label has."""
    file.seek(member.offset_data)
    return file.read(min(member.size, LONGEST_LABEL + 1))


def _refuse_unsafe(path: Path, member: tarfile.TarInfo) -> None:
    shown = visible(member.name)
    if member.issym() or member.islnk():
        link = f"{shown} -> {visible(member.linkname)}"
        raise UserError(f"shard {path} holds a link ({link}): write it without links")
    if member.issparse() or not (member.isfile() or member.isdir()):
        what = "a file with holes" if member.issparse() else "neither file nor folder"
        raise UserError(f"shard {path} holds {shown}, which is {what}: write it without")
    if member.name.startswith(("/", "\\")) or ".." in member.name.replace("\\", "/").split("/"):
        raise UserError(f"shard {path} holds {shown}, a path out of its folder: write it with relative paths")


def _key_and_ending(name: str) -> tuple[str, str]:
    """A member's key and ending in WebDataset's sense: the file's name is cut at its first dot."""
    folder, _, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}/{key}" if folder else key, ending.lower()


def _endings(member: tarfile.TarInfo) -> tuple[str, str]:
    """A member's ending with its dot, in WebDataset's sense and as of any file: .depth.png and .png."""
    _, ending = _key_and_ending(member.name)
    return f".{ending}", f".{ending.rpartition('.')[2]}"


def _label(content: bytes, path: Path, name: str) -> int:
    text = content.decode("latin-1").strip()
    label = int(text) if re.fullmatch("[0-9]+", text) and len(content) <= LONGEST_LABEL else -1
    if not 0 <= label < 2**31:
        raise UserError(
            f"label {visible(name)} in shard {path} is {content[:20]!r}: a label is a whole number from 0 on"
        )
    return label
