"""Forty small samples that go into shards."""

from typing import Any

import numpy as np

from map_core.shards import Files

CONTENT = [f"sample {number} ".encode() * (1 + number % 5) for number in range(40)]
NAMES = [f"{'ab'[number % 2]}/{number:02}.bin" for number in range(40)]


def files(**changes: Any) -> Files:
    """The samples as files, with the changes of a test."""
    settings: dict[str, Any] = {
        "names": NAMES,
        "read": CONTENT.__getitem__,
        "labels": np.arange(40) % 2,
        "classes": ("a", "b"),
    }
    return Files(**(settings | changes))
