"""A model under torch.jit.trace, in a process of its own: the test run's shape checker sees no tracers."""

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
    import sys
    import timm
    import torch
    from torch.utils.tensorboard import SummaryWriter
    import map_vision

    torch.manual_seed(0)
    name, folder = sys.argv[1:]
    model = timm.create_model(name, img_size=32, num_classes=3).eval()
    images, more = torch.randn(2, 3, 32, 32), torch.randn(5, 3, 32, 32)
    traced = torch.jit.trace(model, (images,))
    torch.testing.assert_close(traced(more), model(more), rtol=0, atol=0)
    with SummaryWriter(folder) as writer:
        writer.add_graph(model, images)
"""


@pytest.mark.parametrize("name", ["hybridnet_tiny_patch16_224", "mambar_tiny_patch16_224"])
def test_a_jit_trace_and_the_graph_of_tensorboard(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), name, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = tmp_path.iterdir()
    assert b"map_core::selective_scan" in file.read_bytes() or b"chunked_selective_scan" in file.read_bytes()
