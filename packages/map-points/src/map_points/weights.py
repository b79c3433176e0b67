"""Model weights as safetensors with a JSON description; nothing read from a file runs code."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from map_core.errors import UserError

Settings = TypeVar("Settings")
MODEL_FILE = "model.safetensors"
# what a pretraining run does not have and a classifier starts anew
NEW_IN_CLASSIFIER = ("encoder.registers.", "head.")


def save_weights(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write a state dict as safetensors, and beside it ``<name>.json`` that says what it is."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.rename(path)
    path.with_suffix(".json").write_text(json.dumps(description, indent=2) + "\n")


def weights_file(path: str | Path) -> Path:
    """The weights file of a run directory, or the file itself.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        hint = " (the run has not finished: resume it)" if (path / "checkpoints").is_dir() else ""
        raise UserError(f"no weights at {file}{hint}; give a finished run's directory or a weights file")
    return file


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a run directory or a safetensors file.

    Raises:
        UserError: nothing there, or an unreadable file.
    """
    file = weights_file(path)
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read as safetensors ({error}); it may be cut off: copy or export it again"
        ) from error


def read_description(path: str | Path) -> dict[str, Any]:
    """The JSON description beside a weights file or in a run directory; empty when there is none.

    Raises:
        UserError: no weights there, or the description is no JSON.
    """
    file = weights_file(path).with_suffix(".json")
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise UserError(
            f"{file} is no JSON ({error}); it may be cut off: copy it or export the run again"
        ) from error


def read_settings(kind: type[Settings], values: Mapping[str, Any], source: str | Path) -> Settings:
    """Make a configuration dataclass of a description's values.

    Raises:
        UserError: values that this version does not know.
    """
    unknown = set(values) - {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise UserError(
            f"{source} describes settings that this version does not know: {', '.join(sorted(unknown))}; "
            "read it with the version that wrote it"
        )
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def load_init(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Start a model from a pretraining run or weights file; return the names of what stays new.

    Exactly these may be missing: the class token with its position, and the head. A head for another number
    of classes is started anew.

    Raises:
        UserError: any other missing, unused or misshaped key.
    """
    state, own = read_weights(path), model.state_dict()
    if any(key in own and state[key].shape != own[key].shape for key in state if key.startswith("head.")):
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
    faults = {
        "missing": [key for key in own if key not in state and not key.startswith(NEW_IN_CLASSIFIER)],
        "not used": [key for key in state if key not in own],
        "shapes": [
            f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    if any(faults.values()):
        told = "; ".join(
            f"{what}: {', '.join(keys[:6])}" + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")
            for what, keys in faults.items()
            if keys
        )
        raise UserError(
            f"{weights_file(path)} does not fit this model: {told}; choose the model that was pretrained "
            "(--model.name and its sizes)"
        )
    return tuple(model.load_state_dict(state, strict=False).missing_keys)
