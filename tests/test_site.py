"""The documentation site lists every page and no missing one, and has every file that its pages link to."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {"docs/lab/results.md"}  # reached from the lab notes


def pages(entries: list[Any]) -> list[str]:
    """The files of a navigation tree, at any depth."""
    files: list[str] = []
    for entry in entries:
        for value in entry.values():
            files += pages(value) if isinstance(value, list) else [value]
    return files


def test_the_navigation_names_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed_pages = set(pages(yaml.safe_load(text)["nav"]))
    listed_files = {name for name in listed_pages if not name.startswith("api/")}
    assert {name for name in listed_files if not (ROOT / name).is_file()} == set()
    existing = {
        str(path.relative_to(ROOT)) for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/lab/*.md")]
    }
    assert existing - listed_pages == ELSEWHERE


def test_every_link_of_a_page_leads_to_what_the_site_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = runpy.run_path(str(ROOT / "docs" / "site.py"))
    monkeypatch.setitem(site["gather"].__globals__, "PAGES", tmp_path)
    site["gather"]()
    broken = []
    for page in tmp_path.rglob("*.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target = link.partition("#")[0]
            if target and "://" not in target and not (page.parent / target).is_file():
                broken.append(f"{page.relative_to(tmp_path)}: {link}")
    assert broken == []
