"""Checks that the values of a study's file have the right form, before anything is made of them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from map_core.commands.values import short_repr
from map_core.errors import UserError, visible
from map_core.json_values import LARGEST, is_whole
from map_core.shards.index import is_plain_name
from map_core.study.measures import StudySettings, stages

MAX_NAME_LENGTH = 100  # characters
MAX_EXTENSIONS = 100
# what lies beside the folders of the arms
STUDY_FILES = ("report.md", "report.png", "report.json", "results.jsonl", "jobs")
RESERVED_OPTIONS = ("out", "resume", "init", "config")  # which a study sets for each run itself


def check_forms(path: Path, values: StudySettings) -> None:
    """Check every key that a study's file has.

    Raises:
        UserError: a value has the wrong form.
    """
    for key, (is_valid, expected) in FORMS.items():
        if values.get(key) is not None and not is_valid(values[key]):
            refuse(path, key, expected, values[key])
    for stage in stages():
        check_settings(path, stage, values.get(stage))
    for count, settings in (values.get("labels") or {}).items():
        check_settings(path, f"labels {count}", settings)
    for arm, settings in (values.get("arms") or {}).items():
        check_arm(path, arm, settings)


def check_arm(path: Path, name: Any, values: Any) -> None:
    """Check an arm, whose name becomes that of a folder.

    Raises:
        UserError: a value has the wrong form.
    """
    if not is_name(name):
        refuse(path, "the name of an arm", NAME_FORM, name)
    if name in STUDY_FILES:
        raise UserError(
            f"arm {name} of {path} has the name of a file that the study itself writes: rename the arm"
        )
    if name.startswith("_") or any(character in name for character in "$|"):
        raise UserError(
            f"arm {name} of {path} has a name that the report's plots or tables cannot show, as it begins with _ or "
            "contains $ or |: rename the arm"
        )
    if values is not None and not isinstance(values, dict):
        refuse(path, f"arm {name}", "a mapping of stages to settings", values)
    stage_names = stages()
    for stage, settings in (values or {}).items():
        if stage in (*stage_names, "model"):
            check_settings(path, f"{stage} of arm {name}", settings)
        elif stage in ARM_NAME_FORMS and not isinstance(settings, str | None):
            refuse(path, f"{stage} of arm {name}", ARM_NAME_FORMS[stage], settings)
    if values and values.get("pretrain", {}) is None:
        raise UserError(
            f"pretrain of arm {name} of {path} is null: give {{}} for the study's pretraining, or leave it out to "
            "start from scratch"
        )


def check_settings(path: Path, where: str, settings: Any) -> None:
    """Check settings by dotted name.

    Raises:
        UserError: they have the wrong form, or set an option that the study sets itself.
    """
    if settings is None:
        return
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        refuse(path, where, "a mapping of names of settings to values", settings)
    for key, value in settings.items():
        if key in RESERVED_OPTIONS:
            raise UserError(f"{where} of {path} sets {key}, which the study gives each run itself: remove it")
        if not is_plain(value):
            refuse(path, f"{key} in {where}", "text, a number, true, false, null, a list or a mapping", value)
    if not isinstance(settings.get("recipe", ""), str):
        refuse(path, f"recipe in {where}", "a recipe's name or file", settings["recipe"])


def refuse(path: Path, name: str, expected: str, value: Any) -> None:
    """Raise a :class:`UserError` that says what was expected, and what is there instead."""
    raise UserError(f"{visible(name)} of {path} must be {expected}; got {short_repr(value)}")


def is_name(value: Any) -> bool:
    """Whether a value can name a folder and leads nowhere else."""
    return is_plain_name(value) and len(value) <= MAX_NAME_LENGTH and value == value.strip()


def is_plain(value: Any) -> bool:
    """Whether a setting's value can be written in a command."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(entry) for key, entry in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | bool | int | float)


def is_whole_between(value: Any, first: int, last: int = LARGEST - 1) -> bool:
    """Whether a value is a whole number from ``first`` to ``last``."""
    return is_whole(value) and first <= value <= last


def rate(value: Any) -> float:
    """A number such as a learning rate, which YAML reads as text if written 1e-3; NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def are_rates(values: Any) -> bool:
    """Whether a value is a list of learning rates, or maps stages to lists."""
    if isinstance(values, dict):
        return all(isinstance(rates, list) and are_rates(rates) for rates in values.values())
    return isinstance(values, list) and all(0 < rate(value) < math.inf for value in values)


ARM_NAME_FORMS = {"init": "a run or weights file", "compute_of": "another arm's name"}
NAME_FORM = f"a name without / and \\, of at most {MAX_NAME_LENGTH} characters"
FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (is_name, NAME_FORM),
    "question": (lambda value: isinstance(value, str), "text"),
    "arms": (lambda value: isinstance(value, dict), "a mapping of names to stages"),
    "labels": (lambda value: isinstance(value, dict), "a mapping of numbers, or 'all', to settings"),
    "learning_rates": (are_rates, "a list of positive numbers, or one for each stage"),
    "holdout": (lambda value: 0 < rate(value) < 1, "a number between 0 and 1"),
    "seeds": (
        lambda value: isinstance(value, list) and all(is_whole_between(seed, 0) for seed in value),
        "a list of whole numbers",
    ),
    "measures": (
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "a list of names",
    ),
    "extensions": (
        lambda value: is_whole_between(value, 0, MAX_EXTENSIONS),
        f"a whole number up to {MAX_EXTENSIONS}",
    ),
    "base": (lambda value: isinstance(value, str), "a study's name"),
}
