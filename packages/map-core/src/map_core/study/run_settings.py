"""How a machine computes the training runs of a study: settings that change no result, and so no part of the study."""

from pathlib import Path

from map_core.commands.plain_yaml import read_yaml
from map_core.errors import UserError, near_matches
from map_core.study.definition import Settings
from map_core.study.forms import check_settings
from map_core.training.settings import FREE_TO_CHANGE

SECTION = "training."
# max_steps cuts a run short; micro-batches change what is drawn for each, and what batch fits a few samples
NAMES = FREE_TO_CHANGE - {"max_steps", "accumulation_steps"}


def read_run_settings(path: Path) -> Settings:
    """Read a YAML file of such settings, by dotted name.

    Raises:
        UserError: it cannot be read, or holds something else, such as a setting on which results depend.
    """
    try:
        values = read_yaml(path)
    except UserError as error:
        raise UserError(f"--run_settings: {error}") from error
    check_settings(path, "run_settings", values)
    for key in values or {}:
        name = key.removeprefix(SECTION)
        if key == name or name not in NAMES:
            raise UserError(
                f"--run_settings {path} sets {key!r}, none of the settings {SECTION}NAME that leave results as they "
                f"are ({near_matches(name, NAMES)}); set it in a copy of the study's file, under another name"
            )
    return values or {}
