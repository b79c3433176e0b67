"""Starting a model from weights: a run's, a file's, or another project's checkpoint."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from map_core.errors import UserError, abbreviate
from map_core.runs.checkpoint import MANIFEST
from map_core.tasks.families import Converted, Family, family_of, refuse_unknown
from map_core.tasks.setting_values import format_options
from map_core.tasks.weights import read_description, read_weights, weights_file

Cure = Callable[[str, Any], str]  # of a setting's name and value: how a model gets that value
# the options with which a command would make a model that fits a file: another project's, converted, or one of ours
FittingOptions = Callable[[Converted | None], str]
log = logging.getLogger(__name__)
FORWARD, BACKWARD = ".scan_forward.", ".scan_backward."  # in the keys of each direction of a Mamba mixer
OTHER_HEAD = "the file's head has other parameters or shapes: this model's starts anew"


@dataclass(frozen=True)
class LoadReport:
    """What loading did.

    Attributes:
        source: The file.
        missing: Parameters that the file lacks, which keep their initial values.
        family: The project whose checkpoint it is; None for one of ours.
        mapped: Parameters loaded from the file, resampled ones included.
        resampled: Those that had another size.
        unused: Keys of the file that the model does not use.
        notes: What is not as in the file or the family's own code, a sentence each.
    """

    source: Path
    missing: tuple[str, ...]
    family: str | None = None
    mapped: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.family is None:
            new = abbreviate(list(self.missing)) if self.missing else "nothing"
            left = [f"left: {abbreviate(list(self.unused))}"] if self.unused else []
            return "; ".join([f"{self.source}: loaded", f"new: {new}", *left, *self.notes])
        parts = [f"{self.source}: {self.family}, {len(self.mapped)} parameters mapped"]
        for label, keys in (("resampled", self.resampled), ("left", self.unused), ("new", self.missing)):
            parts.append(f"{len(keys)} {label} ({abbreviate(list(keys))})" if keys else f"none {label}")
        return "; ".join([*parts, *self.notes])


def load_init(
    model: nn.Module,
    path: str | Path,
    *,
    may_be_missing: tuple[str, ...] = (),
    families: Sequence[Family] = (),
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict,
    resampled: Callable[[str, Tensor, Tensor], bool] = lambda key, source, target: False,
    keep_head: bool = True,
    fitting_options: FittingOptions | None = None,
) -> LoadReport:
    """Start a model from a pretraining run, a weights file, or a checkpoint of another project.

    Args:
        model: May have a classifier ``head``, which starts anew, with a warning, where the file's has other
            parameters or shapes. Its ``invisible_settings``, if any, are those that change what weights compute
            without changing a shape.
        path: A run directory or weights file.
        may_be_missing: Prefixes of the parameters that only some forms of a model have, such as a classifier's head:
            the file may lack them, and where the model lacks them, the file's are skipped with a warning.
        families: Other projects' checkpoints, which are recognised by their keys and converted.
        convert: Adapts a state dict with our names to the model.
        resampled: Called with (key, the file's tensor, the model's): whether the model resamples it when it loads.
        keep_head: Load the file's head where its shapes fit; otherwise it starts anew.
        fitting_options: For messages; where it has none, those that describe the file's model are named.

    Raises:
        UserError: a file of no known family; an invisible setting that differs from the file's; any other missing,
            unused or misshaped key, all of which are named.
    """
    file = weights_file(path)
    model_state = model.state_dict()
    converted, family = read_as_ours(file, model_state, families)
    refuse_other_invisible_settings(model, converted, file, family)
    state = both_directions(convert(converted.state), model_state, file)
    # optional parts that only the file has, such as a classifier's head, are skipped and reported
    surplus = [key for key in state if key not in model_state and key.startswith(may_be_missing)]
    # a head that does not fit, or is not wanted, starts anew
    head, model_head = _head(state), _head(model_state)
    head_differs = bool(head and model_head) and head != model_head
    left_head = [key for key in head if key not in surplus] if head_differs or not keep_head else []
    dropped = [*surplus, *left_head]
    state = {key: value for key, value in state.items() if key not in dropped}
    # shapes may differ only where the model resamples
    other_shape = [
        key for key, value in model_state.items() if key in state and state[key].shape != value.shape
    ]
    resampled_keys = [key for key in other_shape if resampled(key, state[key], model_state[key])]
    faults = {
        "missing": [key for key in model_state if key not in state and not key.startswith(may_be_missing)],
        "not used": [key for key in state if key not in model_state],
        "shapes": [
            f"{key} {tuple(state[key].shape)} for {tuple(model_state[key].shape)}"
            for key in other_shape
            if key not in resampled_keys
        ],
    }
    if any(faults.values()):
        raise UserError(
            f"{file} does not fit this model: {format_keys(faults)}; choose the model that was pretrained "
            f"({options_for(family, converted, file, fitting_options)})"
        )
    # load, and report what was not as expected
    missing = tuple(model.load_state_dict(state, strict=False).missing_keys)
    notes_on_guesses = {name: guess.note(name) for name, guess in converted.guessed_settings.items()}
    report = LoadReport(
        file,
        missing,
        None if family is None else family.name,
        mapped=tuple(state),
        resampled=tuple(resampled_keys),
        unused=(*converted.unused, *converted.decoder_state, *dropped),
        notes=(
            *(notes_on_guesses | other_guesses(model, converted)).values(),
            *((OTHER_HEAD,) if head_differs and keep_head else ()),
            *converted.notes,
        ),
    )
    unremarkable = family is None and not dropped
    log.log(logging.INFO if unremarkable else logging.WARNING, "%s", report)
    return report


def read_as_ours(
    file: Path, model_state: Mapping[str, Any], families: Sequence[Family]
) -> tuple[Converted, Family | None]:
    """Read a weights file, and convert it if it belongs to one of the families.

    Args:
        file: Weights.
        model_state: A model's parameters by name: a file most of whose keys begin like these is one of ours.
        families: Other projects' checkpoints.

    Raises:
        UserError: the file is neither.
    """
    state = read_weights(file)
    # our own files have a description
    is_described = "name" in read_description(file)
    family = None if is_described else family_of(state, families)
    if family is not None:
        return family.convert_file_state(state, file), family
    modules = {key.split(".")[0] for key in model_state}
    are_most_known = 2 * sum(key.split(".")[0] in modules for key in state) > len(state)
    if families and not is_described and not are_most_known:
        if (run := run_of_part(file)) is not None:
            raise UserError(
                f"{file} is a checkpoint or the decoder of the run {run}: give {run} itself, to start from its model"
            )
        refuse_unknown(state, families, file)
    return Converted(state, {}), None


def run_of_part(file: Path) -> Path | None:
    """The run of which a file is a checkpoint's, or the decoder; None where it is neither."""
    folder = file.absolute().parent
    if (
        folder.name.startswith("step_")
        and folder.parent.name == "checkpoints"
        and (folder / MANIFEST).is_file()
    ):
        return folder.parents[1]
    return folder if "objective" in read_description(file) else None


def option_of_model(name: str, value: Any) -> str:
    """The :data:`Cure` where a command makes the model.

    >>> option_of_model("num_heads", 12)
    'make the model with num_heads=12 (--model.num_heads 12)'
    """
    return f"make the model with {name}={value!r} ({format_options({name: value}, 'model.')[0]})"


def refuse_other_invisible_settings(
    model: nn.Module,
    converted: Converted,
    source: str | Path,
    family: Family | None,
    *,
    cure: Cure = option_of_model,
) -> None:
    """Refuse a model that would compute something else with the weights than the model that they come from.

    Args:
        model: Its ``invisible_settings`` are compared.
        converted: The weights.
        source: Their name in the message.
        family: The project that they come from.
        cure: Ends the message.

    Raises:
        UserError: naming the setting that differs.
    """
    owner = "another model" if family is None else family.name
    unknown = dict.fromkeys(converted.invisible_settings, "unknown")
    of_model: Mapping[str, Any] = getattr(model, "invisible_settings", unknown)
    for name, value in converted.invisible_settings.items():
        if name in of_model and of_model[name] != value:
            raise UserError(
                f"{source} is of {owner}, whose {name} is {value!r}, and not {of_model[name]!r}: the same weights "
                f"would compute something else; {cure(name, value)}"
            )


def other_guesses(model: nn.Module, converted: Converted, *, cure: Cure = option_of_model) -> dict[str, str]:
    """A warning for each guessed setting whose published value is not the model's; ``cure`` ends it."""
    of_model: Mapping[str, Any] = getattr(model, "invisible_settings", {})
    return {
        name: f"no file says {guess.what}: this model has {name} {of_model[name]!r} and the published one "
        f"{guess.value!r}, whose weights compute something else here; {cure(name, guess.value)}"
        for name, guess in converted.guessed_settings.items()
        if name in of_model and of_model[name] != guess.value
    }


def options_for(
    family: Family | None, converted: Converted, file: Path, fitting_options: FittingOptions | None
) -> str:
    """The options that make a model that fits the file: the ``fitting_options``, if there are any."""
    options = "" if fitting_options is None else fitting_options(None if family is None else converted)
    if family is not None:
        return f"{family.name}: {options or ' '.join(format_options(converted.model, 'model.'))}"
    description = read_description(file)
    if options or "name" not in description:
        return options or "--model.name and its sizes"
    settings = {"name": description["name"], **(description.get("arguments") or {})}
    return " ".join(format_options(settings, "model."))


def both_directions(
    state: Mapping[str, Tensor], model_state: Mapping[str, Tensor], source: Path
) -> dict[str, Tensor]:
    """Start a model that scans both ways from one that scans forward: both directions get the forward weights.

    ARM's finetuning starts like this (arXiv 2406.07537). A file with some backward weights has lost the others, and
    gets none.
    """
    if any(BACKWARD in key for key in state):
        return dict(state)
    backward = {
        key: state[forward].clone()
        for key in model_state
        if key not in state and (forward := key.replace(BACKWARD, FORWARD)) != key and forward in state
    }
    if backward:
        log.warning(
            "%s scans one way and the model both: its %d layers start their backward scan from the forward weights",
            source,
            len({key.partition(BACKWARD)[0] for key in backward}),
        )
    return {**state, **backward}


def _head(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Names and shapes of the parameters of a classifier's head."""
    return {key: value.shape for key, value in state.items() if key.startswith("head.")}


def format_keys(faults: Mapping[str, list[str]]) -> str:
    """List parameter names by what is wrong with them, in one line."""
    return "; ".join(f"{fault}: {abbreviate(keys)}" for fault, keys in faults.items() if keys)
