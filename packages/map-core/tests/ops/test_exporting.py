"""The ops' replacements in exported programs compute what the definitions say, for inputs of any size."""

import textwrap

import pytest
import torch
import warm

from map_core.ops import ScanInputs, depthwise_causal_conv1d, selective_scan
from map_core.ops.conv.padded import padded_conv
from map_core.ops.conv.reference import reference_conv
from map_core.ops.exporting import for_export
from map_core.ops.scan.loop import loop_scan
from map_core.ops.scan.reference import reference_scan


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("optional", [("z", "D", "delta_bias"), ()])
@pytest.mark.parametrize("length", [1, 7, 130])
def test_the_loop_is_the_definition_of_the_scan(length, optional, reverse, scan_arguments, assert_same):
    values = scan_arguments(length)
    for name in {"z", "D", "delta_bias"} - set(optional):
        del values[name]
    z = values.pop("z", None)
    inputs = ScanInputs(**values)
    with torch.no_grad():
        assert_same(
            {"y": loop_scan(inputs, z, reverse)}, {"y": reference_scan(inputs, z, reverse)}, relative=2e-6
        )


def test_the_loop_keeps_a_long_decay_and_large_steps(scan_arguments):
    values = scan_arguments(3000, channels=4, state=3)
    values["delta"][:, ::7] = 60.0  # forgets all but the step itself
    values["delta"][:, 1::7] = -30.0  # keeps all
    z = values.pop("z")
    inputs = ScanInputs(**values)
    with torch.no_grad():
        expected = reference_scan(inputs, z, False)
        assert expected.isfinite().all()
        torch.testing.assert_close(loop_scan(inputs, z, False), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(("length", "taps"), [(1, 4), (3, 4), (64, 3), (50, 1)])
def test_the_padded_convolution_is_the_definition(length, taps, activation, reverse):
    x, weight, bias = torch.randn(2, length, 9), torch.randn(9, taps), torch.randn(9)
    for optional_bias in (bias, None):
        expected = reference_conv(x, weight, optional_bias, activation, reverse)
        torch.testing.assert_close(padded_conv(x, weight, optional_bias, activation, reverse), expected)


PROGRAM = """
    import torch
    from map_core.ops import ScanInputs, bidirectional_selective_scan, depthwise_causal_conv1d
    from map_core.ops.exporting import for_export

    class Mixer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.A, self.D = torch.nn.Parameter(-torch.rand(24, 16)), torch.nn.Parameter(torch.rand(24))
            self.weight = torch.nn.Parameter(torch.rand(24, 4))

        def forward(self, x, z, B, C):
            sides = [depthwise_causal_conv1d(x, self.weight, None, "silu", r) for r in (False, True)]
            forward, backward = (ScanInputs(s, x, self.A, B, C, self.D) for s in sides)
            return bidirectional_selective_scan(forward, backward, z)

    torch.manual_seed(0)
    mixer = Mixer().requires_grad_(False)
    make = lambda batch, length: tuple(torch.randn(batch, length, width) for width in (24, 24, 16, 16))
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with torch.no_grad(), for_export():
        program = torch.export.export(mixer, make(2, 11), dynamic_shapes=[free] * 4)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "scan" in names and not any("map_core" in name for name in names), names
    for sizes in ((1, 5), (3, 40)):
        inputs = make(*sizes)
        expected = mixer(*inputs)
        largest = expected.abs().max()  # the unit in which errors of scans are measured
        torch.testing.assert_close(program.module()(*inputs) / largest, expected / largest, rtol=0, atol=1e-6)
"""


def test_an_exported_mixer_has_no_operator_of_ours_and_takes_any_size():
    """In a separate process: the runtime shape checker of this test run does not export."""
    warm.run("-c", textwrap.dedent(PROGRAM))


ATTENTION = """
    import torch
    from map_core.ops import attention
    from map_core.ops.exporting import exporting, for_export

    class Masked(torch.nn.Module):
        def forward(self, x, mask):
            return attention(x, x, x) + attention(x, x, x, mask)

    make = lambda batch, length: (torch.randn(batch, 2, length, 8), torch.ones(1, length, length).tril() > 0)
    dynamic = torch.export.Dim.DYNAMIC
    with torch.no_grad(), for_export():
        free = [{0: dynamic, 2: dynamic}, {1: dynamic, 2: dynamic}]
        program = torch.export.export(Masked(), make(2, 11), dynamic_shapes=free)
    for sizes in ((1, 5), (3, 700)):
        inputs = make(*sizes)
        torch.testing.assert_close(program.module()(*inputs), Masked()(*inputs))

    compiled = torch.compile(lambda x: x + 1 if exporting() else attention(x, x, x), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(inputs[0]), attention(*3 * inputs[:1]))
"""


def test_exported_attention_takes_any_number_of_tokens():
    warm.run("-c", textwrap.dedent(ATTENTION))


FREE = """
    import torch
    from map_core.ops import attention, selective_scan

    class Masked(torch.nn.Module):
        def forward(self, x, mask):
            return attention(x, x, x, mask)

    class Scan(torch.nn.Module):
        def forward(self, u, B):
            return selective_scan(u, u, -torch.ones(8, 4), B, B, backend="torch")

    make = lambda length: (torch.randn(2, 3, length, 32), torch.ones(1, length, length).tril() > 0)
    length = torch.export.Dim("length", min=2, max=3000)
    program = torch.export.export(Masked(), make(9), dynamic_shapes=({2: length}, {1: length, 2: length}))
    for inputs in map(make, (5, 1030)):
        torch.testing.assert_close(program.module()(*inputs), Masked()(*inputs), rtol=0, atol=1e-5)

    program = torch.export.export(Scan(), (torch.randn(1, 9, 8), torch.randn(1, 9, 4))).module()
    inputs = torch.randn(1, 9, 8, requires_grad=True), torch.randn(1, 9, 4)
    grads = [torch.autograd.grad(run(*inputs).sum(), inputs[0]) for run in (program, Scan())]
    torch.testing.assert_close(*grads)
"""


def test_programs_of_our_operators_take_any_length_and_can_be_differentiated():
    warm.run("-c", textwrap.dedent(FREE))


def test_outside_of_an_export_the_usual_implementations_serve(scan_arguments):
    values, weight = scan_arguments(9) | {"delta_softplus": True}, torch.randn(20, 4)
    usual = selective_scan(**values), depthwise_causal_conv1d(values["u"], weight)
    with torch.no_grad(), for_export():
        exported = selective_scan(**values), depthwise_causal_conv1d(values["u"], weight)
    torch.testing.assert_close(exported, usual)
    again = selective_scan(**values), depthwise_causal_conv1d(values["u"], weight)
    assert all(torch.equal(one, other) for one, other in zip(usual, again, strict=True))
