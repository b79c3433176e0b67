"""Gathers the pages of the documentation site where their links among each other hold, then builds it.

python docs/site.py            build/site/index.html, every broken link an error
"""

import importlib
import inspect
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"
GATHERED = (
    "*.md", "LICENSE", "Dockerfile", "docs/**/*", "examples/*", "packages/*/README.md", "benchmarks/*.py",
    "packages/map-core/src/map_core/objective.py",
)  # fmt: skip
PACKAGES = {
    "map_core": "the objective, the encoder and the engine, for any domain",
    "map_vision": "images",
    "map_points": "point clouds",
}


def gather() -> None:
    """Copy what people read into ``PAGES``, in the repository's own tree."""
    shutil.rmtree(PAGES, ignore_errors=True)
    for pattern in GATHERED:
        for file in ROOT.glob(pattern):
            if file.is_file() and "__pycache__" not in file.parts:
                copy = PAGES / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, copy)


def api_page(package: str) -> str:
    """A page of what ``import package`` gives, each documented by its docstring where it is defined."""
    module = importlib.import_module(package)
    documented = [getattr(module, name) for name in sorted(module.__all__)]
    places = [
        f"::: {thing.__module__}.{thing.__qualname__}"
        for thing in documented
        if inspect.isclass(thing) or inspect.isfunction(thing)
    ]
    return "\n\n".join([f"# {package}: {PACKAGES[package]}", *places]) + "\n"


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
