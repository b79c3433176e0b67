"""The commands of every domain, listed without importing what they need: ``--help`` does not wait for torch."""

import importlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Union

from map_core.commands.command import Command, import_target

if TYPE_CHECKING:
    from map_core.tasks.domain import Domain

STANDARD_MODULE, RESULTS_MODULE = "map_core.commands.standard", "map_core.commands.results"
DomainOrTarget = Union["Domain", str]  # a string "module:attribute" is imported when a command is used


def standard_commands(domain: DomainOrTarget, *, sample: str) -> list[Command]:
    """The commands of a domain, in the order in which its ``--help`` lists them.

    Args:
        domain: The domain, or where to import it from.
        sample: Its word for one sample, such as "image".
    """
    files = f"{sample}s"
    on_files: Any = {"module": RESULTS_MODULE, "defaults": domain_function("data_of_run", domain)}
    on_data = on_files | {"defaults": domain_function("data_to_measure", domain)}

    def command(name: str, help: str, *, module: str = STANDARD_MODULE, **more: Any) -> Command:
        function = name.replace("-", "_")
        run = domain_function(function, domain, module=module)
        return Command(name, help, domain_function("config_of", domain, function), run, **more)

    pretraining = command("pretrain", f"pretrain an encoder on {files}")
    finetuning = command("finetune", "train a classifier")
    probing = command("linear-probe", "train a linear classifier on frozen features")
    return [
        replace(
            pretraining,
            defaults=domain_function("inputs_of_run", domain),
            pinned=domain_function("model_of_weights", domain),
        ),
        starting_from_run(domain, finetuning),
        starting_from_run(domain, probing),
        command("evaluate", "measure a trained model", **on_data),
        command("predict", f"classes of {files}, as CSV", **on_files),
        command("features", "features as npz, and a kNN score", **on_data),
        command("reconstruct", "picture of what a pretrained model reconstructs", **on_data),
        command("info", "versions, devices, implementations, models"),
    ]


def convert_command(domain: DomainOrTarget) -> Command:
    """The command that reads other projects' checkpoints, for a domain that knows families of them."""
    module = "map_core.commands.convert"
    return Command(
        "convert",
        "read another project's checkpoint",
        domain_function("convert_config", domain, module=module),
        domain_function("convert", domain, module=module),
        essential=("model.num_heads", "model.img_size", "model.num_patches"),
        positional="file",
    )


def export_command(domain: DomainOrTarget) -> Command:
    """The command that writes a trained model as a program without this package, for a domain."""
    module = "map_core.commands.export"
    return Command(
        "export",
        "a trained model as ONNX, or as a program of torch.export",
        domain_function("export_config", domain, module=module),
        domain_function("export", domain, module=module),
        essential=("model.img_size",),
        positional="run",
    )


def tables_command(domain: DomainOrTarget) -> Command:
    """The command that lists the cells of the paper's tables, for a domain that has some."""
    module = "map_core.commands.tables"
    return Command(
        "tables",
        "the paper's tables: its figures, and the commands that compute them",
        f"{module}:TablesConfig",
        domain_function("tables", domain, module=module),
    )


def sharing_commands(domain: DomainOrTarget) -> list[Command]:
    """The commands that turn a run into a folder to share, and upload one, for a domain."""
    module = "map_core.commands.card"
    hub = "map_core.commands.hub"
    return [
        Command(
            "card",
            "a run as a folder to share, with a model card",
            f"{module}:CardConfig",
            domain_function("card", domain, module=module),
            positional="run",
        ),
        Command(
            "push-to-hub", "upload such a folder", f"{hub}:PushConfig", f"{hub}:push", positional="folder"
        ),
    ]


def study_commands(domain: DomainOrTarget) -> list[Command]:
    """The two commands of studies, for a domain."""
    module = "map_core.study.command"
    study, report = (domain_function(name, domain, module=module) for name in ("study", "study_report"))
    return [
        Command("study", "compare arms over seeds, resumable", f"{module}:StudyConfig", study),
        Command("study-report", "tables and plot of a study", f"{module}:StudyReportConfig", report),
    ]


def starting_from_run(domain: DomainOrTarget, command: Command) -> Command:
    """A command that trains from ``--init``: recipes override that run's settings, but not those its weights need."""
    return replace(
        command,
        defaults=domain_function("model_of_run", domain),
        pinned=domain_function("model_of_weights", domain),
    )


def domain_function(
    name: str, domain: DomainOrTarget, *more: Any, module: str = STANDARD_MODULE
) -> "partial[Any]":
    """A function of a module with the domain as its first argument; it is imported when it is called."""
    return partial(import_and_call, module, name, domain, *more)


def import_and_call(module: str, name: str, domain: DomainOrTarget, *arguments: Any) -> Any:
    """Import a function and call it with the domain."""
    return getattr(importlib.import_module(module), name)(import_target(domain), *arguments)
