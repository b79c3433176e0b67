"""The index of a sharded data set: which shards there are, and where in them each sample lies.

Three files: ``index.json`` lists shards, classes and the other two files, with their checksums; ``samples.table`` has
a row for each sample (a NumPy array, under an ending that nobody mistakes for an image); ``names.txt`` has the
samples' names, one per line.
"""

import errno
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from map_core.errors import UserError, reason
from map_core.json_values import is_count
from map_core.reading import read_small, sha256
from map_core.runs.files import replacing, save_text

INDEX, TABLE, NAMES = "index.json", "samples.table", "names.txt"
FORMAT = "map shards 1"
SAMPLE = np.dtype(
    [
        ("shard", "<i4"),
        ("offset", "<i8"),  # of the sample's bytes in its shard
        ("bytes", "<i8"),
        ("crc32", "<u4"),  # of the bytes
        ("label", "<i4"),  # index into the classes; 0 where there are none
        ("name", "<i8"),  # offset of its line in names.txt
    ]
)
MAX_INDEX_BYTES = 2**28  # of index.json: about a million shards
NO_INDEX = "write it with the command shard, or, for tar files that are there already, with shard --index"


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        name: File name, in the folder of the index.
        bytes: Size of the file.
        samples: Number of samples in it.
        sha256: Checksum of the whole file.
    """

    name: str
    bytes: int
    samples: int
    sha256: str


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where each sample of a sharded data set lies.

    Attributes:
        shards: The tar files.
        classes: Names of the classes in the order of the labels; () without labels.
        samples: A row of :data:`SAMPLE` for each sample, in the order of the set.
        names: The bytes of names.txt.
        digest: Checksum of index.json and thus, through the checksums in it, of the whole set.
    """

    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    samples: np.ndarray
    names: np.ndarray
    digest: str

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64; zeros without classes."""
        return self.samples["label"].astype(np.int64)

    def name(self, number: int) -> str:
        """The sample's name: the original path of its file, or its key in the shard."""
        starts = self.samples["name"]
        end = int(starts[number + 1]) if number + 1 < len(starts) else len(self.names)
        return bytes(self.names[int(starts[number]) : end - 1]).decode("utf-8", "surrogateescape")

    def shard_of(self, number: int) -> Shard:
        """The shard that holds a sample."""
        return self.shards[int(self.samples["shard"][number])]


def save_index(
    folder: Path, shards: Sequence[Shard], classes: Sequence[str], samples: np.ndarray, names: Sequence[str]
) -> None:
    """Write the three files; index.json last, as it completes the set."""
    lines = [name.encode("utf-8", "surrogateescape") + b"\n" for name in names]
    samples = samples.copy()
    samples["name"] = np.cumsum([0, *map(len, lines[:-1])]) if lines else 0
    with replacing(folder / TABLE) as partial, partial.open("wb") as file:
        np.save(file, samples, allow_pickle=False)
    with replacing(folder / NAMES) as partial:
        partial.write_bytes(b"".join(lines))
    counts = np.bincount(samples["label"], minlength=len(classes)).tolist()
    manifest = {
        "format": FORMAT,
        "samples": len(samples),
        "classes": list(classes),
        "samples_of_class": dict(zip(classes, counts, strict=True)) if classes else {},
        "files": {name: checksum_of(folder / name) for name in (TABLE, NAMES)},
        "shards": [vars(shard) for shard in shards],
    }
    save_text(folder / INDEX, json.dumps(manifest, indent=1) + "\n")


def save_splits(folder: Path, splits: Sequence[str]) -> None:
    """Write the index.json of a folder whose subfolders are sharded data sets themselves."""
    save_text(folder / INDEX, json.dumps({"format": FORMAT, "splits": list(splits)}, indent=1) + "\n")


def read_splits(folder: Path, where: str) -> tuple[str, ...] | None:
    """The subfolders that an index.json lists as splits, or None if it describes shards.

    Args:
        folder: Folder of the file.
        where: Name of the folder in messages.

    Raises:
        UserError: index.json is missing or invalid.
    """
    splits = _read_manifest(folder, where)[0].get("splits")
    if splits is None:
        return None
    if not isinstance(splits, list) or not splits or not all(map(is_plain_name, splits)):
        raise _invalid_index(where, "its splits are not names of folders")
    return tuple(splits)


def files_of(folder: Path, where: str) -> dict[str, dict[str, Any]]:
    """Recorded size and checksum of the two files beside an index.json.

    Raises:
        UserError: index.json does not record them.
    """
    files = _read_manifest(folder, where)[0].get("files")
    if (
        not isinstance(files, dict)
        or files.keys() != {TABLE, NAMES}
        or not all(map(_is_file, files.values()))
    ):
        raise _invalid_index(where, f"files is not size and sha256 of {TABLE} and {NAMES}")
    return files


def read_index(folder: Path, where: str | None = None) -> ShardIndex:
    """Read an index and verify everything in it.

    Args:
        folder: Folder of its three files.
        where: Name of the folder in messages, if ``folder`` is a copy.

    Raises:
        UserError: the index is missing, or something in it is impossible.
    """
    where = where or str(folder)
    manifest, digest = _read_manifest(folder, where)
    for name, recorded in files_of(folder, where).items():
        if not (folder / name).is_file():
            raise UserError(f"{where} has an {INDEX} but no {name}: copy the whole folder again")
        if checksum_of(folder / name) != recorded:
            raise UserError(
                f"{where}/{name} is not the file that {INDEX} was written with: copy the whole folder again, or write "
                "the shards anew"
            )
    try:
        samples = np.lib.format.open_memmap(folder / TABLE, mode="r")  # reads nothing but plain numbers
        names = np.memmap(folder / NAMES, mode="r") if manifest.get("samples") else np.zeros(0, np.uint8)
    except Exception as error:  # numpy parses the header as Python, and passes on whatever that stumbles on
        raise _invalid_index(where, f"{TABLE}: {reason(error)}") from error
    fault = _manifest_fault(manifest) or _table_fault(manifest, samples, names)
    if fault is not None:
        raise _invalid_index(where, fault)
    shards = tuple(Shard(**shard) for shard in manifest["shards"])
    return ShardIndex(shards, tuple(manifest["classes"]), samples, names, digest)


def is_plain_name(name: object) -> bool:
    """Whether a name is that of a file in the folder itself, and leads nowhere else."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(character in name for character in "/\\\0:")
        and name.isprintable()
    )


def checksum_of(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _read_manifest(folder: Path, where: str) -> tuple[dict[str, Any], str]:
    """The parsed content of index.json, and its checksum."""
    try:
        content = read_small(folder / INDEX, MAX_INDEX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{where} has no {INDEX}, which shards need: {NO_INDEX}") from error
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _invalid_index(where, str(error.strerror)) from error
        raise UserError(f"cannot read {where}/{INDEX} ({error.strerror}): make it readable") from error
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _invalid_index(where, "not valid JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _invalid_index(where, f"format is not {FORMAT!r}")
    return manifest, hashlib.sha256(content).hexdigest()


def _invalid_index(where: str, fault: str) -> UserError:
    return UserError(f"{where}/{INDEX} is not a valid index of shards ({fault}): {NO_INDEX}")


def _manifest_fault(manifest: dict[str, Any]) -> str | None:
    """What is missing in an index.json or has another type, in words; None if nothing is."""
    shards, classes = manifest.get("shards"), manifest.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "classes are not names"
    if len(set(classes)) < len(classes):
        return "two classes have one name"
    if not isinstance(shards, list):
        return "shards is not a list"
    for number, shard in enumerate(shards):
        if not isinstance(shard, dict) or shard.keys() != Shard.__annotations__.keys() or not _is_file(shard):
            return f"shard {number} lacks a valid name, bytes, samples or sha256"
        if not is_plain_name(shard["name"]):
            return f"shard {number} is called {shard['name']!r}, which is not a file in the folder"
        if not is_count(shard["samples"]):
            return f"shard {number} has {shard['samples']!r} samples"
    if len({shard["name"] for shard in shards}) < len(shards):
        return "two shards have one name"
    return None


def _table_fault(manifest: dict[str, Any], samples: np.ndarray, names: np.ndarray) -> str | None:
    """The row of samples.table with an impossible value, in words; None if there is none."""
    if samples.dtype != SAMPLE or samples.ndim != 1:
        return f"{TABLE} does not have the columns {', '.join(SAMPLE.names or ())}"
    if manifest.get("samples") != len(samples) or not len(samples):
        return f"samples is {manifest.get('samples')!r}, and {TABLE} has {len(samples)} rows"
    sizes = np.array([shard["bytes"] for shard in manifest["shards"]], dtype=np.int64)
    counts = [shard["samples"] for shard in manifest["shards"]]
    starts = np.append(samples["name"], len(names))
    rules: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("shard", lambda: (samples["shard"] >= 0) & (samples["shard"] < len(sizes))),
        ("offset", lambda: (samples["offset"] >= 0) & (samples["bytes"] >= 0)),
        ("bytes", lambda: samples["offset"] <= sizes[samples["shard"]] - samples["bytes"]),
        ("label", lambda: (samples["label"] >= 0) & (samples["label"] < max(1, len(manifest["classes"])))),
        ("name", lambda: (starts[:1] == 0).all() & (np.diff(starts) > 0)),
    )
    for column, rule in rules:
        invalid = ~np.asarray(rule())
        if invalid.any():
            row = int(invalid.argmax())
            return f"row {row} of {TABLE} has {column} {samples[column][row]}, which cannot be"
    if np.bincount(samples["shard"], minlength=len(sizes)).tolist() != counts:
        return f"{TABLE} has other numbers of samples a shard"
    return None


def _is_file(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and is_count(value.get("bytes"))
        and value["bytes"] <= np.iinfo(np.int64).max
        and re.fullmatch(r"[0-9a-f]{64}", str(value.get("sha256"))) is not None
    )
