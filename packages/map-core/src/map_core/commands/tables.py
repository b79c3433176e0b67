"""The command ``tables``: the cells of the paper's tables, its figures, and the commands that compute them here."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

from map_core.commands.options import Option, config_class
from map_core.commands.plain_yaml import read_texts
from map_core.errors import UserError, near_matches
from map_core.tasks.domain import Domain

TablesConfig = config_class(
    "TablesConfig",
    "The cells of the paper's tables: its figure, ours, and the recipes that compute them.",
    table=Option(str | None, "Only this table, with its commands in full.", None),
)
COMMAND_BY_PREFIX = {"linear": "linear-probe"}  # for recipes whose names do not begin with their command's
ABSENT, NOT_RUN = "-", "not run"
WIDTH = 110  # of the text printed below a table
FROM_A_SUMMARY = "*"
FOOTNOTE = f"{FROM_A_SUMMARY} as a summary of the paper has it"


@dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Attributes:
        row: What the figure is of.
        paper: The paper's figure, as text.
        runs: Recipes in the order in which they run, each followed by its options.
        command: The command that computes it, where no recipe does.
        here: Our figure, as text.
    """

    row: str
    paper: str = ABSENT
    runs: Sequence[str] = ()
    command: str = ""
    here: str = NOT_RUN


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: Its number, or its place in the paper.
        title: What it compares.
        measure: What its figures measure.
        roots: The folder of the data in the commands, by a recipe's first word.
        cells: Its rows.
        note: What the paper leaves open, and how it is read here.
        study: A packaged study that makes the same comparison on smaller models.
    """

    name: str
    title: str
    measure: str
    roots: dict[str, str]
    cells: Sequence[Cell]
    note: str = ""
    study: str = ""


def read_tables(domain: Domain) -> list[Table]:
    """The tables that a domain's package holds."""
    with as_file(files(f"{domain.module}.tables") / "paper.yaml") as path:
        entries = read_texts(path)
    return [
        Table(entry.pop("table"), cells=[Cell(**cell) for cell in entry.pop("cells")], **entry)
        for entry in entries
    ]


def commands_of(cell: Cell, table: Table, program: str) -> list[str]:
    """The commands that compute a cell, each run started from the previous one.

    Args:
        cell: One of ``table``.
        table: Names the folders of the data.
        program: The program that has the recipes.
    """
    commands, previous = [cell.command] if cell.command else [], ""
    for run in cell.runs:
        recipe, _, options = run.partition(" ")
        first_word = recipe.partition("_")[0]
        options, _, out = options.partition("--out ")
        out = out or "_of_".join([f"runs/{recipe}", *([previous.removeprefix("runs/")] if previous else [])])
        words = [
            f"{program} {COMMAND_BY_PREFIX.get(first_word, first_word)} --config {recipe}",
            options.strip(),
        ]
        words += [
            f"--data.root {table.roots[first_word]}",
            f"--init {previous}" if previous else "",
            f"--out {out}",
        ]
        commands.append(" ".join(word for word in words if word))
        previous = out
    return commands


def show_table(table: Table, program: str, *, in_full: bool) -> str:
    """A table as text.

    Args:
        table: A table of the paper.
        program: The program whose recipes compute it.
        in_full: Print the commands below each row.
    """
    texts = [("", "paper", "here"), *((cell.row, cell.paper, cell.here) for cell in table.cells)]
    row, paper, here = (max(len(text) for text in column) for column in zip(*texts, strict=True))
    lines = [f"{heading(table)} ({table.measure})"]
    lines.append(f"  {'':{row}}  {'paper':>{paper}}  {'here':>{here}}  recipes")
    for cell in table.cells:
        lines.append(
            f"  {cell.row:{row}}  {cell.paper:>{paper}}  {cell.here:>{here}}  {', '.join(recipes_of(cell))}"
        )
        lines += [f"      {command}" for command in commands_of(cell, table, program)] if in_full else []
    for remark in remarks(table, program):
        lines += textwrap.wrap(remark, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def markdown_table(table: Table, program: str) -> str:
    """A table in Markdown."""
    lines = ["| row | paper | recipes | here |", "|---|---|---|---|"]
    for cell in table.cells:
        recipes = ", ".join(f"`{name}`" for name in recipes_of(cell))
        lines.append(f"| {cell.row} | {cell.paper} | {recipes} | {cell.here} |")
    below = "\n".join([*lines, "", *remarks(table, program)]).replace("*", r"\*")
    return f"**{heading(table)}** ({table.measure})\n\n{below}".rstrip()


def recipes_of(cell: Cell) -> list[str]:
    """The recipes of a cell, or the command that computes it without any."""
    return [run.partition(" ")[0] for run in cell.runs] or [cell.command]


def heading(table: Table) -> str:
    """The table's number and what it compares."""
    name = f"Table {table.name}" if table.name.isdigit() else table.name.capitalize()
    return f"{name}: {table.title}"


def remarks(table: Table, program: str) -> list[str]:
    """The sentences below a table."""
    sentences = [f"{table.note[0].upper()}{table.note[1:]}."] if table.note else []
    sentences += [f"Asked of smaller models: {program} study --study {table.study}."] if table.study else []
    starred = any(cell.paper.endswith(FROM_A_SUMMARY) for cell in table.cells) or FROM_A_SUMMARY in table.note
    return [*sentences, *([f"{FOOTNOTE}."] if starred else [])]


def tables(domain: Domain, config: Any) -> None:
    """Print every table, or one with its commands in full.

    Raises:
        UserError: there is no such table here.
    """
    tables_by_name = {table.name: table for table in read_tables(domain)}
    if config.table is not None and config.table not in tables_by_name:
        raise UserError(
            f"--table {config.table} has no cells of {domain.program}; {near_matches(config.table, tables_by_name)}"
        )
    selection = list(tables_by_name.values()) if config.table is None else [tables_by_name[config.table]]
    print(
        "\n\n".join(
            show_table(table, domain.program, in_full=config.table is not None) for table in selection
        )
    )
