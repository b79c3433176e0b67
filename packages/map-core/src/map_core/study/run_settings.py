"""How a machine computes a study's training runs: settings that change no result, and so are not part of the study."""

from pathlib import Path
from typing import Any, get_type_hints

from map_core.commands.messages import misfit
from map_core.commands.plain_yaml import read_yaml
from map_core.commands.values import MismatchError, convert_arguments
from map_core.errors import UserError, near_matches
from map_core.study.definition import by_dotted_name
from map_core.study.forms import check_settings
from map_core.study.measures import StudySettings
from map_core.training import TrainingConfig
from map_core.training.identity import FREE_TO_CHANGE

SECTION = "training."
# max_steps cuts a run short; accumulation_steps changes the draws of micro-batches, and which batch fits few samples
ALLOWED_NAMES = FREE_TO_CHANGE - {"max_steps", "accumulation_steps"}
# which a study may set, and without which some of these have no effect
ENABLING: dict[str, Any] = {"compile": "blocks", "activation_checkpointing": True}


def read_run_settings(path: Path) -> StudySettings:
    """Read a YAML file of such settings, nested or not, by dotted name.

    Raises:
        UserError: it cannot be read, sets nothing, or holds anything else, such as a setting on which results depend,
            or a value that no run can have.
    """
    try:
        values = read_yaml(path)
    except UserError as error:
        raise UserError(f"--run_settings: {error}") from error
    check_settings(path, "run_settings", values)
    settings = by_dotted_name(path, "run_settings", values)
    if not settings:
        raise UserError(
            f"--run_settings {path} sets nothing: give it settings such as {SECTION}workers, or leave it out"
        )
    for key in settings:
        name = key.removeprefix(SECTION)
        if key == name or name not in ALLOWED_NAMES:
            raise UserError(
                f"--run_settings {path} sets {key!r}, none of the settings {SECTION}NAME that leave results as they "
                f"are ({near_matches(name, ALLOWED_NAMES)}); set it in a copy of the study's file, under another name"
            )
    check_values(path, settings)
    return settings


def check_values(path: Path, settings: StudySettings) -> None:
    """Check values of training by their types and ranges, as far as they do not depend on the study's.

    Raises:
        UserError: one that no run can have.
    """
    kinds, values = get_type_hints(TrainingConfig), dict(ENABLING)
    for key, value in settings.items():
        name = key.removeprefix(SECTION)
        try:
            values[name] = convert_arguments([value], kinds[name])
        except MismatchError as error:
            raise UserError(misfit(f"{key} of --run_settings {path}", value, error, kinds[name])) from error
    try:
        TrainingConfig(**values).validate()
    except UserError as error:
        raise UserError(f"--run_settings {path}: {error}".replace("change --", "change there ")) from error
