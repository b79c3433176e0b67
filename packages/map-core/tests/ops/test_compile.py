"""A mixer under torch.compile and torch.export, with the implementations that serve a CPU."""

import textwrap

import pytest
import warm

from map_core.ops.native import library

MIXER = """
    import sys
    import torch
    from map_core.ops import ScanInputs, bidirectional_selective_scan, depthwise_causal_conv1d

    backend, operator = sys.argv[1:]

    class Mixer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.A = torch.nn.Parameter(-torch.rand(24, 16))
            self.D = torch.nn.Parameter(torch.rand(24))
            self.weight = torch.nn.Parameter(torch.rand(24, 4))

        def forward(self, x, z, B, C):
            sides = [depthwise_causal_conv1d(x, self.weight, None, "silu", r, backend) for r in (False, True)]
            forward, backward = (ScanInputs(s, x, self.A, B, C, self.D) for s in sides)
            return bidirectional_selective_scan(forward, backward, z, backend)

    torch.manual_seed(0)
    inputs = [torch.randn(2, 11, width, requires_grad=True) for width in (24, 24, 16, 16)]
    mixer = Mixer()
    expected = mixer(*inputs)
    grads = torch.autograd.grad(expected.sum(), [*inputs, *mixer.parameters()])
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    actual = compiled(*inputs)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(torch.autograd.grad(actual.sum(), [*inputs, *mixer.parameters()]), grads, strict=True):
        torch.testing.assert_close(a, b)
    program = torch.export.export(mixer, tuple(x.detach() for x in inputs))
    torch.testing.assert_close(program.module()(*inputs), expected)
    names = {str(node.target) for node in program.graph.nodes}
    assert f"map_core.{operator}.default" in names, names
"""


@pytest.mark.parametrize(
    ("backend", "operator"), [("auto", "selective_scan"), ("torch", "chunked_selective_scan")]
)
def test_compiles_to_one_graph_and_exports(backend: str, operator: str) -> None:
    """In a separate process: the runtime shape checker of this test run does not compile."""
    if backend == "auto" and (reason := library.native_missing()):
        pytest.skip(reason)
    warm.run("-c", textwrap.dedent(MIXER), backend, operator)
