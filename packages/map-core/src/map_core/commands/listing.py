"""The commands that every domain has, listed without importing what they need: ``--help`` does not wait for torch."""

import importlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Union

from map_core.commands.command import Command, imported

if TYPE_CHECKING:
    from map_core.tasks.domain import Domain

STANDARD, RESULTS = "map_core.commands.standard", "map_core.commands.results"
SomeDomain = Union["Domain", str]  # or "module:attribute", imported when a command is used


def standard_commands(domain: SomeDomain, *, sample: str) -> list[Command]:
    """The commands of a domain, in the order in which its ``--help`` lists them.

    Args:
        domain: The domain, or where it is.
        sample: What it calls one sample, such as "image".
    """
    files = f"{sample}s"
    of_results: Any = {"module": RESULTS, "defaults": of_domain("data_of_run", domain)}

    def command(name: str, help: str, *, module: str = STANDARD, **more: Any) -> Command:
        function = name.replace("-", "_")
        kind = "finetune" if name == "linear-probe" else function
        run = of_domain(function, domain, module=module)
        return Command(name, help, of_domain("config_of", domain, kind), run, **more)

    finetuning = command("finetune", "train a classifier")
    probing = command("linear-probe", "train a linear classifier on frozen features")
    return [
        command("pretrain", f"pretrain an encoder on {files}"),
        starting_from_run(domain, finetuning),
        starting_from_run(domain, probing),
        command("evaluate", "measure a trained model", **of_results),
        command("predict", f"classes of {files}, as CSV", **of_results),
        command("features", "features as npz, and a kNN score", **of_results),
        command("reconstruct", "picture of what a pretrained model reconstructs", **of_results),
        command("info", "versions, devices, implementations, models"),
    ]


def convert_command(domain: SomeDomain) -> Command:
    """The command that reads other projects' checkpoints, for a domain that knows families of them."""
    module = "map_core.commands.convert"
    return Command(
        "convert",
        "read another project's checkpoint",
        of_domain("convert_config", domain, module=module),
        of_domain("convert", domain, module=module),
        essential=("model.num_heads", "model.img_size", "model.num_patches"),
        positional="file",
    )


def export_command(domain: SomeDomain) -> Command:
    """The command that writes a trained model as a program without this package, for a domain."""
    module = "map_core.commands.export"
    return Command(
        "export",
        "a trained model as ONNX, or as a program of torch.export",
        of_domain("export_config", domain, module=module),
        of_domain("export", domain, module=module),
        essential=("model.img_size",),
        positional="run",
    )


def tables_command(domain: SomeDomain) -> Command:
    """The command that lists the cells of the paper's tables, for a domain that has some."""
    module = "map_core.commands.tables"
    return Command(
        "tables",
        "the paper's tables: its figures, and the commands that compute them",
        f"{module}:TablesConfig",
        of_domain("tables", domain, module=module),
    )


def sharing_commands(domain: SomeDomain) -> list[Command]:
    """The commands that make a run a folder to share, and upload one, for a domain."""
    module = "map_core.commands.card"
    kind, card = (of_domain(name, domain, module=module) for name in ("card_config", "card"))
    hub = "map_core.commands.hub"
    return [
        Command("card", "a run as a folder to share, with a model card", kind, card, positional="run"),
        Command(
            "push-to-hub", "upload such a folder", f"{hub}:PushConfig", f"{hub}:push", positional="folder"
        ),
    ]


def study_commands(domain: SomeDomain) -> list[Command]:
    """The two commands of studies, for a domain."""
    module = "map_core.study.command"
    study, report = (of_domain(name, domain, module=module) for name in ("study", "study_report"))
    return [
        Command("study", "compare arms over seeds, resumable", f"{module}:StudyConfig", study),
        Command("study-report", "tables and plot of a study", f"{module}:StudyReportConfig", report),
    ]


def starting_from_run(domain: SomeDomain, command: Command) -> Command:
    """A command that trains from ``--init``: what the weights there are tied to overrides recipes, the rest not."""
    return replace(
        command, defaults=of_domain("model_of_run", domain), settled=of_domain("model_of_weights", domain)
    )


def of_domain(name: str, domain: SomeDomain, *more: Any, module: str = STANDARD) -> "partial[Any]":
    """A function of a module, given its domain, that is imported when it is called."""
    return partial(call, module, name, domain, *more)


def call(module: str, name: str, domain: SomeDomain, *arguments: Any) -> Any:
    """Import a function and call it with the domain."""
    return getattr(importlib.import_module(module), name)(imported(domain), *arguments)
