"""Checkpoints of mmengine, read without running what they hold; importing this module makes mmengine read so.

mmengine falls back to unpickling whatever a file holds when a weights-only reading fails, and lets numpy rebuild data
types from a file, which is not memory-safe. ``--checkpoint``, ``load_from``, ``--resume`` and ``init_cfg`` all come to
the loaders that are registered here instead: tensors, plain values, and what mmengine's runner writes beside them
(numbers and flat arrays of numpy in its log buffers), each rebuilt by a function of this module.
"""

import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from map_core.errors import UserError
from map_core.paths import expanded

NUMBER = re.compile(r"[<>|=]?([biuf])([1248])")
STATISTICS = ("min", "max", "current", "mean")
REMOTE = (
    *("http://", "https://", "pavi://", "modelzoo://", "torchvision://", "open-mmlab://", "openmmlab://"),
    *("mmcls://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://"),
)


class NumberType:
    """numpy's data type of a plain number, made from its name alone: what a pickle adds is checked, not obeyed."""

    def __init__(self, name: str, align: bool = False, copy: bool = True) -> None:
        if not NUMBER.fullmatch(name):
            raise pickle.UnpicklingError(f"numpy's data type {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names, fields, size, alignment, flags = state[:8]
        if order not in ("<", ">", "|", "=") or (subarray, names, fields, size, alignment, flags) != (
            *(None, None, None, -1, -1, 0),
        ):
            raise pickle.UnpicklingError("a structured data type of numpy")
        self.dtype = self.dtype.newbyteorder(order)


class FlatArray:
    """An array of numbers that a pickle describes; ``value`` is numpy's."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, number, fortran, content = state
        values = np.frombuffer(_content(content), dtype=_dtype(number)).copy()
        self.value = values.reshape(shape, order="F" if fortran else "C")


class LogBuffer:
    """mmengine's log buffer as a pickle describes it; ``value`` is mmengine's, with mmengine's statistics."""

    value: HistoryBuffer

    def __setstate__(self, state: dict[str, Any]) -> None:
        histories = [state[name].value for name in ("_log_history", "_count_history")]
        self.value = HistoryBuffer(*histories, max_length=int(state["max_length"]))


def statistic(kind: type, name: str) -> str:
    """What stands for ``getattr``, by which log buffers name their statistics: nothing is looked up.

    Raises:
        UnpicklingError: another use of it.
    """
    if kind is not LogBuffer or name not in STATISTICS:
        raise pickle.UnpicklingError(f"a look-up of {name!r}")
    return name


def empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> FlatArray:
    """What stands for ``numpy._reconstruct``, which makes an empty array that the pickle then fills."""
    if kind is not FlatArray:
        raise pickle.UnpicklingError("another array than numpy.ndarray")
    return FlatArray()


def scalar(number: NumberType, content: bytes) -> Any:
    """What stands for ``numpy.scalar``."""
    return np.frombuffer(_content(content), dtype=_dtype(number), count=1)[0]


def no_bytes() -> bytes:
    """What stands for ``bytes``, which old pickles call for an empty array; with a number it would take memory."""
    return b""


def _content(content: Any) -> bytes:
    if not isinstance(content, bytes):
        raise pickle.UnpicklingError("an array without bytes")
    return content


def _dtype(number: Any) -> np.dtype:
    if not isinstance(number, NumberType):
        raise pickle.UnpicklingError("an array of objects")
    return number.dtype


# name in the file -> what is called for it
HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (LogBuffer, "mmengine.logging.history_buffer.HistoryBuffer"),
    (NumberType, "numpy.dtype"),
    (FlatArray, "numpy.ndarray"),
    *((no_bytes, f"{module}.bytes") for module in ("builtins", "__builtin__")),
    *((statistic, f"{module}.getattr") for module in ("builtins", "__builtin__")),
    *((empty_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


@CheckpointLoader.register_scheme(prefixes="", force=True)
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint of mmengine, or a state dict, without running anything that the file holds.

    Raises:
        UserError: no such file, a broken one, or one that holds more than tensors, plain values and log buffers.
    """
    file = expanded(filename)
    if not file.is_file():
        raise UserError(f"no checkpoint at {file}; give a file that mim train wrote, such as iter_500.pth")
    try:
        with torch.serialization.safe_globals(HARMLESS):
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
        _restore(checkpoint)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} was not loaded: besides weights it holds {_culprit(str(error))}, which could run code; give a "
            "checkpoint that mim train wrote, or save its state_dict alone"
        ) from error
    except Exception as error:  # a broken file can raise anything
        raise UserError(
            f"{file} cannot be read as a checkpoint ({str(error).splitlines()[0] if str(error) else 'cut off'}); it "
            "may be cut off or of another kind: copy it again"
        ) from error
    return _without_code(checkpoint)


@CheckpointLoader.register_scheme(prefixes=REMOTE, force=True)
def load_from_elsewhere(filename: str, map_location: Any = None) -> Any:
    """Refuse what mmengine would download and unpickle.

    Raises:
        UserError: always.
    """
    raise UserError(f"checkpoint {filename} is not on this machine; download it and give its path")


def _without_code(checkpoint: Any) -> Any:
    """Drop ``meta.config``, which no runner of today writes and which resuming would run as Python."""
    meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop("config", None)
    return checkpoint


def _culprit(message: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)|WeightsUnpickler error:\s+([^\n]+)", message)
    return next(filter(None, found.groups())) if found else message.splitlines()[0]


def _restore(checkpoint: Any) -> None:
    """Put the values of :class:`FlatArray` and :class:`LogBuffer` in their places, each container once."""
    seen, left = set(), [checkpoint]
    while left:
        holder = left.pop()
        if id(holder) in seen or not isinstance(holder, dict | list | tuple):
            continue
        seen.add(id(holder))
        for key, value in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
            if not isinstance(value, FlatArray | LogBuffer | NumberType):
                left.append(value)
            elif isinstance(value, NumberType) or isinstance(holder, tuple):
                raise pickle.UnpicklingError("numpy's objects where mmengine writes none")
            else:
                holder[key] = value.value
