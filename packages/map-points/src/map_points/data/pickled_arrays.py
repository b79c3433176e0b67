"""What numpy's pickles say of arrays, types and scalars, taken at their word only where it is harmless."""

import functools
import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

MOST_AXES = 8
PLAIN = re.compile(r"[biu]1|[iuf][248]|[SU]\d{1,4}")
TYPE_STATE = 3  # version of the state of all plain types
UNICODE_FLAGS = 8


class Refused(ValueError):
    """A pickle asks for something that is not read; the message completes "was refused (...)"."""


class Name(Enum):
    """A name that a pickle may mention; it stands for itself and is never imported."""

    NDARRAY = "numpy.ndarray"
    DTYPE = "numpy.dtype"
    RECONSTRUCT = "_reconstruct"
    SCALAR = "scalar"
    FROMBUFFER = "_frombuffer"
    ENCODE = "_codecs.encode"
    BYTES = "bytes"


NAMES = {
    ("numpy", "ndarray"): Name.NDARRAY,
    ("numpy", "dtype"): Name.DTYPE,
    ("_codecs", "encode"): Name.ENCODE,
    ("__builtin__", "bytes"): Name.BYTES,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Name.RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Name.SCALAR for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Name.FROMBUFFER for core in ("core", "_core")},
}


@dataclass(eq=False)
class PlainType:
    """A plain type of numbers or strings; its state may set the byte order and nothing else."""

    dtype: np.dtype


@dataclass(eq=False)
class Unbuilt:
    """An array whose state is still to come, and its indices in the memo."""

    memo_indices: list[int] = field(default_factory=list)


class Text(str):
    """Text that may stand for bytes, as in old pickles: encoded once, however often it is referred to."""

    @functools.cached_property
    def raw(self) -> bytes:
        return self.encode("latin-1")


def reduce_call(function: Any, arguments: Any) -> Any:
    """The value that a call of an admitted name with these arguments stands for.

    Raises:
        Refused: any other call.
    """
    if not isinstance(function, Name):
        raise Refused(f"it calls a {type(function).__name__}")
    match function, arguments:
        case Name.DTYPE, (str(code), 0, 1):
            if not PLAIN.fullmatch(code):
                raise Refused(f"it has an array of type {code!r}")
            return PlainType(np.dtype(str(code)))
        case Name.RECONSTRUCT, (Name.NDARRAY, (0,), _):
            return Unbuilt()
        case Name.SCALAR, (PlainType() as kind, raw):
            return make_array(raw, kind, (), fortran=False)[()]
        case Name.FROMBUFFER, (raw, PlainType() as kind, tuple(shape), "C" | "F" as order):
            return make_array(raw, kind, shape, fortran=order == "F")
        case Name.ENCODE, (Text() as text, "latin1"):
            return text.raw
        case Name.BYTES, ():
            return b""
    raise Refused(f"it calls {function.value} in a way that arrays do not")


def build(placeholder: Any, state: Any) -> Any:
    """The value that ``placeholder`` becomes with its state.

    Raises:
        Refused: numbers and strings have no such state.
    """
    match placeholder, state:
        case PlainType() as kind, (int(), str(order), None, None, None, int(size), int(), int(flags)):
            _check_type_state(kind.dtype, state[0], order, size, flags)
            if order in "<>":
                kind.dtype = np.dtype(order + kind.dtype.str[1:])
            return kind
        case Unbuilt(), (int(), tuple(shape), PlainType() as kind, bool() | int() as fortran, raw):
            return make_array(raw, kind, shape, fortran=bool(fortran))
    raise Refused("it sets a state that arrays of numbers do not have")


def _check_type_state(dtype: np.dtype, version: int, order: str, size: int, flags: int) -> None:
    expected = UNICODE_FLAGS if dtype.kind == "U" else 0
    if version != TYPE_STATE or order not in ("<", ">", "|", "=") or flags != expected:
        raise Refused("it sets the flags of a type")
    if size not in (-1, dtype.itemsize):
        raise Refused("it sets the size of a type")


def make_array(raw: Any, kind: PlainType, shape: tuple[Any, ...], *, fortran: bool) -> np.ndarray:
    """Make a read-only array over exactly as many bytes as it needs.

    Raises:
        Refused: anything else.
    """
    raw = raw.raw if isinstance(raw, Text) else raw
    if not isinstance(raw, bytes | memoryview):
        raise Refused(f"it has an array of {type(raw).__name__} values instead of bytes")
    if len(shape) > MOST_AXES or any(type(axis) is not int or not 0 <= axis < 2**40 for axis in shape):
        raise Refused("it has an array of an impossible shape")
    needed_bytes = math.prod(shape) * kind.dtype.itemsize
    if not needed_bytes:
        raise Refused("it has an empty array")
    if needed_bytes != len(raw):
        raise Refused(f"it has an array that needs {needed_bytes} bytes and has {len(raw)}")
    return np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")
