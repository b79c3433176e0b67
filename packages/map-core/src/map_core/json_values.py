"""What values of JSON are: a file that anybody wrote may have anything anywhere."""

import math
from typing import Any

LARGEST = 2**63  # of a number


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number, and none of hundreds of digits, which no float can be."""
    return isinstance(value, float) or (is_whole(value) and abs(value) < LARGEST)


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is such a number, and neither infinite nor NaN, which Python reads from JSON too."""
    return is_number(value) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether a value of JSON is a whole number from 0 on."""
    return is_whole(value) and 0 <= value < LARGEST


def is_whole(value: Any) -> bool:
    """Whether a value of JSON is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
