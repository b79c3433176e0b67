"""What a study can measure: the stages of its own programs, and the measures that installed packages add.

A package adds a measure by an entry point in the group ``map_core.measures``: its name is that of the measure, its
object an :class:`AddedMeasure`.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from map_core.errors import UserError, reason

GROUP = "map_core.measures"
TITLES = {
    "finetune": "finetuned accuracy (%)",
    "linear_probe": "linear probe (%)",
    "knn": "nearest neighbours (%)",
    "heldout_loss": "loss on held-out samples",
}
# measures that train, at a learning rate, with a chosen number of labels
TRAINED_MEASURES = ("finetune", "linear_probe")
StudySettings = dict[str, Any]  # options of a run, by dotted name


@dataclass(frozen=True)
class Cost:
    """What one run costs.

    Attributes:
        samples: Number of training samples that it sees.
        flops: Multiplications and additions of all its training steps, forward and backward.
        seconds: Duration estimated from a few timed steps; 0 where nothing was timed.
    """

    samples: int
    flops: float
    seconds: float = 0.0


@runtime_checkable
class AddedMeasure(Protocol):
    """A measure with its own program, which trains from a run's weights or from scratch, and evaluates.

    Its settings are those in a study's file; the recipe's name is under ``recipe``.
    """

    @property
    def title(self) -> str:
        """Heading of its column in a table."""

    @property
    def score(self) -> str:
        """Name of the number in a summary that is compared."""

    @property
    def shared(self) -> tuple[str, ...]:
        """Prefixes of the settings that arms may not change: they would be compared on other data."""

    def check(self, settings: StudySettings) -> None:
        """Refuse settings that no run can take, by a UserError, before anything runs."""

    def command(self, settings: StudySettings, *, seed: int, init: str | None, out: Path) -> list[str]:
        """The command that trains and evaluates in the directory ``out``, or continues what is there."""

    def summary(self, out: Path) -> dict[str, Any]:
        """The measurements of a finished run, its ``seconds``, and facts such as ``commit`` and ``device``."""

    def cost(self, settings: StudySettings, *, timed: bool = False) -> Cost:
        """What a run costs; in the settings of an arm that has ``init``, that is there too."""


@cache
def added_measures() -> dict[str, EntryPoint]:
    """The entry points of the measures of installed packages, by name."""
    return {entry_point.name: entry_point for entry_point in entry_points(group=GROUP)}


def load_measure(name: str) -> AddedMeasure:
    """Load a measure of an installed package.

    Raises:
        UserError: it cannot be imported, or is not a measure.
    """
    try:
        measure = added_measures()[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"measure {name} cannot be loaded ({reason(error)}); install what it needs"
        ) from error
    if not isinstance(measure, AddedMeasure):
        raise UserError(f"measure {name} is {type(measure).__name__}, which lacks what a measure needs")
    return measure


def stages() -> tuple[str, ...]:
    """Everything for which a study's file has settings."""
    return ("pretrain", *TRAINED_MEASURES, *added_measures())


def title_of(measure: str) -> str:
    """Heading of a measure's column."""
    return TITLES[measure] if measure in TITLES else load_measure(measure).title
