"""Whether what a study's file says has the form that it must have, before anything is made of it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from map_core.commands.values import shown
from map_core.errors import UserError, visible
from map_core.shards.index import is_plain_name
from map_core.study.measures import stages

LONGEST_NAME = 100  # characters
MOST_EXTENSIONS = 100
OF_THE_STUDY = ("out", "resume", "init", "config")  # options of its runs that a study gives itself
Settings = dict[str, Any]


def check_forms(path: Path, values: Settings) -> None:
    """Check every key of a study's file that it has.

    Raises:
        UserError: one has another form.
    """
    for key, (holds, expected) in FORMS.items():
        if values.get(key) is not None and not holds(values[key]):
            refuse(path, key, expected, values[key])
    for stage in stages():
        check_settings(path, stage, values.get(stage))
    for count, settings in (values.get("labels") or {}).items():
        check_settings(path, f"labels {count}", settings)
    for arm, settings in (values.get("arms") or {}).items():
        check_arm(path, arm, settings)


def check_arm(path: Path, name: Any, values: Any) -> None:
    """Check an arm, whose name is that of a folder.

    Raises:
        UserError: it has another form.
    """
    if not is_name(name):
        refuse(path, "the name of an arm", NAME, name)
    if values is not None and not isinstance(values, dict):
        refuse(path, f"arm {name}", "a mapping of stages to settings", values)
    names = stages()
    for stage, settings in (values or {}).items():
        if stage in (*names, "model"):
            check_settings(path, f"{stage} of arm {name}", settings)
        elif stage in NAMES and not isinstance(settings, str | None):
            refuse(path, f"{stage} of arm {name}", NAMES[stage], settings)


def check_settings(path: Path, where: str, settings: Any) -> None:
    """Check settings by dotted name.

    Raises:
        UserError: they are none, or are for the study itself to say.
    """
    if settings is None:
        return
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        refuse(path, where, "a mapping of names of settings to values", settings)
    for key, value in settings.items():
        if key in OF_THE_STUDY:
            raise UserError(f"{where} of {path} sets {key}, which the study gives each run itself: remove it")
        if not is_plain(value):
            refuse(path, f"{key} in {where}", "text, a number, true, false, null, a list or a mapping", value)
    if not isinstance(settings.get("recipe", ""), str):
        refuse(path, f"recipe in {where}", "a recipe's name or file", settings["recipe"])


def refuse(path: Path, name: str, expected: str, value: Any) -> None:
    """Say what was expected, and what is there instead."""
    raise UserError(f"{visible(name)} of {path} must be {expected}; got {shown(value)}")


def is_name(value: Any) -> bool:
    """Whether a value is a name that a folder may have, and that leads nowhere else."""
    return is_plain_name(value) and len(value) <= LONGEST_NAME and value == value.strip()


def is_plain(value: Any) -> bool:
    """Whether a setting's value can be typed in a command."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(entry) for key, entry in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | bool | int | float)


def is_whole(value: Any, first: int = 0, end: int = 2**63) -> bool:
    """Whether a value is a whole number of a range."""
    return isinstance(value, int) and not isinstance(value, bool) and first <= value < end


def rate(value: Any) -> float:
    """A learning rate; YAML takes 1e-3 for text. NaN for what is none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def are_rates(values: Any) -> bool:
    """Whether a value is a list of learning rates, or maps stages to lists."""
    if isinstance(values, dict):
        return all(isinstance(rates, list) and are_rates(rates) for rates in values.values())
    return isinstance(values, list) and all(0 < rate(value) < math.inf for value in values)


NAMES = {"init": "a run or weights file", "compute_of": "another arm's name"}
NAME = f"a name without / and \\, of at most {LONGEST_NAME} characters"
FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (is_name, NAME),
    "question": (lambda value: isinstance(value, str), "text"),
    "arms": (lambda value: isinstance(value, dict), "a mapping of names to stages"),
    "labels": (lambda value: isinstance(value, dict), "a mapping of numbers, or 'all', to settings"),
    "learning_rates": (are_rates, "a list of positive numbers, or one for each stage"),
    "holdout": (lambda value: 0 < rate(value) < 1, "a number between 0 and 1"),
    "seeds": (lambda value: isinstance(value, list) and all(map(is_whole, value)), "a list of whole numbers"),
    "measures": (
        lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
        "a list of names",
    ),
    "extensions": (
        lambda value: is_whole(value, end=MOST_EXTENSIONS + 1),
        f"a whole number up to {MOST_EXTENSIONS}",
    ),
    "base": (lambda value: isinstance(value, str), "a study's name"),
}
