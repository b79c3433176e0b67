"""Two ways to express a selective scan in ONNX, on one core: the loop that exports write, and LinearAttention.

    python benchmarks/onnx_scan.py --out docs/lab/onnx_scan.json

LinearAttention (opset 27; ONNX Runtime has it as com.microsoft) has a decay for each head and key. With one head per
channel, the states as keys and values of size 1, that is the scan of ``reference_scan``.
"""

import argparse
import functools
from pathlib import Path

import numpy as np
import torch
from export_latency import open_session, time_call
from onnx import TensorProto, helper, numpy_helper
from results_file import save_results
from torch import Tensor, nn

from map_core.ops import selective_scan
from map_core.ops.exporting import for_export
from map_core.quiet import quietly

LENGTH, CHANNELS, STATES = 208, 384, 16  # of hybridnet_tiny_patch16_224
NAMES = ("u", "delta", "B", "C")


class Scan(nn.Module):
    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A, requires_grad=False)

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return selective_scan(u, delta, self.A, B, C)


def loop_model(A: Tensor, inputs: list[Tensor]) -> bytes:
    """The scan as the exporter writes it, a loop."""
    with torch.no_grad(), for_export(), quietly():
        program = torch.export.export(Scan(A), tuple(inputs))
        onnx_program = torch.onnx.export(program, (), dynamo=True, verbose=False, input_names=NAMES)
    assert onnx_program is not None
    return onnx_program.model_proto.SerializeToString()


def linear_attention_model(A: Tensor, inputs: list[Tensor]) -> bytes:
    """The same scan as one operator, with keys and queries repeated for every channel."""
    heads = {"q_num_heads": CHANNELS, "kv_num_heads": CHANNELS, "update_rule": "gated", "scale": 1.0}
    nodes = [
        helper.make_node("Unsqueeze", ["delta", "last"], ["steps"]),
        helper.make_node("Mul", ["steps", "A"], ["exponents"]),
        helper.make_node("Reshape", ["exponents", "flat"], ["decay"]),
        helper.make_node("Mul", ["delta", "u"], ["value"]),
        helper.make_node("Tile", ["B", "repeats"], ["key"]),
        helper.make_node("Tile", ["C", "repeats"], ["query"]),
        helper.make_node(
            "LinearAttention",
            ["query", "key", "value", "", "decay"],
            ["y", "state"],
            domain="com.microsoft",
            **heads,
        ),
    ]
    numbers = {"last": [-1], "flat": [0, 0, -1], "repeats": [1, 1, CHANNELS]}
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in numbers.items()]
    graph = helper.make_graph(
        nodes,
        "scan",
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape)
            for n, x in zip(NAMES, inputs, strict=True)
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [*constants, numpy_helper.from_array(A.numpy(), "A")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def row(batch: int) -> dict[str, float]:
    """Milliseconds of each, after checking that they agree, and of this project's kernel."""
    torch.manual_seed(0)
    A = -4 * torch.rand(CHANNELS, STATES)
    widths = (CHANNELS, CHANNELS, STATES, STATES)
    inputs = [torch.randn(batch, LENGTH, width) for width in widths]
    inputs[1] = 0.3 * torch.rand_like(inputs[1])
    feed = {name: x.numpy() for name, x in zip(NAMES, inputs, strict=True)}
    with torch.inference_mode():
        expected, kernel_ms = time_call(lambda: selective_scan(inputs[0], inputs[1], A, *inputs[2:]).numpy())
    times = {"batch": batch, "PyTorch, native kernel ms": kernel_ms}
    for name, make_model in {"Scan ms": loop_model, "LinearAttention ms": linear_attention_model}.items():
        session = open_session(make_model(A, inputs))
        (result, *_), times[name] = time_call(functools.partial(session.run, None, feed))
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for batch in (1, 32):
        rows.append(row(batch))
        print(rows[-1], flush=True)
    save_results(arguments.out, rows, cores=1, packages=["onnxruntime"])


if __name__ == "__main__":
    main()
