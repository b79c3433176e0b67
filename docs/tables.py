"""Write what studies measured into the pages that speak of it, from docs/lab/studies/*.jsonl; nobody types a number.

    python docs/tables.py            rewrite the pages
    python docs/tables.py --check    say which ones differ from the results, and fail

A page asks for a study's table between two comments, ``<!-- study NAME -->`` and ``<!-- end -->``; for the paper's
tables as map_vision or map_points lists them by ``<!-- paper PACKAGE -->``, for its recipes by ``<!-- recipes
PACKAGE -->``, for the rows of docs/lab/NAME.json by ``<!-- rows NAME -->``, and for what benchmarks/peers.py measured
by ``<!-- peers PART -->``. A study's own page, docs/lab/studies/NAME.md, is its report.
"""

import argparse
import json
import re
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from peers_tables import TABLES

from map_core.commands.recipes import find_recipe, recipe_names
from map_core.commands.tables import markdown_table, read_tables
from map_core.study.cost import resolve_known_compute
from map_core.study.definition import Study, read_study
from map_core.study.place import Place
from map_core.study.report import comparisons, page, table
from map_core.study.results import Result, read_results
from map_core.study.runner import results_asked_for

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "docs" / "lab" / "studies"
PROGRAMS = {"map_vision.studies": "map-vision", "map_points.studies": "map-points"}
BLOCK = re.compile(
    r"(<!-- (?P<kind>study|paper|recipes|rows|peers) (?P<name>\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL
)


def find_study(name: str) -> tuple[Study, str]:
    """A packaged study and the command that runs it.

    Raises:
        FileNotFoundError: no package has it.
    """
    for package, program in PROGRAMS.items():
        path = Path(str(files(package))) / f"{name}.yaml"
        if path.is_file():
            return read_study(path, package), f"{program} study --study {name}"
    raise FileNotFoundError(f"no package has a study {name}")


def measured(name: str) -> tuple[Study, list[Result], str]:
    """A study, its committed results, and its command."""
    study, command = find_study(name)
    place = Place(name, STUDIES, STUDIES / f"{name}.jsonl")
    results = read_results(place.results, study.name)
    study = resolve_known_compute(study, results)
    return study, results_asked_for(study, results, place), command


def block(name: str) -> str:
    """The table of a study, the differences, and where the rest stands."""
    study, results, _ = measured(name)
    told = comparisons(study, results)
    return f"\n{table(study, results)}\n\n{told}\n\n"


def papers_tables(package: str) -> str:
    """The paper's tables as a package lists them."""
    domain = import_module(f"{package}.domain").DOMAIN
    return "".join(f"\n{markdown_table(table, domain.program)}\n" for table in read_tables(domain)) + "\n"


def recipes_table(package: str) -> str:
    """A package's recipes, each with the first line of its header."""
    rows = []
    for name in recipe_names(f"{package}.recipes"):
        with find_recipe(f"{package}.recipes", name) as path:
            rows.append(f"| `{name}` | {path.read_text().splitlines()[0].removeprefix('# ')} |")
    return "\n".join(["| recipe | |", "|---|---|", *rows]).replace("*", r"\*") + "\n"


def rows_of(name: str) -> str:
    """The rows of a benchmark's results, and what ran where."""
    results = json.loads((ROOT / "docs" / "lab" / f"{name}.json").read_text())
    heading = list(results["rows"][0])
    lines = [
        heading,
        ["---"] * len(heading),
        *([str(row[key]) for key in heading] for row in results["rows"]),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    ran = f"`{results['command']}` on {results['processor']}; {versions}; commit {results['commit'][:7]}."
    return f"\n{table}\n\n{ran}\n\n"


def peers_table(part: str) -> str:
    """A table of benchmarks/peers.py."""
    return TABLES[part]()


def asked_for(comment: re.Match[str]) -> str:
    """The first comment of a block, and what it asks for."""
    make = {
        "study": block,
        "paper": papers_tables,
        "recipes": recipes_table,
        "rows": rows_of,
        "peers": peers_table,
    }[comment["kind"]]
    return comment[1] + make(comment["name"])


def pages() -> dict[Path, str]:
    """What every page that speaks of studies should hold."""
    found = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        if BLOCK.search(text):
            found[path] = BLOCK.sub(asked_for, text)
    for path in sorted(STUDIES.glob("*.jsonl")):
        found[path.with_suffix(".md")] = page(*measured(path.stem))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    differing = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if parser.parse_args().check:
        for path in differing:
            print(f"{path.relative_to(ROOT)} differs from the results: run python docs/tables.py")
        return int(bool(differing))
    for path in differing:
        path.write_text(pages()[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
