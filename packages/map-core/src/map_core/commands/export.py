"""The command ``export``: a trained model as a program that does not need this package."""

from dataclasses import asdict
from functools import cache
from typing import Any

from map_core.commands.convert import changes_of
from map_core.commands.options import Option, config_class
from map_core.paths import expand_user
from map_core.runs.files import require_file
from map_core.runs.notes import tell
from map_core.tasks.domain import Domain
from map_core.tasks.export import ENDING, Format, export_run


@cache
def export_config(domain: Domain) -> type:
    """The configuration."""
    return config_class(
        "ExportConfig",
        f"A run's classifier or encoder as a program that runs without {domain.program}.",
        run=Option(str, "A pretraining, finetuning or probing run, or its weights file."),
        format=Option(Format, "onnx for ONNX Runtime and others, or torch-export for PyTorch alone.", "onnx"),
        encoder=Option(
            bool, "Write the encoder of a classifier: pooled features and tokens, no classes.", False
        ),
        any_size=Option(bool, f"Leave {' and '.join(domain.size_axes.values())} free, too.", domain.any_size),
        model=Option(
            changes_of(domain),
            "Settings that are to differ from the run's model, such as the size of its inputs.",
        ),
        out=Option(str | None, "File to write; model.onnx or model.pt2 when not given.", None),
    )


def export(domain: Domain, config: Any) -> None:
    """Write the program and report how close its results are to the model's.

    Raises:
        UserError: see :func:`~map_core.tasks.export.export_run`.
    """
    out = expand_user(config.out or f"model{ENDING[config.format]}")
    require_file(out)
    difference = export_run(
        domain,
        config.run,
        out,
        format=config.format,
        encoder=config.encoder,
        any_size=config.any_size,
        changes={key: value for key, value in asdict(config.model).items() if value is not None},
    )
    tell(f"differs from the model by at most {difference:.2g} on random {domain.sample}s\n-> {out}")
