"""Trained models as programs that run without this package: torch.export archives or ONNX files."""

import copy
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from map_core.errors import UserError
from map_core.ops.exporting import for_export
from map_core.quiet import quietly
from map_core.runs.files import explaining_disk_errors, replacing
from map_core.tasks.domain import Domain
from map_core.tasks.onnx_file import require_onnx, run_onnx, write_onnx
from map_core.tasks.trained_models import NO_CHANGES, Changes

Format = Literal["onnx", "torch-export"]
ENDING: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
DESCRIPTION = "map.json"  # the extra file of a torch.export archive that holds the description
TRACED_BATCH, CHECKED_BATCH = 2, 3  # a batch of 1 would be traced as a constant
TOLERANCE = 1e-3  # relative to a result's largest value
CURE = "try another --format, or another version of torch or onnxruntime"


class Encoder(nn.Module):
    """A model's encoder: the features that its head would read, and the tokens that they are pooled from.

    Args:
        model: Has ``forward_features`` and ``forward_head``, as timm's models do.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model.forward_features(inputs)
        return self.model.forward_head(tokens, pre_logits=True), tokens


def export_run(
    domain: Domain,
    path: str | Path,
    out: Path,
    *,
    format: Format,
    encoder: bool = False,
    any_size: bool = False,
    changes: Changes = NO_CHANGES,
) -> float:
    """Write the classifier or encoder of a run as a program, and compare the two.

    Args:
        domain: Whose run it is.
        path: The run, or its weights file.
        out: File to write.
        format: Format of the file.
        encoder: Write only the encoder of a classifier; a run without classes has nothing else.
        any_size: Leave the size of samples free.
        changes: Settings of the model that differ from the run's, such as the size of its inputs.

    Returns:
        The largest difference of the program's results from the model's.

    Raises:
        UserError: no classifier or encoder, changes that do not fit the weights, or what :func:`export_model` raises.
    """
    config, description = domain.models.encoder_or_classifier(path, changes)
    only_features = encoder or description["holds"] == "encoder"
    domain.models.refuse_other_settings(config, path, is_init=False, is_classifier=not only_features)
    model = domain.models.encoder(path, changes)
    return export_model(
        Encoder(model) if only_features else model,
        domain.example(config),
        out,
        format=format,
        inputs=f"{domain.sample}s",
        outputs=("features", "tokens") if only_features else ("logits",),
        free=domain.size_axes if any_size else None,
        description={**description, "arguments": config.arguments()},
    )


def export_model(
    model: nn.Module,
    example: Tensor,
    out: Path,
    *,
    format: Format,
    inputs: str = "inputs",
    outputs: tuple[str, ...] = ("outputs",),
    free: Mapping[int, str] | None = None,
    description: Mapping[str, Any] | None = None,
) -> float:
    """Write a model as a program; the file appears only after its results were compared with the model's.

    Where axes are free they are compared at other sizes, too.

    Args:
        model: On the CPU, in evaluation mode.
        example: A batch of inputs of the size that the program takes.
        out: File to write.
        format: Format of the file.
        inputs, outputs: Their names in an ONNX file.
        free: Names of the axes, besides the batch, whose size stays free.
        description: Metadata of the file.

    Returns:
        The largest difference of the program's results from the model's.

    Raises:
        UserError: the file's ending is not the format's, a package is missing, the exporter does not know an
            operation, the program refuses another size of a free axis, the results differ, or the disk refuses.
    """
    if out.suffix != ENDING[format]:
        raise UserError(f"{out} does not end in {ENDING[format]}, as files of {format} do: rename it")
    if format == "onnx":
        require_onnx(sum(value.nbytes for value in model.state_dict().values()))
    free = free or {}
    axes = {0: "batch", **free}
    shape = [axes.get(axis, size) for axis, size in enumerate(example.shape)]
    metadata = {"inputs": {inputs: shape}, "outputs": list(outputs), **(description or {})}
    with (
        explaining_disk_errors(f"write {out}", then="repeat the command"),
        torch.no_grad(),
        replacing(out) as partial,
    ):
        out.parent.mkdir(parents=True, exist_ok=True)
        with reporting_export_errors(format, any_size=bool(free)):
            # at twice the size: what a sample has once, such as one window, would be traced as a constant
            program = trace(model, random_inputs(example, TRACED_BATCH, doubled=free), axes)
            if format == "onnx":
                write_onnx(program, partial, axes, inputs=inputs, outputs=outputs, description=metadata)
            else:
                archive = io.BytesIO()  # torch's own writer of files ends the process where the disk is full
                torch.export.save(program, archive, extra_files={DESCRIPTION: json.dumps(metadata)})
                partial.write_bytes(archive.getbuffer())
        checks = [random_inputs(example, CHECKED_BATCH)]
        checks += [random_inputs(example, 1, doubled=[axis]) for axis in free]
        differences = []
        for samples in checks:
            with reporting_export_errors(format, any_size=bool(free)):
                results = run_onnx(partial, samples) if format == "onnx" else run_archive(partial, samples)
            differences.append(largest_difference(results, as_list(model(samples))))
        return max(differences)


def random_inputs(example: Tensor, batch: int, *, doubled: Iterable[int] = ()) -> Tensor:
    """A batch of standard normal numbers in the shape of an example, with twice its size along some axes."""
    shape = [batch, *example.shape[1:]]
    for axis in doubled:
        shape[axis] *= 2
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def trace(model: nn.Module, inputs: Tensor, free: Mapping[int, str]) -> torch.export.ExportedProgram:
    """Trace a model into a program of PyTorch's operators alone, without gradients.

    Args:
        model: In evaluation mode; it stays as it is.
        inputs: A batch.
        free: Names of the axes of inputs whose size stays free.
    """
    dims = {
        axis: torch.export.Dim(name) if axis == 0 else torch.export.Dim.DYNAMIC for axis, name in free.items()
    }
    with for_export():
        return torch.export.export(
            copy.deepcopy(model).requires_grad_(False), (inputs,), dynamic_shapes=(dims,)
        )


@contextmanager
def reporting_export_errors(format: Format, *, any_size: bool = False) -> Iterator[None]:
    """Turn an error of the exporter, or of what runs its program, into one sentence; its many lines stay the cause.

    With ``any_size``, which is what an error may come from, the sentence says how to do without it.

    Raises:
        UserError: there was an error.
    """
    try:
        with quietly():
            yield
    except (UserError, OSError):
        raise
    except Exception as error:  # exporters raise whatever they stumble on
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        sizes, cure = (" for any size", f"set --any_size false, {CURE}") if any_size else ("", CURE)
        raise UserError(
            f"this model cannot be written as {format}{sizes} by torch {torch.__version__} ({type(error).__name__}: "
            f"{reason}); {cure}"
        ) from error


def run_archive(path: Path, inputs: Tensor) -> list[Tensor]:
    """The outputs of an archive of torch.export."""
    with quietly():  # PyTorch warns that it reads its own archive from read-only memory
        return as_list(torch.export.load(path).module()(inputs))


def as_list(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """A model's outputs as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def largest_difference(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference between the results of a program and those of its model.

    Raises:
        UserError: it is more than rounding, or their shapes differ.
    """
    for actual, reference in zip(results, expected, strict=True):
        if actual.shape != reference.shape:
            raise UserError(
                f"the program's results have shape {tuple(actual.shape)} where the model's have "
                f"{tuple(reference.shape)}, so it was not kept; {CURE}"
            )
    differences = [
        float((actual - reference).abs().max()) for actual, reference in zip(results, expected, strict=True)
    ]
    limits = [TOLERANCE * float(reference.abs().max()) for reference in expected]
    if any(not difference <= limit for difference, limit in zip(differences, limits, strict=True)):
        raise UserError(
            f"the program's results differ from the model's by up to {max(differences):.2g}, so it was not kept; {CURE}"
        )
    return max(differences)
