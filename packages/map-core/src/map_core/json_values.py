"""Checks of values read from JSON, as anybody may have written anything into a file, and what JSON cannot hold."""

import math
from typing import Any

LARGEST = 2**63  # bound on the size of whole numbers


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number; whole numbers of hundreds of digits, which no float can hold, are not."""
    return isinstance(value, float) or (is_whole(value) and abs(value) < LARGEST)


def is_finite(value: Any) -> bool:
    """Whether a JSON value is such a number, and neither infinite nor NaN, which Python also reads from JSON."""
    return is_number(value) and math.isfinite(value)


def finite_or_null(value: Any) -> Any:
    """A value for JSON, with None in the place of infinite numbers and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite_or_null(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite_or_null(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number, 0 or more."""
    return is_whole(value) and value >= 0


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)
