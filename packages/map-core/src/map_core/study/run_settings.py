"""How a machine computes a study's training runs: settings that change no result, and so are not part of the study."""

from pathlib import Path

from map_core.commands.plain_yaml import read_yaml
from map_core.errors import UserError, near_matches
from map_core.study.forms import check_settings
from map_core.study.measures import StudySettings
from map_core.training.identity import FREE_TO_CHANGE

SECTION = "training."
# max_steps cuts a run short; accumulation_steps changes the draws of micro-batches, and which batch fits few samples
ALLOWED_NAMES = FREE_TO_CHANGE - {"max_steps", "accumulation_steps"}


def read_run_settings(path: Path) -> StudySettings:
    """Read a YAML file of such settings, by dotted name.

    Raises:
        UserError: it cannot be read, or holds anything else, such as a setting on which results depend.
    """
    try:
        values = read_yaml(path)
    except UserError as error:
        raise UserError(f"--run_settings: {error}") from error
    check_settings(path, "run_settings", values)
    for key in values or {}:
        name = key.removeprefix(SECTION)
        if key == name or name not in ALLOWED_NAMES:
            raise UserError(
                f"--run_settings {path} sets {key!r}, none of the settings {SECTION}NAME that leave results as they "
                f"are ({near_matches(name, ALLOWED_NAMES)}); set it in a copy of the study's file, under another name"
            )
    return values or {}
