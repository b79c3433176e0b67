"""Checkpoints of mmengine, read without running what they hold; importing this module makes mmengine read so.

mmengine falls back to unpickling whatever a file holds when a weights-only reading fails, and lets numpy rebuild data
types from a file, which is not memory-safe. ``--checkpoint``, ``load_from``, ``--resume`` and ``init_cfg`` all come to
the loaders that are registered here instead: tensors, plain values, and what mmengine's runner writes beside them
(numbers and flat arrays of numpy in its log buffers), each rebuilt by a function of this module or of
:mod:`map_core.tasks.torch_files`.
"""

from typing import Any

from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from map_core.errors import UserError
from map_core.paths import expanded
from map_core.tasks.torch_files import FlatArray, Harmless, NumberType, Refused, read_torch

STATISTICS = ("min", "max", "current", "mean")
REMOTE = (
    *("http://", "https://", "pavi://", "modelzoo://", "torchvision://", "open-mmlab://", "openmmlab://"),
    *("mmcls://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://"),
)


class LogBuffer:
    """mmengine's log buffer as a pickle describes it; ``value`` is mmengine's, with mmengine's statistics."""

    value: HistoryBuffer

    def __setstate__(self, state: dict[str, Any]) -> None:
        histories = [state[name].value for name in ("_log_history", "_count_history")]
        self.value = HistoryBuffer(*histories, max_length=int(state["max_length"]))


def statistic(kind: type, name: str) -> str:
    """What stands for ``getattr``, by which log buffers name their statistics: nothing is looked up.

    Raises:
        Refused: another use of it.
    """
    if kind is not LogBuffer or name not in STATISTICS:
        raise Refused(f"a look-up of {name!r}")
    return name


LOG_BUFFERS: tuple[Harmless, ...] = (
    (LogBuffer, "mmengine.logging.history_buffer.HistoryBuffer"),
    *((statistic, f"{module}.getattr") for module in ("builtins", "__builtin__")),
)


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
        checkpoint = read_torch(file, harmless=LOG_BUFFERS, map_location=map_location)
        _restore(checkpoint)
    except Refused as error:
        raise UserError(
            f"{file} was not loaded: besides weights it holds {error}, which could run code; give a "
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
                raise Refused("numpy's objects where mmengine writes none")
            else:
                holder[key] = value.value
