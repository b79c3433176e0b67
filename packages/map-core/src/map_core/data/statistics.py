"""Mean and standard deviation of every channel of a data set in one pass, and the small file that stores them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from map_core.errors import UserError
from map_core.json_values import is_count, is_finite
from map_core.paths import expand_user
from map_core.reading import read_small

ROUNDING = 1e-12  # relative rounding error of float64 sums over many values


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared differences from it, of every channel; float64."""

    count: float
    mean: Float[Tensor, " c"]
    squares: Float[Tensor, " c"]

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both sets together, without the cancellation of sums of squares.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
        (1979).
        """
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.squares + other.squares + delta.square() * (self.count * other.count / count),
        )


def deviations(total: Moments, warn: Callable[[str], object]) -> tuple[float, ...]:
    """Standard deviation of every channel; 1 for constant channels, which ``warn`` is called about."""
    std = (total.squares / total.count).sqrt()
    constant = std <= ROUNDING * total.mean.abs()  # a mean of equal numbers is off by a last bit
    if channels := constant.nonzero().flatten().tolist():
        warn(f"channels without variation, whose deviation is written as 1: {', '.join(map(str, channels))}")
    return tuple(torch.where(constant, 1.0, std).tolist())


def read_statistics_file(path: str | Path, entries: Sequence[str], program: str) -> dict[str, Any]:
    """Read a file of statistics: JSON with ``entries``, mean and std among them.

    Args:
        path: Path of the file.
        entries: Its required keys; the last one counts the samples that were measured.
        program: The program whose command ``statistics`` writes such files, for messages.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        values = json.loads(read_small(expand_user(path)))
    except OSError as error:
        raise UserError(f"cannot read --data.statistics {path} ({error.strerror}): correct it") from error
    except (ValueError, RecursionError) as error:
        raise no_statistics(path, program, "is not valid JSON") from error
    if not isinstance(values, dict) or not {*entries} <= values.keys():
        raise no_statistics(path, program, f"has no {', '.join(entries[:-1])} and {entries[-1]}")
    for name in ("mean", "std"):
        numbers = values[name]
        if not (isinstance(numbers, list) and numbers and all(map(is_finite, numbers))):
            raise no_statistics(
                path, program, f"has wrong values ({name} must be finite numbers, one per channel)"
            )
    if len(values["mean"]) != len(values["std"]) or min(values["std"]) <= 0:
        raise no_statistics(
            path,
            program,
            "has wrong values (std must be one positive number per channel, as many as in mean)",
        )
    if not is_count(values[entries[-1]]):
        raise no_statistics(
            path,
            program,
            f"has wrong values ({entries[-1]} must be how many; it has {values[entries[-1]]!r})",
        )
    return values | {name: tuple(map(float, values[name])) for name in ("mean", "std")}


def no_statistics(path: str | Path, program: str, problem: str) -> UserError:
    """The error for an invalid file of statistics, with its problem and the cure."""
    return UserError(f"--data.statistics {path} {problem}: name a file that {program} statistics wrote")
