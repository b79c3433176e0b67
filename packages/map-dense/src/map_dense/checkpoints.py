"""Reading mmengine's checkpoints without running code from them; importing this module makes mmengine do so.

mmengine falls back to full unpickling when a weights-only load fails, and lets numpy rebuild data types from a file,
which is not memory-safe. ``--checkpoint``, ``load_from``, ``--resume`` and ``init_cfg`` all go through the loaders that
are registered here instead. They read tensors, plain values, and what mmengine's runner writes beside them (numbers and
flat arrays of numpy in its log buffers), each rebuilt by a function of this module or of
:mod:`map_core.tasks.torch_files`.
"""

from typing import Any

from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from map_core.errors import UserError
from map_core.paths import expand_user
from map_core.tasks.torch_files import FlatArray, Harmless, NumberType, Refused, read_torch

STATISTICS = ("min", "max", "current", "mean")
REMOTE = (
    *("http://", "https://", "pavi://", "modelzoo://", "torchvision://", "open-mmlab://", "openmmlab://"),
    *("mmcls://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://"),
)


class LogBuffer:
    """Stands for mmengine's log buffer in a pickle; ``value`` is the real one, with mmengine's statistics."""

    value: HistoryBuffer

    def __setstate__(self, state: dict[str, Any]) -> None:
        histories = [state[name].value for name in ("_log_history", "_count_history")]
        self.value = HistoryBuffer(*histories, max_length=int(state["max_length"]))


def statistic(kind: type, name: str) -> str:
    """Stands for ``getattr``, by which log buffers name their statistics: nothing is looked up.

    Raises:
        Refused: any other use of ``getattr``.
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
    """Read a checkpoint of mmengine, or a state dict, without running any code from the file.

    Raises:
        UserError: no such file, a broken one, or one that holds more than tensors, plain values and log buffers.
    """
    file = expand_user(filename)
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
    return _drop_config_code(checkpoint)


@CheckpointLoader.register_scheme(prefixes=REMOTE, force=True)
def load_from_elsewhere(filename: str, map_location: Any = None) -> Any:
    """Refuse an address that mmengine would download and unpickle.

    Raises:
        UserError: always.
    """
    raise UserError(f"checkpoint {filename} is not on this machine; download it and give its path")


def _drop_config_code(checkpoint: Any) -> Any:
    """Drop ``meta.config``, which current runners no longer write and which resuming would run as Python."""
    meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop("config", None)
    return checkpoint


def _restore(checkpoint: Any) -> None:
    """Replace each :class:`FlatArray` and :class:`LogBuffer` by its value, in place; visit each container once."""
    visited, pending = set(), [checkpoint]
    while pending:
        container = pending.pop()
        if id(container) in visited or not isinstance(container, dict | list | tuple):
            continue
        visited.add(id(container))
        for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
            if not isinstance(value, FlatArray | LogBuffer | NumberType):
                pending.append(value)
            elif isinstance(value, NumberType) or isinstance(container, tuple):
                raise Refused("numpy's objects where mmengine writes none")
            else:
                container[key] = value.value
