"""Files that ``torch.save`` wrote, read without running what they hold.

Training programs store numpy's numbers and arrays and argparse's options beside the weights. Where a file calls a
function to rebuild these, it gets a stand-in from this module, which looks nothing up.
"""

import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from map_core.errors import in_one_line

NUMBER = re.compile(r"[<>|=]?([biuf])([1248])")

Harmless = Callable[..., Any] | tuple[Callable[..., Any], str]  # the stand-in, and the name in the file


class Refused(Exception):
    """A file holds something that loading could run; the message names it."""


class NumberType:
    """numpy's data type of a plain number, made from its name alone: what a pickle adds is checked, not obeyed."""

    def __init__(self, name: str, align: bool = False, copy: bool = True) -> None:
        if not NUMBER.fullmatch(name):
            raise Refused(f"numpy's data type {in_one_line(repr(name))}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names, fields, size, alignment, flags = state[:8]
        if order not in ("<", ">", "|", "=") or (subarray, names, fields, size, alignment, flags) != (
            *(None, None, None, -1, -1, 0),
        ):
            raise Refused("a structured data type of numpy")
        self.dtype = self.dtype.newbyteorder(order)


class FlatArray:
    """An array of numbers that a pickle describes; ``value`` is the numpy array."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, number, fortran, content = state
        values = np.frombuffer(_content(content), dtype=_dtype(number)).copy()
        self.value = values.reshape(shape, order="F" if fortran else "C")


class Options:
    """Stands in for ``argparse.Namespace``, without the options, which nothing here needs."""

    def __setstate__(self, state: Any) -> None:
        pass


def empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> FlatArray:
    """Stand in for ``numpy._reconstruct``, which makes an empty array that the pickle then fills."""
    if kind is not FlatArray:
        raise Refused("another array than numpy.ndarray")
    return FlatArray()


def scalar(number: Any, content: Any) -> Any:
    """Stand in for ``numpy.scalar``."""
    return np.frombuffer(_content(content), dtype=_dtype(number), count=1)[0]


def no_bytes() -> bytes:
    """Stand in for ``bytes``, which old pickles call for an empty array; with a number it would allocate memory."""
    return b""


def _content(content: Any) -> bytes:
    if not isinstance(content, bytes):
        raise Refused("an array without bytes")
    return content


def _dtype(number: Any) -> np.dtype:
    if not isinstance(number, NumberType):
        raise Refused("an array of objects")
    return number.dtype


HARMLESS: tuple[Harmless, ...] = (
    (NumberType, "numpy.dtype"),
    (FlatArray, "numpy.ndarray"),
    (Options, "argparse.Namespace"),
    *((no_bytes, f"{module}.bytes") for module in ("builtins", "__builtin__")),
    *((empty_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
)


def read_torch(file: Path, *, harmless: Sequence[Harmless] = (), map_location: Any = "cpu") -> Any:
    """Read tensors, plain values, and stand-ins for what :data:`HARMLESS` names.

    Args:
        file: What ``torch.save`` wrote.
        harmless: More stand-ins.
        map_location: As ``torch.load`` takes it.

    Raises:
        Refused: it holds anything else.
        Exception: a broken file raises whatever the reader stumbles on.
    """
    try:
        with torch.serialization.safe_globals([*HARMLESS, *harmless]):
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = _culprit(str(error))
        if culprit.startswith("Unsupported operand"):
            raise ValueError(culprit) from error
        raise Refused(culprit) from error


def _culprit(message: str) -> str:
    """What torch refused in a file, from its message: a Python name, or else torch's own words."""
    match = re.search(r"GLOBAL (\S+)", message) or re.search(r"WeightsUnpickler error:\s+([^\n]+)", message)
    return in_one_line(match[1] if match else message.splitlines()[0])
