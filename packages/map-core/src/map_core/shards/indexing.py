"""Indexing existing tar files in WebDataset's layout, where the files of a sample share all but their endings."""

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

from map_core.errors import UserError, abbreviate, visible
from map_core.reading import open_file, read_small
from map_core.runs.files import is_full, require_folder
from map_core.shards.index import INDEX, SAMPLE, Shard, is_plain_name, save_index, save_splits

TAR = ".tar"
LABEL, CLASSES = "cls", "classnames.txt"
BLOCK = 2**20  # bytes that are read at once
MAX_LABEL_BYTES = 50  # blanks included
MAX_HEADER_BYTES = 2**20  # of headers for long names and the like
MAX_CLASSES = 10**6  # if they are numbers, not named in classnames.txt
EndingGroups = tuple[frozenset[str], ...]  # file endings; those of an earlier group take precedence


@dataclass(slots=True)
class _Sample:
    """A sample's entry for the index."""

    name: str
    row: tuple[int, int, int, int]  # shard, offset, bytes, crc32
    label: int | None


@dataclass
class _Split:
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
    """Write the index of the tar files in a folder or, if they lie in subfolders, one for each as a split.

    Indexed are each sample's file with one of ``endings`` (``x.jpg`` rather than ``x.depth.png``) and, as its label, a
    whole number in ``.cls`` (``x.cls`` rather than ``x.coarse.cls``). Classes are the lines of ``classnames.txt`` that
    are not blank, in the folder of the tar files or in ``folder``, or the numbers up to the largest label of all
    splits. A sample's other files (texts, JSON) are ignored.

    Args:
        folder: Folder of the tar files, or of their folders.
        endings: File endings of samples, such as ``.jpg``.
        fallback: Endings that count in samples without any of ``endings``.
        progress: Show a progress bar.

    Returns:
        The number of samples by subfolder; "" is the folder itself.

    Raises:
        UserError: there are no tar files, or some both in the folder and in subfolders; one is cut off, or holds links,
            paths out of its folder, an invalid label, or a sample with several files that might count.
    """
    if not folder.is_dir():
        raise UserError(f"--index {folder} is not a folder: name the one that holds the tar files")
    require_folder(folder, option="--index")
    if (folder / INDEX).exists():
        raise UserError(f"{folder} has an {INDEX} already: remove it to index its shards anew")
    tars_of = {
        subfolder.relative_to(folder).as_posix(): _tars(subfolder)
        for subfolder in sorted(path for path in folder.iterdir() if path.is_dir())
    }
    tars_of = {name: tars for name, tars in tars_of.items() if tars}
    if unusable := [name for name in tars_of if not is_plain_name(name)]:
        raise UserError(f"subfolder {visible(unusable[0])!r} has a name that no index takes: rename it")
    if tars := _tars(folder):
        if tars_of:
            raise UserError(
                f"{folder} holds {TAR} files both itself and in {abbreviate(list(map(visible, tars_of)))}: move one or "
                "the other elsewhere"
            )
        tars_of = {"": tars}
    if not tars_of:
        raise UserError(f"no {TAR} files in {folder} or its subfolders: correct --index")
    try:
        splits = {
            name: _read_split(folder / name, tars, (endings, fallback), progress=progress)
            for name, tars in tars_of.items()
        }
        largest = max((sample.label or 0 for split in splits.values() for sample in split.samples), default=0)
        classes = {
            name: _class_names(folder / name, folder, split, largest) for name, split in splits.items()
        }
        for name, split in splits.items():
            _save_split(folder / name, split, classes[name])
        if "" not in splits:
            save_splits(folder, list(splits))
    except OSError as error:
        cure = (
            "free some space"
            if is_full(error)
            else "make the folder and all shards in it readable and writable"
        )
        raise UserError(f"cannot index the shards in {folder} ({error.strerror or error}): {cure}") from error
    return {name: len(split.samples) for name, split in splits.items()}


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == TAR and path.is_file())


def _read_split(folder: Path, tars: list[Path], groups: EndingGroups, *, progress: bool) -> _Split:
    split = _Split()
    for path in tqdm(tars, desc=folder.name, disable=not progress, leave=False):
        _read_shard(path, split, groups)
    if not split.samples:
        endings = " ".join(sorted(frozenset[str]().union(*groups)))
        raise UserError(f"the {len(tars)} shards in {folder} hold no {endings}: correct --index")
    return split


def _save_split(folder: Path, split: _Split, classes: tuple[str, ...]) -> None:
    samples = np.zeros(len(split.samples), dtype=SAMPLE)
    for column, values in zip(
        ("shard", "offset", "bytes", "crc32"), zip(*(s.row for s in split.samples), strict=True), strict=True
    ):
        samples[column] = values
    samples["label"] = [sample.label or 0 for sample in split.samples]
    save_index(folder, split.shards, classes, samples, [sample.name for sample in split.samples])


def _class_names(folder: Path, root: Path, split: _Split, largest: int) -> tuple[str, ...]:
    """Class names of a split, () where no sample has a label; ``largest`` is the largest label of all splits."""
    unlabelled = next((sample for sample in split.samples if sample.label is None), None)
    if unlabelled is not None:
        if any(sample.label is not None for sample in split.samples):
            raise UserError(
                f"sample {visible(unlabelled.name)} in {folder} has no .{LABEL}, and others have: give all of them a "
                "label, or none"
            )
        return ()
    file = next((parent / CLASSES for parent in (folder, root) if (parent / CLASSES).exists()), None)
    if file is None:
        if largest >= MAX_CLASSES:
            raise UserError(
                f"labels in {root} go up to {largest}, of more than {MAX_CLASSES:,} classes: correct them, or name the "
                f"classes in {CLASSES}"
            )
        return tuple(map(str, range(largest + 1)))
    needed = 1 + max(sample.label or 0 for sample in split.samples)
    lines = read_small(file).decode("utf-8-sig", errors="surrogateescape").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) < needed or len(set(names)) < len(names):
        raise UserError(
            f"{file} must name {needed} classes, each once; it has {len(set(names))} names: complete it"
        )
    return names


def _read_shard(path: Path, split: _Split, groups: EndingGroups) -> None:
    if not is_plain_name(path.name):
        raise UserError(f"shard {visible(str(path))} has a name that no index takes: rename it")
    number, first = len(split.shards), len(split.samples)
    digest = hashlib.sha256()
    with open_file(path) as file:
        for _, group in groupby(_members(path, file), lambda member: _key_and_ending(member.name)[0]):
            members = list(group)
            label_file = _select_member(members, (frozenset({f".{LABEL}"}),), path)
            label = (
                None
                if label_file is None
                else _parse_label(_read_short(file, label_file), path, label_file.name)
            )
            if (selected := _select_member(members, groups, path)) is not None:
                row = (number, selected.offset_data, selected.size, _checksum(file, selected))
                split.samples.append(_Sample(f"{path.name}/{selected.name}", row, label))
        file.seek(0)
        while block := file.read(BLOCK):
            digest.update(block)
    shard = Shard(path.name, path.stat().st_size, len(split.samples) - first, digest.hexdigest())
    split.shards.append(shard)


def _select_member(
    members: Sequence[tarfile.TarInfo], groups: EndingGroups, path: Path
) -> tarfile.TarInfo | None:
    """A sample's file of some endings: preferably one whose whole ending matches (.jpg rather than .depth.png)."""
    for part in (0, -1):
        for endings in groups:
            matches = [member for member in members if _endings(member)[part] in endings]
            if len(matches) > 1:
                names = " and ".join(visible(member.name) for member in matches[:2])
                raise UserError(
                    f"shard {path} holds {names} of one sample, and nothing says which of them counts: write one"
                )
            if matches:
                return matches[0]
    return None


class _Headers:
    """The file as tarfile sees it: headers only, whose claimed sizes are checked; contents are read separately.

    Args:
        file: The archive.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._file.read(size)


def _members(path: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The files in an archive; nothing is unpacked."""
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as archive:
            for member in archive:
                if member.size < 0:  # tarfile would go back, again and again
                    raise tarfile.ReadError(f"{member.name} has a size of {member.size}")
                _refuse_unsafe(path, member)
                if not member.isfile() or os.path.basename(member.name).startswith("."):
                    continue  # folders, and the hidden files that some systems add
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends within {member.name}")
                yield member
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # the end of an archive
                raise tarfile.ReadError(f"it breaks off after {archive.offset} bytes")
    except (tarfile.TarError, ArithmeticError, EOFError, OSError, RecursionError, ValueError) as error:
        raise UserError(
            f"shard {path} is not a complete tar file ({visible(str(error))}): copy it again, or remove it"
        ) from error


def _checksum(file: BinaryIO, member: tarfile.TarInfo) -> int:
    """CRC-32 of a member's content."""
    file.seek(member.offset_data)
    remaining, crc32 = member.size, 0
    while remaining > 0 and (block := file.read(min(remaining, BLOCK))):
        remaining, crc32 = remaining - len(block), zlib.crc32(block, crc32)
    return crc32


def _read_short(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """The content of a member as short as a label; of a longer one, a beginning that exceeds any label."""
    file.seek(member.offset_data)
    return file.read(min(member.size, MAX_LABEL_BYTES + 1))


def _refuse_unsafe(path: Path, member: tarfile.TarInfo) -> None:
    name = visible(member.name)
    if member.issym() or member.islnk():
        link = f"{name} -> {visible(member.linkname)}"
        raise UserError(f"shard {path} holds a link ({link}): write it without links")
    if member.issparse() or not (member.isfile() or member.isdir()):
        what = "a file with holes" if member.issparse() else "neither file nor folder"
        raise UserError(f"shard {path} holds {name}, which is {what}: write it without")
    if member.name.startswith(("/", "\\")) or ".." in member.name.replace("\\", "/").split("/"):
        raise UserError(f"shard {path} holds {name}, a path out of its folder: write it with relative paths")


def _key_and_ending(name: str) -> tuple[str, str]:
    """A member's key and ending in WebDataset's sense: the file's name is cut at its first dot."""
    folder, _, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}/{key}" if folder else key, ending.lower()


def _endings(member: tarfile.TarInfo) -> tuple[str, str]:
    """A member's ending with its dot, in WebDataset's sense and in the usual sense: .depth.png and .png."""
    _, ending = _key_and_ending(member.name)
    return f".{ending}", f".{ending.rpartition('.')[2]}"


def _parse_label(content: bytes, path: Path, name: str) -> int:
    text = content.decode("latin-1").strip()
    label = int(text) if re.fullmatch("[0-9]+", text) and len(content) <= MAX_LABEL_BYTES else -1
    if not 0 <= label < 2**31:
        raise UserError(
            f"label {visible(name)} in shard {path} is {content[:20]!r}: a label is a whole number from 0 on"
        )
    return label
