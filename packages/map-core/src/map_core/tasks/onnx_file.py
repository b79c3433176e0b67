"""Programs as ONNX files, and their results from ONNX Runtime."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from map_core.errors import UserError
from map_core.quiet import quietly

REQUIRED_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LIMIT = 2**31  # bytes that a protocol-buffer file may have
KEY = "map"  # of the description in a file's metadata


def require_onnx(weights: int) -> None:
    """Check that an ONNX file can be written.

    Args:
        weights: Bytes of the model's weights.

    Raises:
        UserError: a package is missing, or the weights are too large.
    """
    missing = [name for name in REQUIRED_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}, which this environment lacks: pip install {' '.join(missing)}, "
            "or choose --format torch-export"
        )
    if weights >= LIMIT:
        raise UserError(
            f"an ONNX file holds 2 GiB and the model has {weights / 2**30:.1f} GiB of weights: choose --format "
            "torch-export"
        )


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    free: Mapping[int, str],
    *,
    inputs: str,
    outputs: Sequence[str],
    description: Mapping[str, Any],
) -> None:
    """Write a program of one input as an ONNX file.

    Args:
        program: A program of torch.export.
        path: The file.
        free: Names of the axes of inputs whose size stays free.
        inputs, outputs: Their names.
        description: Stored as JSON under ``map`` in the file's metadata.
    """
    with quietly():
        onnx_program = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            input_names=[inputs],
            output_names=list(outputs),
            dynamic_shapes=(dict(free),) if free else None,  # for the axis names
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        )
    assert onnx_program is not None
    onnx_program.model.metadata_props[KEY] = json.dumps(description)
    onnx_program.save(path, external_data=False)


def _stable_sort(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """Sort with TopK of all values, which puts the lower index first among equals; the exporter has no rule for it."""
    from onnxscript import opset20 as op

    size = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
    return op.TopK(self, size, axis=dim, largest=int(descending), sorted=1)


def run_onnx(path: Path, inputs: Tensor) -> list[Tensor]:
    """The outputs of a file with one input, computed by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    results = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    return [torch.from_numpy(result) for result in results]
