"""Weights as others keep them: what is no weights file at all, wrappers around state dicts, prefixes of names."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

log = logging.getLogger(__name__)

WRAPPERS = ("model", "state_dict", "model_state_dict", "base_model", "teacher")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
BEGINNING = 4096  # bytes that are looked at


def looks_like(file: Path) -> str | None:
    """Say what a file is that holds no weights, going by its beginning; None where it may hold some."""
    with file.open("rb") as opened:
        beginning = opened.read(BEGINNING)
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
    """Whether bytes are UTF-8, but for a last character that is cut off."""
    try:
        beginning.decode()
    except UnicodeDecodeError as error:
        return len(beginning) == BEGINNING and error.start > BEGINNING - 4
    return True


def unwrapped(state: Any, file: Path) -> Any:
    """Return the state dict inside the wrappers that training programs put around it, and say which were taken off."""
    taken = []
    while isinstance(state, Mapping):
        inner = next((key for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        taken.append(inner)
        state = state[inner]
    if taken:
        log.warning("%s: weights taken from %s", file, ".".join(taken))
    return state


def without_prefix(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Return a state dict without the prefixes that all of its names share, and say which were taken off."""
    taken, bare = "", dict(state)
    while bare and (prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in bare)), None)):
        taken += prefix
        bare = {key.removeprefix(prefix): value for key, value in bare.items()}
    if taken:
        log.warning("%s: all names begin with %s, which was taken off", file, taken)
    return bare
