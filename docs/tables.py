"""Write the results of studies into the pages that report them, from docs/lab/studies/*.jsonl; nobody types a number.

    python docs/tables.py            rewrite the pages
    python docs/tables.py --check    list the pages that differ from the results, and fail

A page places a study's table between two comments, ``<!-- study NAME -->`` and ``<!-- end -->``. ``<!-- paper PACKAGE
-->`` stands for the paper's tables in map_vision or map_points, ``<!-- recipes PACKAGE -->`` for its recipes, ``<!--
rows NAME -->`` for the rows of docs/lab/NAME.json, and ``<!-- peers PART -->`` for results of benchmarks/peers.py. The
page of a study itself, docs/lab/studies/NAME.md, is its report.
"""

import argparse
import json
import re
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from peers_tables import TABLES, markdown

from map_core.commands.recipes import find_recipe, recipe_names
from map_core.commands.tables import markdown_table, read_tables
from map_core.study.consistency import planned_results
from map_core.study.cost import resolve_known_compute
from map_core.study.definition import Study, read_study
from map_core.study.location import StudyLocation
from map_core.study.report import comparisons, page, short_commit, table
from map_core.study.results import Result, read_results

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / "docs" / "lab" / "studies"
PROGRAMS = {"map_vision.studies": "map-vision", "map_points.studies": "map-points"}
BLOCK = re.compile(
    r"(<!-- (?P<kind>study|paper|recipes|rows|peers) (?P<name>\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL
)


def find_study(name: str) -> tuple[Study, str]:
    """A packaged study and the command that runs it.

    Raises:
        FileNotFoundError: no package has a study of that name.
    """
    for package, program in PROGRAMS.items():
        path = Path(str(files(package))) / f"{name}.yaml"
        if path.is_file():
            return read_study(path, package), f"{program} study --study {name}"
    raise FileNotFoundError(f"no package has a study {name}")


def load_study(name: str) -> tuple[Study, list[Result], str]:
    """A study, its committed results, and its command."""
    study, command = find_study(name)
    location = StudyLocation(name, STUDIES, STUDIES / f"{name}.jsonl")
    results = read_results(location.results, study.name)
    study = resolve_known_compute(study, results)
    return study, planned_results(study, results, location), command


def study_table(name: str) -> str:
    """The table of a study, and the differences between its arms."""
    study, results, _ = load_study(name)
    differences = comparisons(study, results)
    return f"\n{table(study, results)}\n\n{differences}\n\n"


def paper_tables(package: str) -> str:
    """The paper's tables in a package."""
    domain = import_module(f"{package}.domain").DOMAIN
    return "".join(f"\n{markdown_table(table, domain.program)}\n" for table in read_tables(domain)) + "\n"


def recipes_table(package: str) -> str:
    """A package's recipes, each with the first line of its header."""
    rows = []
    for name in recipe_names(f"{package}.recipes"):
        with find_recipe(f"{package}.recipes", name) as path:
            rows.append(f"| `{name}` | {path.read_text().splitlines()[0].removeprefix('# ')} |")
    return "\n".join(["| recipe | |", "|---|---|", *rows]).replace("*", r"\*") + "\n"


def results_table(name: str) -> str:
    """The rows of a benchmark's results, with command, processor, versions and commit."""
    results = json.loads((ROOT / "docs" / "lab" / f"{name}.json").read_text())
    heading = list(results["rows"][0])
    rows = [[str(row[key]) for key in heading] for row in results["rows"]]
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    commit = short_commit(results["commit"])
    provenance = f"`{results['command']}` on {results['processor']}; {versions}; commit {commit}."
    return f"\n{markdown(heading, rows)}\n{provenance}\n\n"


def peers_table(part: str) -> str:
    """A table of benchmarks/peers.py."""
    return TABLES[part]()


def render_block(comment: re.Match[str]) -> str:
    """The opening comment of a block, followed by the content that it names."""
    render = {
        "study": study_table,
        "paper": paper_tables,
        "recipes": recipes_table,
        "rows": results_table,
        "peers": peers_table,
    }[comment["kind"]]
    return comment[1] + render(comment["name"])


def pages() -> dict[Path, str]:
    """The text that every page with such a block should have."""
    contents = {}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        if BLOCK.search(text):
            contents[path] = BLOCK.sub(render_block, text)
    for path in sorted(STUDIES.glob("*.jsonl")):
        contents[path.with_suffix(".md")] = page(*load_study(path.stem))
    return contents


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    differing = {
        path: text for path, text in pages().items() if not path.exists() or path.read_text() != text
    }
    if arguments.check:
        for path in differing:
            print(f"{path.relative_to(ROOT)} differs from the results: run python docs/tables.py")
        return int(bool(differing))
    for path, text in differing.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
