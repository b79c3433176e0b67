"""Checkpoints as directories that are either complete or absent.

``checkpoints/step_00000123/`` is written under a temporary name, synced to disk with a manifest of its files'
sizes and SHA-256 sums, and renamed. A reader trusts a directory only if it agrees with its manifest.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from map_core.errors import UserError, in_one_line, reason
from map_core.reading import read_small, sha256
from map_core.runs.files import is_full, save_json, save_tensors, sync

MANIFEST = "manifest.json"
WRITING, REMOVING, SUPERSEDED = ".writing_", ".removing_", "superseded_"  # prefixes of names
NAME = re.compile(r"step_([0-9]{8,})")  # other names beside them, such as step_best, are somebody else's
Writer = Callable[[Path], None]


class Checkpoints:
    """The checkpoints of one run directory.

    Args:
        directory: where they are; created when the first is written.
        keep: how many of the newest to keep.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory, self.keep = directory, keep

    def paths(self) -> list[Path]:
        """Return the checkpoints, oldest first, usable or not."""
        return [path for _, path in self._by_step()]

    def _by_step(self, prefix: str = "") -> list[tuple[int, Path]]:
        """Step and path of the checkpoints whose names begin with ``prefix``, oldest first."""
        matches = (
            (NAME.fullmatch(path.name, len(prefix)), path) for path in self.directory.glob(f"{prefix}step_*")
        )
        return sorted((int(match[1]), path) for match, path in matches if match)

    def write(self, step: int, files: dict[str, Writer]) -> Path:
        """Write ``files`` as the checkpoint of ``step``, then remove the oldest beyond ``keep``.

        Raises:
            UserError: the disk refused; nothing half-written remains, and older checkpoints are untouched.
        """
        final = self.directory / f"step_{step:08d}"
        temporary = self.directory / f"{WRITING}{final.name}"
        try:
            self.directory.mkdir(exist_ok=True)  # the run directory itself must exist: see RunLock.check
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, write in files.items():
                write(temporary / name)
            write_manifest(temporary)
            retired = set_aside(final)  # removed after the new one has its name, as that takes long
            temporary.rename(final)
            sync(self.directory)
            shutil.rmtree(retired, ignore_errors=True)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            others = self.paths()
            raise UserError(
                f"cannot save checkpoint {final}: {error}; "
                + (f"the one before, {others[-1].name}, is unharmed" if others else "there is none before it")
                + f"; {cure(error, self.directory)}, then continue with --resume auto"
            ) from error
        for old in self.paths()[: -self.keep]:
            remove(old)
        return final

    def clear_leftovers(self) -> None:
        """Remove checkpoints that a kill left half-written or half-removed."""
        for pattern in (f"{WRITING}*", f"{REMOVING}*"):
            for path in self.directory.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def newest_usable(self) -> Path | None:
        """Return the newest checkpoint that agrees with its manifest, warning of every newer one."""
        for path in reversed(self.paths()):
            fault = find_fault(path)
            if fault is None:
                return path
            print(f"warning: skipping checkpoint {path}: {fault}", file=sys.stderr)
        return None

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints beyond ``step``, which a run resumed there would mistake for its own, the newest first.

        Those that an earlier start set aside are removed.
        """
        for _, path in self._by_step(SUPERSEDED):
            remove(path)
        for later, path in reversed(self._by_step()):
            if later > step:
                path.rename(path.with_name(SUPERSEDED + path.name))


def remove(directory: Path) -> None:
    """Remove a folder such as a checkpoint, if it exists, such that a kill never leaves half of one by its name.

    What cannot be removed, such as files that are open on a network file system, stays under the name of REMOVING.

    Raises:
        OSError: it cannot be renamed.
    """
    shutil.rmtree(set_aside(directory), ignore_errors=True)


def set_aside(directory: Path) -> Path:
    """Rename a folder, if it exists, to a name that :meth:`Checkpoints.clear_leftovers` removes; return that."""
    trash = directory.with_name(REMOVING + directory.name)
    shutil.rmtree(trash, ignore_errors=True)
    if directory.exists():
        directory.rename(trash)
    return trash


def cure(error: Exception, directory: Path) -> str:
    """What the user can do about a write that failed."""
    if is_full(error):
        return f"{free_space(directory)}: make room"
    return "check that disk"


def write_manifest(directory: Path) -> None:
    """Sync every file of ``directory``, and list their sizes and hashes in its manifest."""
    entries = {}
    for path in sorted(directory.iterdir()):
        sync(path)
        entries[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    manifest = directory / MANIFEST
    manifest.write_text(json.dumps(entries, indent=2))
    sync(manifest)
    sync(directory)


def find_fault(directory: Path) -> str | None:
    """Say why the checkpoint in ``directory`` cannot be used, or return None."""
    try:
        manifest = json.loads(read_small(directory / MANIFEST))
        for name, entry in manifest.items():
            if not name or Path(name).name != name:
                return f"{MANIFEST} names {in_one_line(name)!r}, which is not a file in it"
            size = (directory / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes where {entry['bytes']} were written"
            if sha256(directory / name) != entry["sha256"]:
                return f"the contents of {name} have changed since it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({reason(error)})"
    return None


def write_tensors(tensors: dict[str, Tensor]) -> Writer:
    """Return a writer of ``tensors``, as they then are, as safetensors; tied ones are written once per name."""
    return lambda path: save_tensors(path, tensors)


def write_pickle(state: dict[str, Any]) -> Writer:
    """Return a writer of tensors and plain values in torch's format."""

    def write(path: Path) -> None:
        try:
            with path.open("wb") as file:
                torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # the cause, which torch's message leaves out
                raise error.__context__ from error
            raise

    return write


def write_json(value: dict[str, Any]) -> Writer:
    """Return a writer of ``value`` as JSON."""
    return lambda path: save_json(path, value)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: it is not a valid one.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({reason(error)}); use another checkpoint"
        ) from error


def read_pickle(path: Path) -> dict[str, Any]:
    """Read tensors and plain values in torch's format, without running any code that the file may hold.

    Raises:
        UserError: the file holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} was refused: it does not hold just tensors and plain values, and nothing in it was run; "
            "use a checkpoint that you trust"
        ) from error


def free_space(path: Path) -> str:
    """Say how much space is left on the disk of ``path``."""
    existing = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
    return f"{shutil.disk_usage(existing).free / 1e9:.2f} GB are free there"
