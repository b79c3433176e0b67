"""Model weights as safetensors with a JSON description; nothing read from a file runs code."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from map_core import shipped
from map_core.errors import UserError, in_one_line, reason, some_of
from map_core.paths import expanded
from map_core.reading import read_small
from map_core.runs.checkpoint import content_of
from map_core.runs.files import replacing, save_json, save_tensors
from map_core.tasks.families import Converted, Family, family_of, refuse_unknown
from map_core.tasks.foreign_weights import (
    WRAPPERS,
    is_safetensors,
    looks_like,
    other_archive,
    unwrapped,
    without_prefix,
)
from map_core.tasks.torch_files import Refused, read_torch
from map_core.tasks.typed import fits, name_of, told_options

Settings = TypeVar("Settings")
log = logging.getLogger(__name__)
MODEL_FILE = shipped.MODEL
FORWARD, BACKWARD = ".scan_forward.", ".scan_backward."  # what each direction of a Mamba mixer owns
DESCRIBED = {
    "name": str, "arguments": dict, "holds": str, "task": str, "weights": str, "classes": list,
    "objective": dict, "head": dict, "parts": list,
}  # fmt: skip


@dataclass(frozen=True)
class LoadReport:
    """What loading did.

    Attributes:
        source: The file.
        fresh: Parameters that it does not have, which stay as they were.
        family: Whose file it is; None for one of ours.
        mapped: Parameters that were taken over, resampled ones included.
        resampled: Those that had another size.
        left: Keys of the file that the model has no use for.
        notes: What differs from the family's own code, a sentence each.
    """

    source: Path
    fresh: tuple[str, ...]
    family: str | None = None
    mapped: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.family is None:
            left = f"; left: {some_of(list(self.left))}" if self.left else ""
            return (
                f"{self.source}: loaded; new: {some_of(list(self.fresh)) if self.fresh else 'nothing'}{left}"
            )
        parts = [f"{self.source}: {self.family}, {len(self.mapped)} parameters mapped"]
        for what, keys in (("resampled", self.resampled), ("left", self.left), ("new", self.fresh)):
            parts.append(f"{len(keys)} {what} ({some_of(list(keys))})" if keys else f"none {what}")
        return "; ".join([*parts, *self.notes])


def save_weights(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write a state dict as safetensors, and beside it ``<name>.json`` that says what it is."""
    with replacing(path) as partial:
        save_tensors(partial, state)
    save_json(path.with_suffix(".json"), description)


def weights_file(path: str | Path) -> Path:
    """The weights file of a run directory, or the file itself.

    Raises:
        UserError: there is none.
    """
    path = expanded(path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        hint = " (the run has not finished: resume it)" if (path / "checkpoints").is_dir() else ""
        raise UserError(f"no weights at {file}{hint}; give a finished run's directory or a weights file")
    return file


def start_of(init: str | None) -> str | None:
    """What a run starts from that is given ``init``, known by the bytes of its weights wherever they lie."""
    return None if init is None else content_of(str(weights_file(init)))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a run directory, a safetensors file or a torch file, known by their content.

    Raises:
        UserError: nothing there, an unreadable file, or one that holds more than tensors.
    """
    file = weights_file(path)
    try:
        what = looks_like(file)
        if what is not None:
            raise UserError(f"{file} is no weights file (looks like {what})")
        if (archive := other_archive(file)) is not None:
            raise UserError(f"{file} is {archive}")
        state: Any = load_file(file) if is_safetensors(file) else read_torch(file)
    except UserError:
        raise
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
        keys = f"has {some_of([str(key) for key in state])}" if isinstance(state, Mapping) else "has no names"
        raise UserError(
            f"{file} holds no state dict of tensors: it {keys}; expected parameter names with tensors, alone or in "
            f"{', '.join(WRAPPERS)}"
        )
    return without_prefix(state, file)


def description_file(path: str | Path) -> Path:
    """Where the description of a run's model, or of a weights file, would be."""
    path = expanded(path)
    return (path / MODEL_FILE if path.is_dir() else path).with_suffix(".json")


def read_description(path: str | Path) -> dict[str, Any]:
    """The JSON description beside a weights file or in a run directory; empty when there is none.

    Raises:
        UserError: the description is no JSON, or lacks or misspells what a description says.
    """
    file = description_file(path)
    if not file.is_file():
        return {}
    try:
        description = json.loads(read_small(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is no JSON ({reason(error)}); it may be cut off: copy it or export the run again"
        ) from error
    if not isinstance(description, dict):
        raise UserError(f"{file} describes no model: it must be a mapping; copy it or export the run again")
    for key, kind in DESCRIBED.items():
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


def read_settings(kind: type[Settings], values: Mapping[str, Any], source: str | Path) -> Settings:
    """Make a configuration dataclass of a description's values.

    Raises:
        UserError: values that this version does not know, that are of another type, or that are missing.
    """
    kinds, known = get_type_hints(kind), {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    unknown = set(values) - known.keys()
    if unknown:
        raise UserError(
            f"{source} describes settings that this version does not know: {in_one_line(', '.join(sorted(unknown)))}; "
            "read it with the version that wrote it"
        )
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in plain.items():
        if not fits(value, kinds[key]):
            raise UserError(
                f"{source} describes {key} as {in_one_line(repr(value))}, which must be {name_of(kinds[key])}; "
                "export the run again"
            )
    lacking = [
        name
        for name, entry in known.items()
        if name not in plain and entry.default is MISSING and entry.default_factory is MISSING
    ]
    if lacking:
        raise UserError(f"{source} describes no {', '.join(lacking)}; export the run again")
    return kind(**plain)


def load_init(
    model: nn.Module,
    path: str | Path,
    *,
    may_be_missing: tuple[str, ...] = (),
    families: Sequence[Family] = (),
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict,
    resampled: Callable[[str, Tensor, Tensor], bool] = lambda key, source, own: False,
    keep_head: bool = True,
) -> LoadReport:
    """Start a model from a pretraining run, a weights file, or a checkpoint of another project.

    Args:
        model: Has a classifier ``head`` or none; where the file's has other parameters or shapes, it starts anew.
            Its ``switches``, if it has any, name the settings that say what weights compute and no shape shows.
        path: A run directory or weights file.
        may_be_missing: Prefixes of the parameters that only some forms of a model have, such as a classifier's head:
            they may be missing in the file, and where the model has none of them, the file's are left, and that is
            said.
        families: Of other projects' checkpoints, which are recognised by their keys and converted.
        convert: Adapts a state in our names to the model.
        resampled: Of (key, the file's tensor, the model's): whether the model resamples it when it loads.
        keep_head: Take over the file's head where its shapes fit; else it starts anew.

    Raises:
        UserError: a file of no known family; another switch than the file's; any other missing, unused or misshaped
            key, all of them named.
    """
    file = weights_file(path)
    own = model.state_dict()
    converted, family = read_as_ours(file, own, families)
    refuse_other_switches(model, converted, file, family)
    state = both_directions(convert(converted.state), own, file)
    # what a file has of a classifier's parts and the model has not is left, and said
    without_place = [key for key in state if key not in own and key.startswith(may_be_missing)]
    dropped = without_place
    if not keep_head or (_head(own) and _head(own) != _head(state)):
        dropped = [*dropped, *(key for key in _head(state) if key not in dropped)]
    state = {key: value for key, value in state.items() if key not in dropped}
    other_size = {
        key: resampled(key, state[key], value)
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    }
    faults = {
        "missing": [key for key in own if key not in state and not key.startswith(may_be_missing)],
        "not used": [key for key in state if key not in own],
        "shapes": [
            f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
            for key, fits in other_size.items()
            if not fits
        ],
    }
    if any(faults.values()):
        raise UserError(
            f"{file} does not fit this model: {told_keys(faults)}; choose the model that was pretrained "
            f"({_cure(family, converted, file)})"
        )
    fresh = tuple(model.load_state_dict(state, strict=False).missing_keys)
    report = LoadReport(
        file,
        fresh,
        None if family is None else family.name,
        mapped=tuple(state),
        resampled=tuple(other_size),
        left=(*converted.left, *converted.rest, *dropped),
        notes=(*converted.guessed.values(), *converted.notes),
    )
    unremarkable = family is None and not without_place
    log.log(logging.INFO if unremarkable else logging.WARNING, "%s", report)
    return report


def read_as_ours(
    file: Path, own: Mapping[str, Any], families: Sequence[Family]
) -> tuple[Converted, Family | None]:
    """Read a weights file, converted if it is of one of the families.

    Args:
        file: Weights.
        own: A model's parameters by name: a file most of whose names begin as these do is one of ours.
        families: Of other projects' checkpoints.

    Raises:
        UserError: the file is neither.
    """
    state = read_weights(file)
    family = (
        None if "name" in read_description(file) else family_of(state, families)
    )  # ours say what they are
    if family is not None:
        return family.converted(state, file), family
    beginnings = {key.split(".")[0] for key in own}
    if families and 2 * sum(key.split(".")[0] in beginnings for key in state) <= len(state):
        refuse_unknown(state, families, file)
    return Converted(state, {}), None


def refuse_other_switches(
    model: nn.Module, converted: Converted, source: str | Path, family: Family | None
) -> None:
    """Refuse a model that would compute something else with the weights than the one that they were made for.

    Raises:
        UserError: naming the setting that differs.
    """
    whose = "another model" if family is None else family.name
    has: Mapping[str, Any] = getattr(model, "switches", dict.fromkeys(converted.switches, "unknown"))
    for name, value in converted.switches.items():
        if name in has and has[name] != value:
            raise UserError(
                f"{source} is of {whose}, whose {name} is {value!r}, and not {has[name]!r}: the same weights would "
                f"compute something else; make the model with {name}={value!r} (--model.{name})"
            )


def _cure(family: Family | None, converted: Converted, file: Path) -> str:
    """The settings that would make the model that a file fits."""
    if family is None:
        description = read_description(file)
        if "name" not in description:
            return "--model.name and its sizes"
        settings = {"name": description["name"], **(description.get("arguments") or {})}
        return " ".join(told_options(settings, "model."))
    return f"{family.name}: {' '.join(told_options(converted.model, 'model.'))}"


def both_directions(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: Path
) -> dict[str, Tensor]:
    """Start a model that scans both ways from one that scans forward: each direction gets the one's weights.

    That is how ARM's finetuning starts (arXiv 2406.07537). A file that has some of the way back has lost the rest.
    """
    if any(BACKWARD in key for key in state):
        return dict(state)
    copied = {
        key: state[forward].clone()
        for key in own
        if key not in state and (forward := key.replace(BACKWARD, FORWARD)) != key and forward in state
    }
    if copied:
        log.warning(
            "%s scans one way and the model both: its %d layers begin backwards with the weights of the way forward",
            source,
            len({key.partition(BACKWARD)[0] for key in copied}),
        )
    return {**state, **copied}


def _head(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Names and shapes of the parameters of a classifier's head."""
    return {key: value.shape for key, value in state.items() if key.startswith("head.")}


def told_keys(faults: Mapping[str, list[str]]) -> str:
    """Names of parameters by what is wrong with them, in one line."""
    return "; ".join(f"{what}: {some_of(keys)}" for what, keys in faults.items() if keys)
