"""A model under torch.jit.trace, in a process of its own: the test run's shape checker sees no tracers."""

import textwrap

import pytest
import warm

SCRIPT = """
    import sys
    import timm
    import torch
    from torch.utils.tensorboard import SummaryWriter
    import map_vision

    torch.manual_seed(0)
    name, layout, folder = sys.argv[1:]
    model = timm.create_model(name, img_size=32, num_classes=3, embed_dim=48, layout=layout).eval()
    images, more = torch.randn(2, 3, 32, 32), torch.randn(5, 3, 32, 32)
    traced = torch.jit.trace(model, (images,))
    torch.testing.assert_close(traced(more), model(more), rtol=0, atol=0)
    with SummaryWriter(folder) as writer:
        writer.add_graph(model, images)
"""


@pytest.mark.parametrize(
    ("name", "layout"), [("hybridnet_tiny_patch16_224", "MMMT"), ("mambar_tiny_patch16_224", "MM")]
)
def test_a_jit_trace_and_the_graph_of_tensorboard(name, layout, tmp_path):
    warm.run("-c", textwrap.dedent(SCRIPT), name, layout, tmp_path)
    (file,) = tmp_path.iterdir()
    assert b"map_core::selective_scan" in file.read_bytes() or b"chunked_selective_scan" in file.read_bytes()
