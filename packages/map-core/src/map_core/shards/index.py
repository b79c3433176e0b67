"""The index of a set in shards: which shards there are, and where in them each sample lies.

Three files: ``index.json`` names shards, classes and the other two files, with their checksums; ``samples.table`` has
a row for each sample (an array of numpy's, under an ending that nobody takes for an image); ``names.txt`` has the
samples' names, a line each.
"""

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
from map_core.reading import open_file, read_small
from map_core.runs.files import replacing, save_text

INDEX, TABLE, NAMES = "index.json", "samples.table", "names.txt"
FORMAT = "map shards 1"
SAMPLE = np.dtype(
    [
        ("shard", "<i4"),
        ("offset", "<i8"),  # of the sample's bytes in its shard
        ("bytes", "<i8"),
        ("crc32", "<u4"),  # of the bytes
        ("label", "<i4"),  # place in the classes; 0 where there are none
        ("name", "<i8"),  # where its line in names.txt begins
    ]
)
BLOCK = 2**20
MOST = 2**28  # bytes of an index.json: of about a million shards
NO_INDEX = "write it with the command shard, or, for tar files that are there already, with shard --index"


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        name: Of the file, in the folder of the index.
        bytes: Its size.
        samples: How many it holds.
        sha256: Of the whole file.
    """

    name: str
    bytes: int
    samples: int
    sha256: str


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """What lies where in a set of shards.

    Attributes:
        shards: The tar files.
        classes: Names of the classes in the order of the labels; () without labels.
        samples: A row of :data:`SAMPLE` for each sample, in the order of the set.
        names: The bytes of names.txt.
        digest: Checksum of index.json, and so, through the checksums in it, of everything.
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
        """Of all samples, int64; zeros without classes."""
        return self.samples["label"].astype(np.int64)

    def name(self, number: int) -> str:
        """The sample's name: the path that its file had, or the key that it has in its shard."""
        starts = self.samples["name"]
        end = int(starts[number + 1]) if number + 1 < len(starts) else len(self.names)
        return bytes(self.names[int(starts[number]) : end - 1]).decode("utf-8", "surrogateescape")

    def shard_of(self, number: int) -> Shard:
        """The shard that holds a sample."""
        return self.shards[int(self.samples["shard"][number])]


def save_index(
    folder: Path, shards: Sequence[Shard], classes: Sequence[str], samples: np.ndarray, names: Sequence[str]
) -> None:
    """Write the three files; index.json last, as the set is complete with it."""
    lines = [name.encode("utf-8", "surrogateescape") + b"\n" for name in names]
    samples = samples.copy()
    samples["name"] = np.cumsum([0, *map(len, lines[:-1])]) if lines else 0
    with replacing(folder / TABLE) as partial, partial.open("wb") as file:
        np.save(file, samples, allow_pickle=False)
    with replacing(folder / NAMES) as partial:
        partial.write_bytes(b"".join(lines))
    counts = np.bincount(samples["label"], minlength=len(classes)).tolist()
    account = {
        "format": FORMAT,
        "samples": len(samples),
        "classes": list(classes),
        "samples_of_class": dict(zip(classes, counts, strict=True)) if classes else {},
        "files": {name: checksum_of(folder / name) for name in (TABLE, NAMES)},
        "shards": [vars(shard) for shard in shards],
    }
    save_text(folder / INDEX, json.dumps(account, indent=1) + "\n")


def save_splits(folder: Path, splits: Sequence[str]) -> None:
    """Write the index.json of a folder whose subfolders are sets in shards of their own."""
    save_text(folder / INDEX, json.dumps({"format": FORMAT, "splits": list(splits)}, indent=1) + "\n")


def read_splits(folder: Path, where: str) -> tuple[str, ...] | None:
    """The subfolders that an index.json names as splits, or None where it describes shards.

    Args:
        folder: Where the file lies.
        where: What messages call its folder.

    Raises:
        UserError: there is no index, or it is none.
    """
    splits = _account(folder, where)[0].get("splits")
    if splits is None:
        return None
    if not isinstance(splits, list) or not splits or not all(map(is_plain_name, splits)):
        raise _fault(where, "its splits are no names of folders")
    return tuple(splits)


def files_of(folder: Path, where: str) -> dict[str, dict[str, Any]]:
    """Size and checksum of the two files beside an index.json.

    Raises:
        UserError: it has none.
    """
    files = _account(folder, where)[0].get("files")
    if (
        not isinstance(files, dict)
        or files.keys() != {TABLE, NAMES}
        or not all(map(_is_file, files.values()))
    ):
        raise _fault(where, f"files is not size and sha256 of {TABLE} and {NAMES}")
    return files


def read_index(folder: Path, where: str | None = None) -> ShardIndex:
    """Read an index and take nothing in it on trust.

    Args:
        folder: Where its three files lie.
        where: What messages call that, where it is a copy.

    Raises:
        UserError: there is none, or something in it cannot be.
    """
    where = where or str(folder)
    account, digest = _account(folder, where)
    for name, stated in files_of(folder, where).items():
        if not (folder / name).is_file():
            raise UserError(f"{where} has an {INDEX} but no {name}: copy the whole folder again")
        if checksum_of(folder / name) != stated:
            raise UserError(
                f"{where}/{name} is not the file that {INDEX} was written with: copy the whole folder again, or write "
                "the shards anew"
            )
    try:
        samples = np.lib.format.open_memmap(folder / TABLE, mode="r")  # reads nothing but plain numbers
        names = np.memmap(folder / NAMES, mode="r") if account.get("samples") else np.zeros(0, np.uint8)
    except Exception as error:  # numpy parses the header as Python, and passes on whatever that stumbles on
        raise _fault(where, f"{TABLE}: {reason(error)}") from error
    fault = _fault_of_account(account) or _fault_of_samples(account, samples, names)
    if fault is not None:
        raise _fault(where, fault)
    shards = tuple(Shard(**shard) for shard in account["shards"])
    return ShardIndex(shards, tuple(account["classes"]), samples, names, digest)


def is_plain_name(name: object) -> bool:
    """Whether a name is that of a file in a folder, and leads nowhere else."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(character in name for character in "/\\\0:")
        and name.isprintable()
    )


def checksum_of(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _account(folder: Path, where: str) -> tuple[dict[str, Any], str]:
    """The content of index.json, and its checksum."""
    try:
        content = read_small(folder / INDEX, MOST)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{where} has no {INDEX}, which shards need: {NO_INDEX}") from error
    except OSError as error:
        raise UserError(f"cannot read {where}/{INDEX} ({error.strerror}): make it readable") from error
    try:
        account = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _fault(where, "no JSON") from error
    if not isinstance(account, dict) or account.get("format") != FORMAT:
        raise _fault(where, f"format is not {FORMAT!r}")
    return account, hashlib.sha256(content).hexdigest()


def _fault(where: str, fault: str) -> UserError:
    return UserError(f"{where}/{INDEX} is no index of shards ({fault}): {NO_INDEX}")


def _fault_of_account(account: dict[str, Any]) -> str | None:
    """Say what in an index.json is missing or of another type, or return None."""
    shards, classes = account.get("shards"), account.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return "classes are no names"
    if len(set(classes)) < len(classes):
        return "two classes have one name"
    if not isinstance(shards, list):
        return "shards are no list"
    for number, shard in enumerate(shards):
        if not isinstance(shard, dict) or shard.keys() != Shard.__annotations__.keys() or not _is_file(shard):
            return f"shard {number} has not name, bytes, samples and sha256"
        if not is_plain_name(shard["name"]):
            return f"shard {number} is called {shard['name']!r}, which is no file in the folder"
        if not is_count(shard["samples"]):
            return f"shard {number} has {shard['samples']!r} samples"
    if len({shard["name"] for shard in shards}) < len(shards):
        return "two shards have one name"
    return None


def _fault_of_samples(account: dict[str, Any], samples: np.ndarray, names: np.ndarray) -> str | None:
    """Say which row of samples.table points at nothing, or return None."""
    if samples.dtype != SAMPLE or samples.ndim != 1:
        return f"{TABLE} has not the columns {', '.join(SAMPLE.names or ())}"
    if account.get("samples") != len(samples) or not len(samples):
        return f"samples is {account.get('samples')!r}, and {TABLE} has {len(samples)} rows"
    sizes = np.array([shard["bytes"] for shard in account["shards"]], dtype=np.int64)
    counts = [shard["samples"] for shard in account["shards"]]
    starts = np.append(samples["name"], len(names))
    rules: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("shard", lambda: (samples["shard"] >= 0) & (samples["shard"] < len(sizes))),
        ("offset", lambda: (samples["offset"] >= 0) & (samples["bytes"] >= 0)),
        ("bytes", lambda: samples["offset"] <= sizes[samples["shard"]] - samples["bytes"]),
        ("label", lambda: (samples["label"] >= 0) & (samples["label"] < max(1, len(account["classes"])))),
        ("name", lambda: (starts[:1] == 0).all() & (np.diff(starts) > 0)),
    )
    for column, holds in rules:
        wrong = ~np.asarray(holds())
        if wrong.any():
            row = int(wrong.argmax())
            return f"row {row} of {TABLE} has {column} {samples[column][row]}, which cannot be"
    if np.bincount(samples["shard"], minlength=len(sizes)).tolist() != counts:
        return f"{TABLE} has other numbers of samples a shard"
    return None


def _is_file(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and is_count(value.get("bytes"))
        and re.fullmatch(r"[0-9a-f]{64}", str(value.get("sha256"))) is not None
    )
