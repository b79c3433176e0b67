"""File sizes as people write them."""

import re

from map_core.errors import UserError

UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}


def parse_size(text: str, name: str) -> int:
    """The number of bytes that a text such as ``500MB`` stands for.

    Args:
        text: A number and a decimal unit.
        name: Name of the setting, for messages.

    Raises:
        UserError: the text is not a size, or less than one byte.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?) ?([KMGT]?B)?", text.strip().upper())
    size = 0 if match is None else int(float(match[1]) * UNITS[match[2] or "B"])
    if size < 1:
        raise UserError(f"{name} must be a size such as 500MB or 2GB; got {text!r}; change --{name}")
    return size


def written_size(count: int) -> str:
    """A number of bytes in readable form."""
    unit = next((unit for unit, factor in UNITS.items() if count >= factor), "B")
    return f"{count / UNITS[unit]:.3g} {unit}"
