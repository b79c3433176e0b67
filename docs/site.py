"""Gather the pages of the documentation site so that links between them hold, then build the site.

python docs/site.py            build/site/index.html; a broken link is an error
"""

import importlib
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"
SOURCE_PATTERNS = (
    "*.md", "LICENSE", "CITATION.cff", "Dockerfile", "docs/**/*", "examples/*", "packages/*/README.md",
    "weights/*/README.md", "benchmarks/*.py", "packages/map-core/src/map_core/objective.py",
)  # fmt: skip
PACKAGES = {
    "map_core": "the objective, the encoder and the engine, for any domain",
    "map_vision": "images",
    "map_points": "point clouds",
}


def gather() -> None:
    """Copy the files that people read into ``PAGES``, in the same tree as in the repository."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for pattern in SOURCE_PATTERNS:
        for file in ROOT.glob(pattern):
            if file.is_file() and "__pycache__" not in file.parts:
                copy = PAGES / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)


def api_page(package: str) -> str:
    """A page of the public names of a package, each documented by its docstring."""
    module = importlib.import_module(package)
    members = [getattr(module, name) for name in sorted(module.__all__)]
    directives = [
        f"::: {member.__module__}.{member.__qualname__}"
        for member in members
        if inspect.isclass(member) or inspect.isfunction(member)
    ]
    return "\n\n".join([f"# {package}: {PACKAGES[package]}", *directives]) + "\n"


def main() -> int:
    gather()
    for package in PACKAGES:
        page = PAGES / "api" / f"{package}.md"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(api_page(package))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
