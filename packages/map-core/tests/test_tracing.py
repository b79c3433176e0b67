"""Blocks under torch.jit.trace and torch.fx, in a separate process: the test run's shape checker rejects tracers."""

import textwrap

import pytest
import warm

PRELUDE = """
    import sys
    import torch
    from torch import nn
    from map_core.blocks import MambaBlock, TransformerBlock, residual_stream

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.mamba = MambaBlock(16, drop_path=0.1)
            self.one_way = MambaBlock(16, bidirectional=False, norm="layer")
            self.transformer = TransformerBlock(16, num_heads=4, drop_path=0.1)
            self.last = TransformerBlock(16, num_heads=2, mlp_ratio=0.0)
            for block in (self.mamba, self.one_way):
                block.mixer.scan_backend = block.mixer.conv_backend = sys.argv[1]

        def forward(self, x, allowed, query):
            x = self.transformer(self.one_way(self.mamba(residual_stream(x))), None, allowed)
            return self.last(x, None, allowed, query)

    def arguments(batch):
        query = torch.stack([torch.randperm(11)[:4] for _ in range(batch)])
        return torch.randn(batch, 11, 16), torch.rand(batch, 11, 11) < 0.7, query

    torch.manual_seed(0)
    stack = Stack().eval()
    first, other = arguments(2), arguments(5)
"""
TRACE = """
    traced = torch.jit.trace(stack, first)
    torch.testing.assert_close(traced(*other), stack(*other), rtol=0, atol=0, equal_nan=True)
    expected = torch.autograd.grad(stack(*other).nansum(), list(stack.parameters()))
    actual = torch.autograd.grad(traced(*other).nansum(), list(stack.parameters()))
    torch.testing.assert_close(actual, expected, equal_nan=True)
"""
SYMBOLIC = """
    graph = torch.fx.symbolic_trace(stack)
    torch.testing.assert_close(graph(*other), stack(*other), rtol=0, atol=0, equal_nan=True)
    whole = {node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"}
    assert {
        "residual_stream", "depthwise_causal_conv1d", "bidirectional_selective_scan", "selective_scan", "linear",
        "attention",
    } <= whole, whole
"""


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_jit_trace_computes_and_differentiates_the_same_for_any_batch(backend):
    warm.run("-c", textwrap.dedent(PRELUDE + TRACE), backend)


def test_fx_traces_blocks_and_keeps_the_ops_whole():
    warm.run("-c", textwrap.dedent(PRELUDE + SYMBOLIC), "auto")
