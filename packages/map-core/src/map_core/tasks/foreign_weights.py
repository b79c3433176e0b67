"""Weights files of other programs: files that hold no weights, wrappers around state dicts, prefixes of names."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)

WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "base_model", "teacher"),
    *("model_ema", "state_dict_ema"),  # last: used only where the raw weights are missing
)
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
BEGINNING = 4096  # bytes that are inspected
DEEPEST = 8  # wrappers around weights; a dictionary that holds itself has no end
LONGEST_HEADER = 100_000_000  # bytes, of safetensors


def looks_like(file: Path) -> str | None:
    """Say what a file without weights is, judging by its beginning; None where it may hold weights."""
    with file.open("rb") as stream:
        beginning = stream.read(BEGINNING)
    if not beginning:
        return "an empty file"
    if beginning.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS: fetch the file itself with git lfs pull"
    start = beginning.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page: a download that ended at a web page"
    if start.startswith(b"<?xml"):
        return "XML: a download that was refused"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in beginning) and is_text(beginning):
        return "text"
    return None


def is_text(beginning: bytes) -> bool:
    """Whether bytes are UTF-8, except for a last character that is cut off."""
    try:
        beginning.decode()
    except UnicodeDecodeError as error:
        return len(beginning) == BEGINNING and error.start > BEGINNING - 4
    return True


def is_safetensors(file: Path) -> bool:
    """Whether a file begins as safetensors do, with the length of a JSON header, whatever its name."""
    with file.open("rb") as stream:
        length, header = stream.read(8), stream.read(1)
    return header == b"{" and int.from_bytes(length, "little") <= LONGEST_HEADER


def other_archive(file: Path) -> str | None:
    """Say what a zip archive of another program than ``torch.save`` is, and the cure; None for any other file."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "a TorchScript archive, which holds a program: save the state_dict() of torch.jit.load(...) with "
            "torch.save and give that file"
        )
    if names and all(name.endswith(".npy") for name in names):
        return (
            "an .npz archive of numpy, whose names are not known here: if timm reads it (create_model(name, "
            "checkpoint_path=...)), save the model's state_dict() with torch.save and give that file"
        )
    return None


def unwrapped(state: Any, file: Path) -> Any:
    """Return the state dict inside the wrappers that training programs put around it, and log which were removed."""
    path, alternatives = list[str](), list[str]()
    while isinstance(state, Mapping) and len(path) < DEEPEST:
        wrappers = [key for key in WRAPPERS if isinstance(state.get(key), Mapping) and state[key]]
        if not wrappers:
            break
        alternatives += [".".join([*path, key]) for key in wrappers[1:]]
        path.append(wrappers[0])
        state = state[wrappers[0]]
    if path:
        hint = f", not from {' or '.join(alternatives)}, which is there too: save that alone to take it"
        log.warning("%s: weights taken from %s%s", file, ".".join(path), hint if alternatives else "")
    return state


def without_prefix(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Return a state dict without the prefixes that all of its names share, and log which were removed."""
    removed, bare = "", dict(state)
    while bare and (prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in bare)), None)):
        removed += prefix
        bare = {key.removeprefix(prefix): value for key, value in bare.items()}
    if removed:
        log.warning("%s: all names begin with %s, which was taken off", source, removed)
    return bare
