"""How long exported programs take on one core beside PyTorch, and what int8 weights make of them.

    python benchmarks/export_latency.py --write    # ONNX files of random weights into build/export, some minutes
    python benchmarks/export_latency.py            # time them; docs/lab/export_latency.json

PyTorch runs the model as `map-vision predict` does, with this project's kernels. int8 is ONNX Runtime's dynamic
quantisation of the weights of matrix products. Every time is the median of at least three passes after one.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import map_points.domain
import map_vision.domain
from map_core.processor import processor_name
from map_core.runs.files import save_json
from map_core.runs.summary import commit
from map_core.tasks.domain import Domain
from map_core.tasks.export import export_model

ROOT = Path(__file__).parents[1]
FILES, RESULTS = ROOT / "build" / "export", ROOT / "docs" / "lab" / "export_latency.json"
MODELS: dict[str, Domain] = {
    "hybridnet_nano_patch4_32": map_vision.domain.DOMAIN,
    "hybridnet_tiny_patch16_224": map_vision.domain.DOMAIN,
    "map_mambavision_tiny": map_vision.domain.DOMAIN,
    "hybridnet3d_nano": map_points.domain.DOMAIN,
}
BATCHES = 1, 32
ENOUGH = 2.0  # seconds of passes


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A classifier with random weights, the same at every call, and an input."""
    domain = MODELS[name]
    config = domain.models.config(name)
    torch.manual_seed(0)
    return domain.models.create_classifier(config, domain.outputs).eval(), domain.example(config)


def write(name: str) -> None:
    """The model as ONNX files, in float32 and with int8 weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, example = build(name)
    file, domain = FILES / f"{name}.onnx", MODELS[name]
    export_model(model, example, file, format="onnx", free=domain.size_axes if domain.any_size else None)
    quantize_dynamic(file, int8_of(file), weight_type=QuantType.QInt8)


def int8_of(file: Path) -> Path:
    return file.with_suffix(".int8.onnx")


def session_of(file: Path | bytes) -> onnxruntime.InferenceSession:
    """A model, by its file or its bytes, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What the first pass gives, and the median milliseconds of those after it."""
    result = run()
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < ENOUGH and len(seconds) < 100):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return result, round(1000 * sorted(seconds)[len(seconds) // 2], 2)


def row(name: str, batch: int) -> dict[str, Any]:
    """Times of a batch, and how far int8 is from float32 in units of the results' spread."""
    model, example = build(name)
    file = FILES / f"{name}.onnx"
    exact, small = session_of(file), session_of(int8_of(file))
    inputs = torch.randn(batch, *example.shape[1:], generator=torch.Generator().manual_seed(1))
    feed = {"inputs": inputs.numpy()}
    with torch.inference_mode():
        wanted, eager = timed(lambda: model(inputs).numpy())
    (results,), onnx = timed(lambda: exact.run(None, feed))
    (rounded,), int8 = timed(lambda: small.run(None, feed))
    return {
        "model": name,
        "batch": batch,
        "PyTorch ms": eager,
        "ONNX Runtime ms": onnx,
        "int8 ms": int8,
        "largest difference": float(f"{np.abs(results - wanted).max():.1e}"),
        "int8 error": round(float((rounded - wanted).std() / wanted.std()), 4),
        "MB": round(file.stat().st_size / 1e6, 1),
        "int8 MB": round(int8_of(file).stat().st_size / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the ONNX files, time nothing")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.write:
        for name in arguments.models:
            write(name)
        return
    save_json(
        RESULTS,
        {
            "processor": f"one core of {processor_name()}",
            "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
            "commit": commit(),
            "command": " ".join(["python", "benchmarks/export_latency.py", *sys.argv[1:]]),
            "rows": [row(name, batch) for name in arguments.models for batch in BATCHES],
        },
    )


if __name__ == "__main__":
    main()
