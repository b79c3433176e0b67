"""What a study can measure: the stages of its own programs, and what installed packages add.

A package adds a measure by an entry point of the group ``map_core.measures``: its name is the measure's, its object an
:class:`AddedMeasure`.
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
TRAINED = (
    "finetune",
    "linear_probe",
)  # measures that train, at a learning rate, with as many labels as asked for
Settings = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What one run costs.

    Attributes:
        samples: Training samples that it sees.
        flops: Multiplications and additions of all its training steps, forward and backward.
        seconds: Estimated from a few timed steps; 0 where nothing was timed.
    """

    samples: int
    flops: float
    seconds: float = 0.0


@runtime_checkable
class AddedMeasure(Protocol):
    """A measure with a program of its own, which trains from a run's weights or from scratch, and evaluates.

    Its settings are what a study's file says of it, a recipe's name under ``recipe``.
    """

    @property
    def title(self) -> str:
        """Heading of its column."""

    @property
    def score(self) -> str:
        """Which number of a summary is compared."""

    @property
    def shared(self) -> tuple[str, ...]:
        """What the settings begin with that arms may not change: they would be compared on other data."""

    def command(self, settings: Settings, *, seed: int, init: str | None, out: Path) -> list[str]:
        """The command that trains and evaluates in the directory ``out``, or goes on with what is there."""

    def summary(self, out: Path) -> dict[str, Any]:
        """What a finished run measured, its ``seconds``, and facts such as ``commit`` and ``device``."""

    def cost(self, settings: Settings, *, timed: bool = False) -> Cost:
        """What a run costs."""


@cache
def added_measures() -> dict[str, EntryPoint]:
    """Where the measures of installed packages are, by name."""
    return {found.name: found for found in entry_points(group=GROUP)}


def load_measure(name: str) -> AddedMeasure:
    """A measure of an installed package.

    Raises:
        UserError: it cannot be imported, or is none.
    """
    try:
        measure = added_measures()[name].load()
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"measure {name} cannot be loaded ({reason(error)}); install what it needs"
        ) from error
    if not isinstance(measure, AddedMeasure):
        raise UserError(f"measure {name} is {type(measure).__name__}, which has not what a measure needs")
    return measure


def stages() -> tuple[str, ...]:
    """Everything that a study's file gives settings to."""
    return ("pretrain", *TRAINED, *added_measures())


def title_of(measure: str) -> str:
    """Heading of a measure's column."""
    return TITLES[measure] if measure in TITLES else load_measure(measure).title
