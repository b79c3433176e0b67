"""Pickled arrays without the danger: only numpy arrays and plain containers are built."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core import multiarray, numeric

from map_core.errors import UserError


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """What pickles of protocol 2 call to make bytes; any other codec is refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"codec {encoding}")
    return text.encode("latin1")


ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1_bytes,
    **{
        (f"numpy.{core}.multiarray", name): getattr(multiarray, name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    **{
        (f"numpy.{core}.numeric", "_frombuffer"): numeric._frombuffer  # type: ignore[attr-defined]
        for core in ("core", "_core")
    },
}


class ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays, numbers, strings, lists, tuples and dicts, and refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ADMITTED[module, name]


def read_pickle(path: Path) -> Any:
    """Read a pickle of arrays in plain containers.

    Raises:
        UserError: it holds anything else, or is cut off.
    """
    data = path.read_bytes()
    try:
        return ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # what a broken pickle raises is anybody's guess
        raise UserError(
            f"{path} was refused ({error}): only numpy arrays and plain containers are read from pickles, "
            "because others can run code; get the published file"
        ) from error
