"""The documentation site leaves no page out and names none that is not there."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {"docs/lab/results.md"}  # reached from the lab notes


def pages(entries: list[Any]) -> list[str]:
    """The files of a navigation, however deep."""
    found: list[str] = []
    for entry in entries:
        for value in entry.values():
            found += pages(value) if isinstance(value, list) else [value]
    return found


def test_the_navigation_names_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(pages(yaml.safe_load(text)["nav"]))
    written = {name for name in named if not name.startswith("api/")}
    assert {name for name in written if not (ROOT / name).is_file()} == set()
    there = {str(path.relative_to(ROOT)) for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/lab/*.md")]}
    assert there - named == ELSEWHERE
