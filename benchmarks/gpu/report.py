"""Shared by the parts of the GPU check: options, rows that are written as they are measured, and the final page."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Part:
    """The options of a part and its rows.

    Attributes:
        quick: Whether to use tiny sizes.
        failures: Descriptions of what was wrong; the exit code is 1 if there are any.
    """

    def __init__(self, description: str | None) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--out", type=Path, required=True, help="file of the rows")
        parser.add_argument(
            "--seconds", type=float, default=120, help="start nothing new in the last sixth of them"
        )
        parser.add_argument("--quick", action="store_true", help="tiny sizes")
        parser.add_argument("--data", help="folder of images")
        options = parser.parse_args()
        self.out, self.quick, self.data = options.out, options.quick, options.data
        self.seconds = options.seconds
        self._last_start = time.monotonic() + options.seconds * 5 / 6
        self._rows: list[Row] = []
        self.failures: list[str] = []

    @property
    def is_over(self) -> bool:
        """Whether it is too late to start anything new."""
        return time.monotonic() > self._last_start

    def add(self, **row: Any) -> None:
        """Add a row and write all of them, so that they outlive this process."""
        self._rows.append(row)
        print(*(f"{key} {format_cell(value)}" for key, value in row.items()), sep=" | ", flush=True)
        temporary = self.out.with_suffix(".writing")
        temporary.write_text(json.dumps(self._rows, indent=1))
        os.replace(temporary, self.out)

    def fail(self, what: str) -> None:
        """Record that something was wrong, and continue."""
        print(f"WRONG: {what}", flush=True)
        self.failures.append(what)

    def end(self) -> int:
        """The exit code."""
        return int(bool(self.failures))


def format_cell(value: Any) -> str:
    """Format a value for a table."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return "" if value is None else str(value).replace("|", "/").replace("\n", " ")


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table; a column for every key that any of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        columns,
        ["---"] * len(columns),
        *([format_cell(row.get(key)) for key in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(results: dict[str, Any]) -> str:
    """The page of all results, in Markdown."""
    machine = {row["what"]: row["value"] for row in results["parts"].get("machine", {}).get("rows", [])}
    facts = [machine[key] for key in ("device", "torch", "commit") if key in machine]
    sections = [f"# GPU check, {', '.join([results['date'], *map(str, facts)])}"]
    if results["quick"]:
        sections.append("Tiny sizes: this tried the script, its numbers say nothing.")
    for name, part in results["parts"].items():
        sections.append(f"## {name}: {part['outcome']}, {part['seconds']} s")
        if part["rows"]:
            sections.append(table(part["rows"]))
        if "log" in part:
            sections.append("```\n" + "\n".join(part["log"]) + "\n```")
    return "\n\n".join(sections) + "\n"
