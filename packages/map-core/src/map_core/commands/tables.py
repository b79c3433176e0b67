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
COMMANDS = {"linear": "linear-probe"}  # of recipes whose names do not begin with their command's
ABSENT, NOT_RUN = "-", "not run"
WIDTH = 110  # of what is printed below a table
FROM_A_SUMMARY = "*"
FOOTNOTE = f"{FROM_A_SUMMARY} as a summary of the paper has it"


@dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Attributes:
        row: What it is a figure of.
        paper: The paper's figure, as text.
        runs: Recipes in the order in which they run, each with options behind its name.
        command: What else computes it, where no recipe does.
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
        name: Its number, or where it stands.
        title: What it compares.
        measure: What its figures measure.
        roots: What commands call the folder of the data, by a recipe's first word.
        cells: Its rows.
        note: What the paper leaves open, and how it is read.
        study: A packaged study that asks the same of smaller models.
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
        listed = read_texts(path)
    return [
        Table(entry.pop("table"), cells=[Cell(**cell) for cell in entry.pop("cells")], **entry)
        for entry in listed
    ]


def commands_of(cell: Cell, table: Table, program: str) -> list[str]:
    """The commands that compute a cell, each run started from the one before.

    Args:
        cell: One of ``table``.
        table: Has the names of the data's folders.
        program: Whose recipes they are.
    """
    commands, before = [cell.command] if cell.command else [], ""
    for run in cell.runs:
        recipe, _, options = run.partition(" ")
        kind = recipe.partition("_")[0]
        options, _, out = options.partition("--out ")
        out = out or "_of_".join([f"runs/{recipe}", *([before.removeprefix("runs/")] if before else [])])
        words = [f"{program} {COMMANDS.get(kind, kind)} --config {recipe}", options.strip()]
        words += [f"--data.root {table.roots[kind]}", f"--init {before}" if before else "", f"--out {out}"]
        commands.append(" ".join(word for word in words if word))
        before = out
    return commands


def show_table(table: Table, program: str, *, in_full: bool) -> str:
    """A table as text.

    Args:
        table: Of the paper.
        program: Whose recipes compute it.
        in_full: Print the commands below each row.
    """
    texts = [("", "paper", "here"), *((cell.row, cell.paper, cell.here) for cell in table.cells)]
    row, paper, here = (max(len(text) for text in column) for column in zip(*texts, strict=True))
    lines = [f"{heading(table)} ({table.measure})"]
    lines.append(f"  {'':{row}}  {'paper':>{paper}}  {'here':>{here}}  recipes")
    for cell in table.cells:
        lines.append(
            f"  {cell.row:{row}}  {cell.paper:>{paper}}  {cell.here:>{here}}  {', '.join(names(cell))}"
        )
        lines += [f"      {command}" for command in commands_of(cell, table, program)] if in_full else []
    for remark in remarks(table, program):
        lines += textwrap.wrap(remark, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def markdown_table(table: Table, program: str) -> str:
    """A table as a page shows it."""
    lines = ["| row | paper | recipes | here |", "|---|---|---|---|"]
    for cell in table.cells:
        recipes = ", ".join(f"`{name}`" for name in names(cell))
        lines.append(f"| {cell.row} | {cell.paper} | {recipes} | {cell.here} |")
    below = "\n".join([*lines, "", *remarks(table, program)]).replace("*", r"\*")
    return f"**{heading(table)}** ({table.measure})\n\n{below}".rstrip()


def names(cell: Cell) -> list[str]:
    """The recipes of a cell, or the command that takes none."""
    return [run.partition(" ")[0] for run in cell.runs] or [cell.command]


def heading(table: Table) -> str:
    """Its number and what it compares."""
    name = f"Table {table.name}" if table.name.isdigit() else table.name.capitalize()
    return f"{name}: {table.title}"


def remarks(table: Table, program: str) -> list[str]:
    """What is said below a table."""
    said = [f"{table.note[0].upper()}{table.note[1:]}."] if table.note else []
    said += [f"Asked of smaller models: {program} study --study {table.study}."] if table.study else []
    starred = any(cell.paper.endswith(FROM_A_SUMMARY) for cell in table.cells) or FROM_A_SUMMARY in table.note
    return [*said, *([f"{FOOTNOTE}."] if starred else [])]


def tables(domain: Domain, config: Any) -> None:
    """Print every table, or one with its commands in full.

    Raises:
        UserError: there is no such table here.
    """
    listed = {table.name: table for table in read_tables(domain)}
    if config.table is not None and config.table not in listed:
        raise UserError(
            f"--table {config.table} has no cells of {domain.program}; {near_matches(config.table, listed)}"
        )
    chosen = list(listed.values()) if config.table is None else [listed[config.table]]
    print(
        "\n\n".join(show_table(table, domain.program, in_full=config.table is not None) for table in chosen)
    )
