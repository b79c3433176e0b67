"""Other projects' checkpoints written as runs of ours: weights, their description, and the decoder if there is one."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from map_core.errors import UserError, in_one_line
from map_core.objective import Objective
from map_core.runs.files import UNFINISHED, explaining_disk_errors
from map_core.runs.summary import refuse_training_run
from map_core.tasks.domain import Domain
from map_core.tasks.families import Converted, Family, family_of, refuse_unknown
from map_core.tasks.initial_weights import LoadReport
from map_core.tasks.pretraining import DECODER, ENCODER, load_decoder_state, save_decoder
from map_core.tasks.setting_values import format_options
from map_core.tasks.weights import (
    MODEL_FILE,
    description_file,
    read_description,
    read_settings,
    read_weights,
    save_weights,
    weights_file,
)

DECODER_FILE = f"{DECODER}.safetensors"


def convert_checkpoint(
    domain: Domain,
    path: str | Path,
    out: Path,
    *,
    model: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    classes: tuple[str, ...] = (),
) -> LoadReport:
    """Write a checkpoint of a known family as the directory of a run.

    The model is built and loaded first, so that the weights fit the description that is written; files of an earlier
    model in ``out`` are removed.

    Args:
        domain: Whose families are tried.
        path: The checkpoint.
        out: Directory for ``model.safetensors``, ``model.json`` and, where there is a decoder, ``pretraining.*``.
        model: Settings of the model section that the checkpoint does not show, or another size to resample to.
        objective: Likewise of the objective section, for its decoder.
        classes: Names of a classifier's outputs; the family's when empty.

    Raises:
        UserError: a file of ours, of no known family, or one that would be overwritten; ``out`` is a training run;
            settings that do not fit it or are missing; another number of classes; or the disk refuses, which leaves an
            earlier model as it was.
    """
    refuse_training_run(out, replaced="model")
    file = weights_file(path)
    if file.resolve() in {(out / name).resolve() for name in (MODEL_FILE, DECODER_FILE)}:
        raise UserError(f"out {out} is where {file} lies, which would be overwritten; give another directory")
    converted, family = read_and_convert(domain, file)
    if objective and not converted.decoder_state:
        options = ", ".join(f"--{name}" for name in objective)
        raise UserError(f"{file} has no decoder, which {options} would describe: leave it out")
    model_settings = {**converted.model, **(model or {})}
    if missing := [
        request for name, request in converted.required_settings.items() if name not in model_settings
    ]:
        raise UserError(f"{file}: {'; '.join(missing)}")
    config = read_settings(domain.models.config, model_settings, file)
    classes = check_classes(classes or converted.classes, converted, file)
    network = build_model(domain, config, converted, len(classes))
    report = domain.models.load_init(network, file)
    if report.missing and converted.holds == "classifier":
        raise UserError(
            f"{file} is a classifier, of which {config.name} would keep no {', '.join(report.missing)}: they would be "
            "random; say with --model what it is"
        )
    guesses = (
        guess.note(name) for name, guess in converted.guessed_settings.items() if name not in (model or {})
    )
    report = replace(report, notes=(*guesses, *converted.notes))
    full_objective: Objective | None = None
    settings: Any = None
    if converted.decoder_state:
        settings = read_settings(domain.objective, {**converted.objective, **(objective or {})}, file)
        full_objective = domain.build_objective(network, settings)
        mismatch = decoder_mismatch(model or {}, objective or {}, family)
        report = with_decoder(report, full_objective, converted, mismatch)
    origin = {"family": family.name, "source": file.name}
    description = domain.models.describe(
        config,
        task="convert",
        holds=converted.holds,
        weights="raw",
        **origin,
        **converted.preprocessing,
        **converted.extra_description,
    )
    if classes:
        description["classes"] = list(classes)
    with explaining_disk_errors(f"write {out}", then="repeat the command"):
        folder = out / f"{UNFINISHED}model"
        shutil.rmtree(folder, ignore_errors=True)  # left by a command that was killed
        try:
            folder.mkdir(parents=True)
            if full_objective is not None:
                save_decoder(folder / DECODER_FILE, full_objective, settings, weights="raw")
            save_weights(folder / MODEL_FILE, network.state_dict(), description)
            remove_model(out)
            # the decoder first, as a run is its encoder
            for written in sorted(folder.iterdir(), reverse=True):
                os.replace(written, out / written.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return report


def read_and_convert(domain: Domain, file: Path) -> tuple[Converted, Family]:
    """Read and convert another project's checkpoint.

    Raises:
        UserError: it is one of ours, or of no known family.
    """
    if (name := read_description(file).get("name")) is not None:
        raise UserError(
            f"{file} is one of ours already, which {description_file(file).name} describes as {in_one_line(name)}: "
            "start from it with --init, or load it as it is"
        )
    state = read_weights(file)
    family = family_of(state, domain.models.families)
    if family is None:
        refuse_unknown(state, domain.models.families, file)
    return family.convert_file_state(state, file), family


def build_model(domain: Domain, config: Any, converted: Converted, num_classes: int) -> nn.Module:
    """Build the model that a checkpoint fits."""
    if converted.holds in domain.builders:
        return domain.builders[converted.holds](config, converted.extra_description)
    if converted.holds == "classifier":
        return domain.models.create_classifier(config, num_classes)
    return domain.models.create_backbone(config)


def check_classes(classes: tuple[str, ...], converted: Converted, file: Path) -> tuple[str, ...]:
    """Return the names of a classifier's outputs, or of categories; none for an encoder.

    Raises:
        UserError: the number of names differs from that of the outputs, or there are no outputs to name.
    """
    if not converted.classes:
        if classes:
            raise UserError(f"{file} has no classes: leave --classes out")
        return ()
    if len(classes) != len(converted.classes):
        raise UserError(
            f"{file} has {len(converted.classes)} classes, but {len(classes)} names were given; give one a line"
        )
    return classes


def with_decoder(report: LoadReport, objective: Objective, converted: Converted, mismatch: str) -> LoadReport:
    """Load decoder and head, and add them to the report."""
    resampled = load_decoder_state(objective, converted.decoder_state, report.source, mismatch)
    return replace(
        report,
        unused=converted.unused,
        mapped=(*report.mapped, *converted.decoder_state),
        resampled=(*report.resampled, *resampled),
    )


def decoder_mismatch(model: Mapping[str, Any], objective: Mapping[str, Any], family: Family) -> str:
    """The end of an error message: the file's decoder has other sizes than the objective that these settings make."""
    options = [*format_options(model, "model."), *format_options(objective)]
    if not options:
        return f"has the names of {family.name}, but other shapes; download it again"
    return f"has a decoder that does not fit {', '.join(options)}; leave out what changes its sizes"


def remove_model(out: Path) -> None:
    """Remove an earlier model and its decoder, weights first, so that no crash leaves parts of it beside a new one."""
    for suffix in (".safetensors", ".json"):
        for name in (ENCODER, DECODER):
            (out / f"{name}{suffix}").unlink(missing_ok=True)
