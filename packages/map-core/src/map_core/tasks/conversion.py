"""Other projects' checkpoints written as runs of ours: weights, their description, and what decoder there is."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from map_core.errors import UserError, in_one_line
from map_core.objective import Objective
from map_core.tasks.domain import Domain
from map_core.tasks.families import Converted, Family, family_of, refuse_unknown
from map_core.tasks.pretraining import DECODER, ENCODER, load_rest, rest_of_state
from map_core.tasks.typed import told_options
from map_core.tasks.weights import (
    MODEL_FILE,
    LoadReport,
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

    The model is made and loaded first, so that what is written fits what describes it; what ``out`` has of another
    model goes.

    Args:
        domain: Whose families are tried.
        path: The checkpoint.
        out: Directory for ``model.safetensors``, ``model.json`` and, where there is a decoder, ``pretraining.*``.
        model: Settings of the model section that the checkpoint does not show, or another size to resample to.
        objective: Likewise of the objective section, for its decoder.
        classes: Names of a classifier's outputs; the family's when empty.

    Raises:
        UserError: a file of ours, of no known family, or one that would be overwritten; settings that do not fit it or
            are not given; or another number of classes.
    """
    file = weights_file(path)
    if file.resolve() in {(out / name).resolve() for name in (MODEL_FILE, DECODER_FILE)}:
        raise UserError(f"out {out} is where {file} lies, which would be overwritten; give another directory")
    converted, family = read_family(domain, file)
    if objective and not converted.rest:
        told = ", ".join(f"--{name}" for name in objective)
        raise UserError(f"{file} has no decoder, which {told} would describe: leave it out")
    given = {**converted.model, **(model or {})}
    if not_given := [told for name, told in converted.asked.items() if name not in given]:
        raise UserError(f"{file}: {'; '.join(not_given)}")
    config = read_settings(domain.models.config, given, file)
    classes = fitting_classes(classes or converted.classes, converted, file)
    built = built_model(domain, config, converted, len(classes))
    report = domain.models.load_init(built, file)
    if report.fresh and converted.holds == "classifier":
        raise UserError(
            f"{file} is a classifier, of which {config.name} would keep no {', '.join(report.fresh)}: they would be "
            "random; say with --model what it is"
        )
    guessed = (note for name, note in converted.guessed.items() if name not in (model or {}))
    report = replace(report, notes=(*guessed, *converted.notes))
    whole: Objective | None = None
    settings: Any = None
    if converted.rest:
        settings = read_settings(domain.objective, {**converted.objective, **(objective or {})}, file)
        whole = domain.build_objective(built, settings)
        report = with_decoder(report, whole, converted, other_decoder(model or {}, objective or {}, family))
    origin = {"family": family.name, "source": file.name}
    described = domain.models.describe(
        config,
        task="convert",
        holds=converted.holds,
        weights="raw",
        **origin,
        **converted.prepared,
        **converted.more,
    )
    if classes:
        described["classes"] = list(classes)
    out.mkdir(parents=True, exist_ok=True)
    remove_model(out)
    if whole is not None:
        write_decoder(whole, settings, out)
    save_weights(out / MODEL_FILE, built.state_dict(), described)
    return report


def read_family(domain: Domain, file: Path) -> tuple[Converted, Family]:
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
    assert family is not None
    return family.converted(state, file), family


def built_model(domain: Domain, config: Any, converted: Converted, num_classes: int) -> nn.Module:
    """The model that a checkpoint fits."""
    if converted.holds in domain.builders:
        return domain.builders[converted.holds](config, converted.more)
    if converted.holds == "classifier":
        return domain.models.create_classifier(config, num_classes)
    return domain.models.create_backbone(config)


def fitting_classes(classes: tuple[str, ...], converted: Converted, file: Path) -> tuple[str, ...]:
    """Names for a classifier's outputs, or for categories; none for an encoder.

    Raises:
        UserError: not as many as there are outputs, or names for none.
    """
    if not converted.classes:
        if classes:
            raise UserError(f"{file} tells no classes apart: leave --classes out")
        return ()
    if len(classes) != len(converted.classes):
        raise UserError(
            f"{file} tells {len(converted.classes)} classes apart, {len(classes)} names were given; give one a line"
        )
    return classes


def with_decoder(report: LoadReport, objective: Objective, converted: Converted, misfit: str) -> LoadReport:
    """Load decoder and head, and report them as taken over."""
    resampled = load_rest(objective, converted.rest, report.source, misfit)
    return replace(
        report,
        left=converted.left,
        mapped=(*report.mapped, *converted.rest),
        resampled=(*report.resampled, *resampled),
    )


def other_decoder(model: Mapping[str, Any], objective: Mapping[str, Any], family: Family) -> str:
    """What to say of a file whose decoder has other sizes than the objective that these settings make."""
    told = [*told_options(model, "model."), *told_options(objective)]
    if not told:
        return f"has the names of {family.name}, but other shapes; download it again"
    return f"has a decoder that does not fit {', '.join(told)}; leave out what changes its sizes"


def remove_model(out: Path) -> None:
    """Remove an earlier model and its decoder, weights first: no crash leaves a part of it beside a new one's."""
    for suffix in (".safetensors", ".json"):
        for name in (ENCODER, DECODER):
            (out / f"{name}{suffix}").unlink(missing_ok=True)


def write_decoder(objective: Objective, settings: Any, out: Path) -> None:
    """Write decoder and head as a pretraining run would."""
    description = {"objective": asdict(settings), "holds": "decoder and head", "weights": "raw"}
    save_weights(out / DECODER_FILE, rest_of_state(objective), description)
