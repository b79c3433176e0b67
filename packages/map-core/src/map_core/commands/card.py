"""The command ``card``: a run as a folder to share, with a model card written from the run directory."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from map_core.commands.options import Option, config_class
from map_core.commands.plain_yaml import read_yaml
from map_core.commands.settings import REQUIRED, field_default, fill, flatten, yaml_values
from map_core.commands.standard import config_of
from map_core.errors import UserError, in_one_line, reason
from map_core.paths import expand_user, is_file
from map_core.reading import content_of, read_small
from map_core.runs.files import explaining_disk_errors, require_folder
from map_core.runs.metrics import read_metrics
from map_core.runs.notes import tell
from map_core.runs.summary import CONFIG_FILE, SUMMARY_FILE, any_summary, refuse_training_run
from map_core.tasks.domain import Domain
from map_core.tasks.model_card import MEASURED, Stage, UsageTerms, write_model_card
from map_core.tasks.pretraining import WITH_DECODER
from map_core.tasks.setting_values import command_line_words, fits, name_of
from map_core.tasks.weights import MODEL_FILE

CONFIG_BY_TASK = {
    "pretrain": "pretrain",
    "finetune": "finetune",
    "linear-probe": "linear_probe",
}  # commands and their configurations
NOT_OF_TRAINING = ("out", "resume")  # settings that do not affect the trained model
SUMMARY_TYPES = {  # the entries of a summary that a card shows, and their types
    "commit": str | None, "device": str, "evaluated_on": str | None, "init_identity": str | None, "loss": float | None,
    "processes": int, "seconds": float | None, "versions": dict,
}  # fmt: skip
LONGEST_CHAIN = 5  # runs, each started from the previous one


CardConfig = config_class(
    "CardConfig",
    "A run as a folder to share: weights, JSON, and a model card written from its directory.",
    run=Option(str, "Directory of a finished pretraining, finetuning or probing run."),
    data_terms=Option(str, "The training data and the terms of their use, in words."),
    license=Option(str, "Licence of the weights, as the Hub names it, such as apache-2.0.", "unknown"),
    datasets=Option(list[str] | None, "Names of the data on the Hub, such as uoft-cs/cifar10.", None),
    out=Option(str, "Folder to write; files of these names in it are replaced.", "card"),
)


def card(domain: Domain, config: Any) -> None:
    """Write the folder and print where it is.

    Raises:
        UserError: the run is not finished, or of another kind; ``out`` is a training run; the disk refuses.
    """
    run, out = expand_user(config.run), expand_user(config.out)
    require_folder(out)
    refuse_training_run(out, replaced="model")
    stages = list(reversed(list(stages_of(domain, run))))
    terms = UsageTerms(config.data_terms, config.license, tuple(config.datasets or ()))
    with explaining_disk_errors(f"write {out}", then="repeat the command"):
        written = write_model_card(domain, run, out, stages, terms)
    tell(f"-> {written}")


def stages_of(domain: Domain, run: Path) -> Iterator[Stage]:
    """The training stages of a run, the last one first, as far back as their directories exist.

    Raises:
        UserError: the run itself has no readable summary or configuration.
    """
    current: Path | None = run
    for _ in range(LONGEST_CHAIN):
        if current is None:
            return
        summary, config = read_summary(current), read_yaml(current / CONFIG_FILE)
        if not isinstance(config, dict):
            raise UserError(f"{current / CONFIG_FILE} is not a mapping; copy the file from the run again")
        init = config.get("init")
        parent = parent_run(current, init, summary.get("init_identity"))
        command = command_of(domain, summary["task"], config)
        unknown_start = init is not None and parent is None
        yield Stage(command, summary, last_epoch(current), unknown_start)
        current = parent


def read_summary(run: Path) -> dict[str, Any]:
    """Read the summary of a finished run.

    Raises:
        UserError: there is none, or the run is of no kind that a card describes.
    """
    file = run / SUMMARY_FILE
    try:
        summary = json.loads(read_small(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({reason(error)}); give the directory of a finished run, which has one"
        ) from error
    if not isinstance(summary, dict) or summary.get("task") not in list(CONFIG_BY_TASK):
        raise UserError(f"{file} is not of a run of {', '.join(CONFIG_BY_TASK)}; give the directory of one")
    for key, value in summary.items():
        kind = float | None if key.startswith(MEASURED) else SUMMARY_TYPES.get(key, Any)
        if not fits(value, kind):
            raise UserError(
                f"{file}: {in_one_line(key)} must be {name_of(kind)}; got {in_one_line(repr(value))}; copy the file "
                "from the run again"
            )
    return summary


def last_epoch(run: Path) -> float | None:
    """How far a run's curve goes, in epochs."""
    return max((row["epoch"] for row in read_metrics(run) if row["kind"] == "train"), default=None)


def parent_run(run: Path, init: Any, identity: Any) -> Path | None:
    """The run that another one started from, if it still holds those weights and its configuration.

    Args:
        run: The other one.
        init: Where it found the weights; a relative path is tried from every parent folder.
        identity: Identity of those weights, see :func:`~map_core.tasks.weights.weights_identity`; earlier versions kept
            none.
    """
    if not isinstance(init, str) or not isinstance(identity, str):
        return None
    start = identity.removesuffix(WITH_DECODER)
    for path in (expand_user(init), *(parent / init for parent in run.resolve().parents)):
        file = path if is_file(path) else path / MODEL_FILE
        is_run = any_summary(file.parent).get("task") in CONFIG_BY_TASK and is_file(file.parent / CONFIG_FILE)
        if is_run and content_of(str(file)) == start:
            return file.parent
    return None


def command_of(domain: Domain, task: str, config: Mapping[str, Any]) -> str:
    """The command that has a run's configuration, without the settings that are at their defaults."""
    defaults = defaults_of(domain, task, config)
    words = [domain.program, task]
    for name, value in flatten(dict(config)).items():
        if name not in NOT_OF_TRAINING and name in defaults and value != defaults[name]:
            words += [f"--{name}", *command_line_words(value)]
    return shlex.join(words)


def defaults_of(domain: Domain, task: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The default settings of a command by dotted name, those of the run's objective included."""
    kind = config_of(domain, CONFIG_BY_TASK[task])
    values = fill(kind, {})
    objective = config.get("objective")
    method = str(objective.get("method") if isinstance(objective, dict) else None)
    if task == "pretrain" and method in domain.objectives:
        section = domain.objectives[method]
        assert is_dataclass(section)
        values["objective"] = {entry.name: field_default(entry) for entry in fields(section)}
        values["objective"]["method"] = REQUIRED if method != next(iter(domain.objectives)) else method
    return flatten(yaml_values(values))
