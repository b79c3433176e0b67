"""The operations with more than one implementation, a folder each: the definition, the kernels, and the choice.

``registry`` chooses, ``operator`` makes PyTorch operators, ``native`` holds the library of CPU kernels,
``multiply_adds`` counts a program's operations, and ``jit_flops`` tells other counters what the operators cost.
"""

from map_core.ops.attention import attention, attention_backends
from map_core.ops.conv import conv_backends, depthwise_causal_conv1d, depthwise_conv1d
from map_core.ops.jit_flops import jit_flop_handles
from map_core.ops.linear import Linear, linear, linear_backends
from map_core.ops.registry import BackendStatus
from map_core.ops.scan import ScanInputs, bidirectional_selective_scan, scan_backends, selective_scan

__all__ = [
    "BackendStatus",
    "Linear",
    "ScanInputs",
    "attention",
    "attention_backends",
    "bidirectional_selective_scan",
    "conv_backends",
    "depthwise_causal_conv1d",
    "depthwise_conv1d",
    "jit_flop_handles",
    "linear",
    "linear_backends",
    "scan_backends",
    "selective_scan",
]
