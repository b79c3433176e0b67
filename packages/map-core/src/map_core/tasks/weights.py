"""Model weights as safetensors with a JSON description; nothing read from a file runs code."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from safetensors.torch import load_file
from torch import Tensor

from map_core import shipped
from map_core.errors import UserError, abbreviate, in_one_line, reason
from map_core.paths import expand_user, is_file
from map_core.reading import content_of, read_small
from map_core.runs.files import replacing, require_reachable, save_json, save_tensors
from map_core.tasks.foreign_weights import (
    WRAPPERS,
    is_safetensors,
    looks_like,
    other_archive,
    unwrapped,
    without_prefix,
)
from map_core.tasks.setting_values import fits, name_of
from map_core.tasks.torch_files import Refused, read_torch

Section = TypeVar("Section")
MODEL_FILE = shipped.MODEL
DESCRIPTION_TYPES = {
    "name": str, "arguments": dict, "holds": str, "task": str, "weights": str, "classes": list,
    "objective": dict, "head": dict, "parts": list, "preparation": dict,
}  # fmt: skip


def save_weights(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write a state dict as safetensors, with its description beside it as ``<name>.json``."""
    with replacing(path) as partial:
        save_tensors(partial, state)
    save_json(path.with_suffix(".json"), description)


def model_file(path: str | Path) -> Path:
    """Where the weights file of a run directory belongs, or the file itself.

    Raises:
        UserError: the path is too long, or leads through a folder that may not be entered.
    """
    path = expand_user(path)
    require_reachable(path)
    file = path / MODEL_FILE if path.is_dir() else path
    require_reachable(file)
    return file


def weights_file(path: str | Path) -> Path:
    """The weights file of a run directory, or the file itself.

    Raises:
        UserError: there is none, or it may not be read.
    """
    file = model_file(path)
    if not file.is_file():
        hint = (
            " (the run has not finished: resume it)" if (expand_user(path) / "checkpoints").is_dir() else ""
        )
        raise UserError(f"no weights at {file}{hint}; give a finished run's directory or a weights file")
    return file


def weights_identity(init: str | None) -> str | None:
    """Identify the weights of ``init`` by their bytes, wherever the file lies; None without ``init``."""
    return None if init is None else content_of(str(weights_file(init)))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a run directory, a safetensors file or a torch file, told apart by their content.

    Raises:
        UserError: nothing there, an unreadable file, or one that holds more than tensors, tensors without values, or
            NaN.
    """
    file = weights_file(path)
    try:
        other_kind = looks_like(file)
        if other_kind is not None:
            raise UserError(f"{file} is not a weights file (looks like {other_kind})")
        if (archive := other_archive(file)) is not None:
            raise UserError(f"{file} is {archive}")
        state: Any = load_file(file) if is_safetensors(file) else read_torch(file)
    except UserError:
        raise
    except PermissionError as error:
        raise unreadable(file, error) from error
    except Refused as error:
        raise UserError(
            f"{file} holds more than tensors and was refused: {error} could run code; save its state_dict alone, "
            "with the program that wrote it"
        ) from error
    except Exception as error:  # a broken file raises whatever the reader stumbles on
        raise UserError(
            f"{file} cannot be read as weights ({reason(error)}); it may be cut off: copy or export it again"
        ) from error
    state = unwrapped(state, file)
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        keys = (
            f"has {abbreviate([str(key) for key in state])}" if isinstance(state, Mapping) else "has no names"
        )
        raise UserError(
            f"{file} does not hold a state dict of tensors: it {keys}; expected parameter names with tensors, alone or "
            f"in {', '.join(WRAPPERS)}"
        )
    if names := [name for name, value in state.items() if value.is_meta]:
        raise UserError(
            f"{file} holds no values of {abbreviate(names)}, which were on torch's device meta: save the model again, "
            "with its weights"
        )
    if names := [name for name, value in state.items() if value.is_floating_point() and value.isnan().any()]:
        raise UserError(
            f"{file} holds NaN in {abbreviate(names)}: the training that wrote it had diverged; give an earlier "
            "checkpoint of it"
        )
    return without_prefix(state, file)


def unreadable(file: Path, error: OSError) -> UserError:
    """What to raise where the system does not let this process read a file."""
    return UserError(f"cannot read {file} ({error.strerror}): make it readable, or give another file")


def description_file(path: str | Path) -> Path:
    """Where the description of a run's model, or of a weights file, belongs.

    Raises:
        UserError: as :func:`model_file`.
    """
    return model_file(path).with_suffix(".json")


def read_description(path: str | Path) -> dict[str, Any]:
    """The JSON description beside a weights file or in a run directory; empty when there is none.

    Raises:
        UserError: the description may not be read or is not valid JSON, or one of its entries is missing or of the
            wrong type.
    """
    file = description_file(path)
    if not is_file(file):
        return {}
    try:
        description = json.loads(read_small(file))
    except PermissionError as error:
        raise unreadable(file, error) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is not valid JSON ({reason(error)}); it may be cut off: copy it or export the run again"
        ) from error
    if not isinstance(description, dict):
        raise UserError(
            f"{file} does not describe a model: it must be a mapping; copy it or export the run again"
        )
    for key, kind in DESCRIPTION_TYPES.items():
        if key in description and not isinstance(description[key], kind):
            raise UserError(
                f"{file}: {key} must be a {kind.__name__}; got {in_one_line(repr(description[key]))}; export "
                "the run again"
            )
    if not all(isinstance(name, str) for name in description.get("classes", ())):
        raise UserError(f"{file}: classes must be a list of names; export the run again")
    if description.get("holds") == "classifier" and not description.get("classes"):
        raise UserError(f"{file} describes a classifier but lacks its classes; export the run again")
    return description


def read_settings(kind: type[Section], values: Mapping[str, Any], source: str | Path) -> Section:
    """Build a configuration dataclass from a description's values.

    Raises:
        UserError: values that this version does not know, of another type, or missing.
    """
    hints, settings = get_type_hints(kind), {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    unknown = set(values) - settings.keys()
    if unknown:
        raise UserError(
            f"{source} describes settings that this version does not know: {in_one_line(', '.join(sorted(unknown)))}; "
            "read it with the version that wrote it"
        )
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in arguments.items():
        if not fits(value, hints[key]):
            raise UserError(
                f"{source} describes {key} as {in_one_line(repr(value))}, which must be {name_of(hints[key])}; "
                "export the run again"
            )
    missing = [
        name
        for name, entry in settings.items()
        if name not in arguments and entry.default is MISSING and entry.default_factory is MISSING
    ]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}; export the run again")
    return kind(**arguments)
