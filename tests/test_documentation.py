"""The programs accept every command in the documentation: options exist, values are valid, recipes are packaged."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from map_core.commands.parser import parse
from map_dense import catalogue
from map_points.cli import COMMANDS as POINT_COMMANDS
from map_points.domain import DOMAIN as POINTS
from map_vision.cli import COMMANDS as IMAGE_COMMANDS
from map_vision.domain import DOMAIN as IMAGES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("packages/*/README.md"))]
PROGRAMS = {"map-vision": (IMAGE_COMMANDS, IMAGES), "map-points": (POINT_COMMANDS, POINTS)}


def shell_lines(page: Path) -> Iterator[str]:
    """The lines of a page's shell blocks."""
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    for language, block in blocks:
        if language in ("", "sh", "bash"):
            yield from block.replace("\\\n", " ").splitlines()


def commands() -> Iterator[Any]:
    for page in PAGES:
        for line in shell_lines(page):
            if not any(program in line for program in (*PROGRAMS, "-m map_vision")):
                continue
            words = shlex.split(line.replace("-m map_vision", "map-vision"), comments=True)
            for program in PROGRAMS.keys() & set(words):
                arguments = words[words.index(program) + 1 :]
                yield pytest.param(program, arguments, id=f"{page.relative_to(ROOT)}: {' '.join(arguments)}")


@pytest.mark.parametrize(("program", "arguments"), list(commands()))
def test_a_command_of_the_documentation_is_taken(program: str, arguments: list[str]) -> None:
    commands_of_program, domain = PROGRAMS[program]
    name, *options = arguments
    command = next(entry for entry in commands_of_program if entry.name == name)
    if "--help" not in options:
        parse(f"{program} {name}", command, commands_of_program, domain.recipes, options)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configs_of_the_documentation_are_packaged(page: Path) -> None:
    for name in re.findall(r"map-dense (?:config-path|write-config) ([\w-]+)", page.read_text()):
        assert name == "NAME" or catalogue.config_path(name).is_file()
