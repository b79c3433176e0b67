"""The command ``card``: a run as a folder to share, with a model card made of what the run directory says."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from map_core.commands.options import Option, config_class
from map_core.commands.plain_yaml import read_yaml
from map_core.commands.settings import REQUIRED, fill, flatten, own_default, to_plain
from map_core.commands.standard import config_of
from map_core.errors import UserError, in_one_line, reason
from map_core.paths import expanded, is_file
from map_core.reading import read_small
from map_core.runs.files import require_folder
from map_core.runs.metrics import read_metrics
from map_core.runs.notes import tell
from map_core.tasks.domain import Domain
from map_core.tasks.model_card import MEASURED, Stage, Terms, write_model_card
from map_core.tasks.typed import fits, name_of, words_of

COMMANDS = {
    "pretrain": "pretrain",
    "finetune": "finetune",
    "linear-probe": "finetune",
}  # and their configurations
OF_THE_RUN = ("out", "resume")  # settings that say nothing of what was trained
SUMMARIZED = {  # what a card says of a run, and its type
    "commit": str | None, "device": str, "evaluated_on": str | None, "loss": float | None, "processes": int,
    "seconds": float | None, "versions": dict,
}  # fmt: skip
LONGEST_CHAIN = 5  # runs, each started from the one before


@cache
def card_config(domain: Domain) -> type:
    """The configuration."""
    return config_class(
        "CardConfig",
        "A run as a folder to share: weights, JSON, and a model card of what its directory says.",
        run=Option(str, "Directory of a finished pretraining, finetuning or probing run."),
        data_terms=Option(str, "What it was trained on, and on which terms that may be used, in words."),
        license=Option(str, "Licence of the weights, as the Hub names it, such as apache-2.0.", "unknown"),
        datasets=Option(list[str] | None, "Names of the data on the Hub, such as uoft-cs/cifar10.", None),
        out=Option(str, "Folder to write; what it has of these files is replaced.", "card"),
    )


def card(domain: Domain, config: Any) -> None:
    """Write the folder and say where.

    Raises:
        UserError: the run is not finished, or of another kind.
    """
    run, out = expanded(config.run), expanded(config.out)
    require_folder(out)
    if out.resolve() == run.resolve():
        raise UserError(f"--out {out} is the run itself; give the card a folder of its own")
    stages = list(reversed(list(stages_of(domain, run))))
    terms = Terms(config.data_terms, config.license, tuple(config.datasets or ()))
    tell(f"-> {write_model_card(domain, run, out, stages, terms)}")


def stages_of(domain: Domain, run: Path) -> Iterator[Stage]:
    """The trainings of a run, the last one first, as far back as their directories are there.

    Raises:
        UserError: the run itself left no summary or configuration that can be read.
    """
    following: Path | None = run
    for _ in range(LONGEST_CHAIN):
        if following is None:
            return
        summary, config = read_summary(following), read_yaml(following / "config.yaml")
        if not isinstance(config, dict):
            raise UserError(f"{following / 'config.yaml'} is no mapping; copy the file from the run again")
        yield Stage(command_of(domain, summary["task"], config), summary, last_epoch(following))
        following = started_from(following, config.get("init"))


def read_summary(run: Path) -> dict[str, Any]:
    """What a finished run says of itself.

    Raises:
        UserError: it says nothing, or is of no kind that a card describes.
    """
    file = run / "summary.json"
    try:
        summary = json.loads(read_small(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({reason(error)}); give the directory of a finished run, which has one"
        ) from error
    if not isinstance(summary, dict) or summary.get("task") not in list(COMMANDS):
        raise UserError(f"{file} is not of a run of {', '.join(COMMANDS)}; give the directory of one")
    for key, value in summary.items():
        kind = float | None if key.startswith(MEASURED) else SUMMARIZED.get(key, Any)
        if not fits(value, kind):
            raise UserError(
                f"{file}: {in_one_line(key)} must be {name_of(kind)}; got {in_one_line(repr(value))}; copy the file "
                "from the run again"
            )
    return summary


def last_epoch(run: Path) -> float | None:
    """How far a run's curve goes, in epochs."""
    return max((row["epoch"] for row in read_metrics(run) if row["kind"] == "train"), default=None)


def started_from(run: Path, init: Any) -> Path | None:
    """The run that another started from, if it is still there; a relative name is tried from every folder above."""
    if not isinstance(init, str):
        return None
    places = [expanded(init), *(above / init for above in run.resolve().parents)]
    folders = [place.parent if is_file(place) else place for place in places]
    return next((folder for folder in folders if is_file(folder / "summary.json")), None)


def command_of(domain: Domain, task: str, config: Mapping[str, Any]) -> str:
    """The command that says what a run's configuration does, without what is as it is by default."""
    defaults = defaults_of(domain, task, config)
    words = [domain.program, task]
    for name, value in flatten(dict(config)).items():
        if name not in OF_THE_RUN and name in defaults and value != defaults[name]:
            words += [f"--{name}", *words_of(value)]
    return shlex.join(words)


def defaults_of(domain: Domain, task: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a command by dotted name, those of the run's own objective included."""
    kind = config_of(domain, COMMANDS[task])
    values = fill(kind, {})
    objective = config.get("objective")
    method = str(objective.get("method") if isinstance(objective, dict) else None)
    if task == "pretrain" and method in domain.objectives:
        section = domain.objectives[method]
        assert is_dataclass(section)
        values["objective"] = {entry.name: own_default(entry) for entry in fields(section)}
        values["objective"]["method"] = REQUIRED if method != next(iter(domain.objectives)) else method
    return flatten(to_plain(values))
