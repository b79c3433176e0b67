"""The JSON file that a benchmark writes: its rows, and how they were measured."""

import datetime
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from map_core.cpu import cpu_name
from map_core.runs.files import save_json
from map_core.runs.summary import commit, versions


def save_results(
    path: Path | None, rows: list[dict[str, Any]], *, cores: int | None = None, packages: Sequence[str] = ()
) -> None:
    """Write rows with their command, date, commit, processor and versions; do nothing if ``path`` is None.

    Args:
        path: The file.
        rows: The rows.
        cores: Number of cores that were used, if not all of them.
        packages: What else was measured, whose versions are written as well.
    """
    if path is None:
        return
    cores = cores or os.cpu_count() or 1
    metadata = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "processor": f"{cpu_name()}, {cores} core{'s' if cores > 1 else ''}",
        "versions": versions(*packages),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_json(path, metadata | {"rows": rows})
