"""Latency of exported programs on one core against PyTorch, and the effect of int8 weights.

    python benchmarks/export_latency.py --write    # ONNX files of random weights into build/export, some minutes
    python benchmarks/export_latency.py --out docs/lab/export_latency.json    # time those files

PyTorch runs the model as `map-vision predict` does, with this project's kernels. int8 is ONNX Runtime's dynamic
quantisation of the weights of matrix products. Every time is the median of at least three passes after two that warm
up.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from results_file import save_results
from timing import median_seconds_within
from torch import Tensor, nn

import map_points.domain
import map_vision.domain
from map_core.tasks.domain import Domain
from map_core.tasks.export import export_model

ROOT = Path(__file__).parents[1]
FILES = ROOT / "build" / "export"
MODELS: dict[str, Domain] = {
    "hybridnet_nano_patch4_32": map_vision.domain.DOMAIN,
    "hybridnet_tiny_patch16_224": map_vision.domain.DOMAIN,
    "map_mambavision_tiny": map_vision.domain.DOMAIN,
    "hybridnet3d_nano": map_points.domain.DOMAIN,
}
BATCHES = 1, 32
MIN_SECONDS = 2.0  # seconds of passes


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A classifier with random weights, the same at every call, and an input."""
    domain = MODELS[name]
    config = domain.models.config(name)
    torch.manual_seed(0)
    return domain.models.create_classifier(config, domain.outputs).eval(), domain.example(config)


def write(name: str) -> None:
    """Write the model as ONNX files, in float32 and with int8 weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, example = build(name)
    file, domain = FILES / f"{name}.onnx", MODELS[name]
    export_model(model, example, file, format="onnx", free=domain.size_axes if domain.any_size else None)
    quantize_dynamic(file, int8_path(file), weight_type=QuantType.QInt8)


def int8_path(file: Path) -> Path:
    return file.with_suffix(".int8.onnx")


def open_session(file: Path | bytes) -> onnxruntime.InferenceSession:
    """Open a model from a file or from bytes, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def time_call(run: Callable[[], Any]) -> tuple[Any, float]:
    """The result of the first pass, and the median milliseconds of passes after a second one that warms up."""
    return run(), round(1000 * median_seconds_within(run, MIN_SECONDS), 2)


def row(name: str, batch: int) -> dict[str, Any]:
    """Times of a batch, and how far int8 is from float32 in units of the results' spread."""
    model, example = build(name)
    file = FILES / f"{name}.onnx"
    float32_session, int8_session = open_session(file), open_session(int8_path(file))
    inputs = torch.randn(batch, *example.shape[1:], generator=torch.Generator().manual_seed(1))
    feed = {"inputs": inputs.numpy()}
    with torch.inference_mode():
        expected, eager_ms = time_call(lambda: model(inputs).numpy())
    (results,), onnx_ms = time_call(lambda: float32_session.run(None, feed))
    (int8_results,), int8_ms = time_call(lambda: int8_session.run(None, feed))
    return {
        "model": name,
        "batch": batch,
        "PyTorch ms": eager_ms,
        "ONNX Runtime ms": onnx_ms,
        "int8 ms": int8_ms,
        "largest difference": float(f"{np.abs(results - expected).max():.1e}"),
        "int8 error": round(float((int8_results - expected).std() / expected.std()), 4),
        "MB": round(file.stat().st_size / 1e6, 1),
        "int8 MB": round(int8_path(file).stat().st_size / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the ONNX files, time nothing")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.write:
        for name in arguments.models:
            write(name)
        return
    rows = []
    for name, batch in itertools.product(arguments.models, BATCHES):
        rows.append(row(name, batch))
        print(rows[-1], flush=True)
    save_results(arguments.out, rows, cores=1, packages=["onnxruntime"])


if __name__ == "__main__":
    main()
