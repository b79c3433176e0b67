"""mmengine's get_flops counts scans; tested in a process without the shape checker of this test run."""

import textwrap

import warm

SCRIPT = """
    import torch
    from mmengine.analysis import FlopAnalyzer
    from torch.utils.flop_counter import FlopCounterMode
    from map_dense.openmmlab import HybridNet

    backbone = HybridNet("hybridnet_tiny_patch16_224", out_indices=(1,)).eval()
    image = torch.randn(1, 3, 64, 64)
    by_operator = FlopAnalyzer(backbone, (image,)).by_operator()
    with FlopCounterMode(display=False) as counter:
        backbone(image)
    counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items() if "map_core" in str(op)}
    assert len(counts) == 2, counts
    for name, count in counts.items():
        assert by_operator[name.partition(".")[2]] == count // 2, (by_operator, counts)
"""


def test_scans_and_convolutions_are_counted():
    warm.run("-c", textwrap.dedent(SCRIPT))
