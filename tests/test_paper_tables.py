"""The paper's tables: a cell's commands run existing recipes, each from the weights that the previous one writes."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from map_core.commands.command import Command
from map_core.commands.parser import parse
from map_core.commands.program import main
from map_core.commands.recipes import recipe_names
from map_core.commands.tables import Cell, Table, commands_of, read_tables
from map_core.tasks.domain import Domain
from map_points.cli import COMMANDS as POINT_COMMANDS
from map_points.domain import DOMAIN as POINTS
from map_vision.cli import COMMANDS as IMAGE_COMMANDS
from map_vision.domain import DOMAIN as IMAGES

# a norm may move behind the pooling
UNUSED_WEIGHTS = {"mask_token", "encoder.norm.weight", "encoder.norm.bias"}
COMMANDS = {"map-vision": IMAGE_COMMANDS, "map-points": POINT_COMMANDS}


@dataclass(frozen=True)
class Case:
    """A cell, with its table and package."""

    domain: Domain
    table: Table
    cell: Cell

    @property
    def commands(self) -> list[list[str]]:
        """The commands of this package's program, split into words."""
        lines = map(shlex.split, commands_of(self.cell, self.table, self.domain.program))
        return [words for words in lines if words[0] == self.domain.program]


def all_cases() -> Iterator[Any]:
    for domain in (IMAGES, POINTS):
        for table in read_tables(domain):
            for cell in table.cells:
                yield pytest.param(Case(domain, table, cell), id=f"{table.name}: {cell.row}")


CASES = list(all_cases())
CHAINS = [
    pytest.param(case, id=" ".join(runs))
    for runs, case in {tuple(case.values[0].cell.runs): case.values[0] for case in CASES}.items()
    if len(runs) > 1
]
SHAPES: dict[tuple[str, str, bool], dict[str, torch.Size]] = {}  # of models that were already built
PARAMETER_CASES = [case for case in CASES if case.values[0].cell.row.endswith("parameters")]


def resolve_config(words: list[str], domain: Domain) -> Any:
    """The configuration that a command resolves to, as ``--print_config`` shows it."""
    program, name, *arguments = words
    command: Command = next(entry for entry in COMMANDS[program] if entry.name == name)
    return parse(f"{program} {name}", command, COMMANDS[program], domain.recipes, arguments)


@pytest.mark.parametrize("case", CASES)
def test_the_commands_of_a_cell_resolve(case: Case) -> None:
    assert bool(case.cell.runs) != bool(case.cell.command)
    assert {run.partition(" ")[0] for run in case.cell.runs} <= set(recipe_names(case.domain.recipes))
    for words in case.commands:
        config = resolve_config(words, case.domain)
        if hasattr(config, "training"):
            config.training.validate()


def test_one_directory_is_for_one_command() -> None:
    commands_by_directory: dict[str, set[str]] = {}
    for case in CASES:
        for words in case.values[0].commands:
            if "--out" in words:
                commands_by_directory.setdefault(words[words.index("--out") + 1], set()).add(" ".join(words))
    assert [command for command in commands_by_directory.values() if len(command) > 1] == []


@pytest.mark.parametrize("case", CHAINS)
def test_each_run_of_a_cell_starts_from_the_one_before(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full-size models on the meta device: names and shapes fit, and so do settings that shapes do not show."""
    monkeypatch.chdir(tmp_path)
    previous: dict[str, torch.Size] = {}
    for words in case.commands:
        config = resolve_config(words, case.domain)
        current = record_shapes(case.domain, config, pretrained=words[1] == "pretrain")
        if previous:
            models = case.domain.models
            models.refuse_other_settings(config.model, config.init, may_differ=config.init_may_differ)
            assert previous.keys() - current.keys() <= UNUSED_WEIGHTS
            differing = {name for name in previous.keys() & current.keys() if previous[name] != current[name]}
            assert differing <= {"encoder.position.table"}, "positions are resampled to another grid"
        previous = current


def record_shapes(domain: Domain, config: Any, *, pretrained: bool) -> dict[str, torch.Size]:
    """The shapes of a run's weights; also writes the description that the next run reads."""
    description: dict[str, Any] = {"task": "pretrain", "holds": "encoder"}
    if not pretrained:
        classes = [str(number) for number in range(domain.outputs)]
        description = {"task": "finetune", "holds": "classifier", "classes": classes}
    Path(config.out).mkdir(parents=True)
    (Path(config.out) / "model.json").write_text(
        json.dumps(domain.models.describe(config.model, **description))
    )
    key = domain.program, repr(config.model), pretrained
    if key not in SHAPES:
        with torch.device("meta"):
            model = (
                domain.models.create_backbone(config.model)
                if pretrained
                else domain.models.create_classifier(config.model, domain.outputs)
            )
        SHAPES[key] = {name: value.shape for name, value in model.state_dict().items()}
    return SHAPES[key]


def test_one_table_is_printed_with_its_commands_and_all_without(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("map-vision", IMAGE_COMMANDS, IMAGES.recipes, ["tables", "--table", "7"]) == 0
    title, heading, diffusion, pretrain, finetune, *_ = capsys.readouterr().out.splitlines()
    assert title.startswith("Table 7: what is reconstructed")
    assert heading.split() == ["paper", "here", "recipes"]
    assert diffusion.split("83.3")[1].strip() == "not run  pretrain_base_in1k_diffusion, finetune_base_in1k"
    assert pretrain.strip() == (
        "map-vision pretrain --config pretrain_base_in1k_diffusion --data.root IMAGENET "
        "--out runs/pretrain_base_in1k_diffusion"
    )
    assert finetune.strip() == (
        "map-vision finetune --config finetune_base_in1k --data.root IMAGENET "
        "--init runs/pretrain_base_in1k_diffusion "
        "--out runs/finetune_base_in1k_of_pretrain_base_in1k_diffusion"
    )
    assert main("map-vision", IMAGE_COMMANDS, IMAGES.recipes, ["tables"]) == 0
    output = capsys.readouterr().out
    assert [f"Table {number}: " in output for number in range(1, 10)] == [True] * 8 + [False]
    assert "--out" not in output


def test_a_table_without_cells_here_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("map-points", POINT_COMMANDS, POINTS.recipes, ["tables", "--table", "6"]) == 2
    assert capsys.readouterr().err == (
        "map-points: error: --table 6 has no cells of map-points; known names: 11, supplement\n"
    )


@pytest.mark.parametrize("case", PARAMETER_CASES)
def test_parameters_are_as_stated(case: Case) -> None:
    config = resolve_config(case.commands[0], case.domain)
    with torch.device("meta"):
        model = case.domain.models.create_classifier(config.model, case.domain.outputs)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert case.cell.here == f"{count / 1e6:.1f}M"
    assert float(case.cell.paper[:-1]) == pytest.approx(count / 1e6, rel=0.04)  # the paper rounds
