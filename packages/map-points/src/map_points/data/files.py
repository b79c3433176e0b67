"""Files that strangers wrote: only regular ones are opened, and every error names its file."""

import contextlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from map_core.errors import UserError, abbreviate, in_one_line

LONGEST_NAME = 255  # characters in a file name
# a run is resumed only on as many clouds as it began with
START_ANEW = "a run that trains on it then starts anew, with another --out"
BROKEN_CLOUD = f"repair it, or remove it ({START_ANEW})"
MISSING_FILE = "copy or download it again"
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
UTF16 = (b"\xff\xfe", b"\xfe\xff")
BEGINNINGS = {
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"version https://git-lfs": "a pointer of Git LFS (run git lfs pull)",
    b"\x1f\x8b": "a gzip archive",
    b"\xfd7zxz": "an xz archive",
}


def require_existing(path: Path, what: str = "", *, cure: str | None = None) -> Path:
    """Return ``path``; ``what`` says what ``--data.root`` must name, unless another ``cure`` is given.

    Raises:
        UserError: it does not exist, or cannot be examined.
    """
    with reading(path):
        if not path.exists():
            raise UserError(f"{path} does not exist; {cure or f'--data.root must name {what}'}")
    return path


def require_root(root: Path, what: str, *parts: str) -> Path:
    """Return the folder of a data set if it holds any of its ``parts``, names or patterns of names.

    ``what`` says what ``--data.root`` must name.

    Raises:
        UserError: there is no such folder, or it holds none of them.
    """
    require_existing(root, what)
    with reading(root):
        if not any(any(root.glob(part)) for part in parts):
            found = "is a file"
            if root.is_dir():
                found = f"holds {abbreviate(sorted(os.listdir(root))) or 'nothing'}"
            raise UserError(f"{root} {found}; --data.root must name {what}")
    return root


def require_listed(paths: Sequence[Path], listing: Path) -> None:
    """Check that the files named by a list are there, with one look into each folder.

    Raises:
        UserError: some are not; the message has their number and the first of them.
    """
    names: dict[Path, set[str]] = {}
    for folder in {path.parent for path in paths}:
        with reading(folder):
            names[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
    # the second look is for file systems that take names in another case
    missing = [path for path in paths if path.name not in names[path.parent] and not os.path.exists(path)]
    if missing:
        raise UserError(
            f"{listing} lists {len(paths)} clouds, and {len(missing)} cannot be found, the first being {missing[0]}; "
            "copy or download them again, or take them out of the list"
        )


def require_regular(path: Path) -> Path:
    """Return ``path`` if it is a regular file (or a link to one): a pipe or device may never end.

    Raises:
        UserError: it is not.
    """
    with reading(path):
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:
            raise UserError(f"{path} is {KINDS.get(kind, 'no regular file')}; give a regular file")
    return path


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; errors while it is read are reported as by :func:`reading`."""
    with reading(require_regular(path)), path.open("rb") as file:
        yield file


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any exception while ``path`` is read into one sentence that names it.

    Raises:
        UserError: in place of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # no parser promises which exceptions it raises on a broken file
        raise UserError(
            f"cannot read {path} ({_reason(path, error)}); copy or download it again, or take it out of the data "
            f"({START_ANEW})"
        ) from error


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.errno:
        return error.strerror
    message = in_one_line(str(error)) or type(error).__name__
    return message + looks_like(path)


def looks_like(path: Path) -> str:
    """``", it looks like an HTML page"`` for content that is often saved under a wrong name; else empty."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            head = file.read(100).lstrip().lower()
    except (OSError, ValueError):
        return ""
    if not head:
        return ", it is empty"
    return next(
        (f", it looks like {what}" for begin, what in BEGINNINGS.items() if head.startswith(begin)), ""
    )


def read_text(path: Path) -> str:
    """Read UTF-8 (or UTF-16 with its mark), else Latin-1; a byte order mark is left out.

    Raises:
        UserError: there is no such file, or it is not regular.
    """
    require_existing(path, cure=MISSING_FILE)
    with open_regular(path) as file:
        data = file.read()
        if data.startswith(UTF16):
            return data.decode("utf-16")
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode("utf-8-sig")
        return data.decode("latin-1")


def read_lines(path: Path) -> dict[int, str]:
    """Read the lines of a list that are not blank, by line number, from 1.

    Raises:
        UserError: there is no such file, or it is not regular.
    """
    lines = enumerate(read_text(path).splitlines(), start=1)
    return {number: line.strip() for number, line in lines if line.strip()}


def read_names(path: Path) -> tuple[str, ...]:
    """Read a list of class names.

    Raises:
        UserError: it is missing or empty, or a name appears twice.
    """
    return check_names(read_lines(path).values(), str(path))


def check_names(names: Iterable[str], source: str) -> tuple[str, ...]:
    """Return class names unchanged.

    Raises:
        UserError: there are none, one has control characters, or one appears twice.
    """
    counts = Counter(names)
    if not counts:
        raise UserError(f"{source} has no class names; get the list that belongs to this data")
    if invalid := next(
        (name for name in counts if any(unicodedata.category(c) in ("Cc", "Cs") for c in name)), None
    ):
        raise UserError(
            f"{source} has the class {in_one_line(invalid)!r}; names must not have control characters"
        )
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise UserError(f"{source} has the class {in_one_line(name)!r} {count} times; name every class once")
    return tuple(counts)


def path_below(root: Path, name: str, source: str) -> Path:
    """Return the file below ``root`` that a list names.

    Raises:
        UserError: the name leads out of the folder, or is not a file name; ``source`` is the list and its line.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/":
        raise UserError(
            f"{source} names {in_one_line(name)!r}, which leads out of {root}; name files inside the folder"
        )
    if not name.isprintable() or max(map(len, parts)) > LONGEST_NAME:
        raise UserError(f"{source} names {in_one_line(name)!r}, which is not a file name; correct the list")
    return root.joinpath(*parts)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder, but not what is hidden (its name begins with a dot).

    Links are followed, and every real folder is visited once.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"cannot read the folder {error.filename} ({error.strerror}); allow it or move it away"
        )

    visited: set[tuple[int, int]] = set()
    for directory, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        with contextlib.suppress(OSError):  # a folder that vanishes in the meantime has no files
            status = os.stat(directory)
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = sorted(name for name in names if not name.startswith("."))
        yield from (path for name in visible if (path := Path(directory, name)).is_file())
