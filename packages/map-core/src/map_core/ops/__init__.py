"""The operations that deserve more than one implementation."""

from map_core.ops.causal_conv1d import conv_backends, depthwise_causal_conv1d
from map_core.ops.linear import Linear, linear, linear_backends, with_fast_linears
from map_core.ops.registry import BackendStatus
from map_core.ops.selective_scan import (
    ScanInputs,
    bidirectional_selective_scan,
    scan_backends,
    selective_scan,
)

__all__ = [
    "BackendStatus",
    "Linear",
    "ScanInputs",
    "bidirectional_selective_scan",
    "conv_backends",
    "depthwise_causal_conv1d",
    "linear",
    "linear_backends",
    "scan_backends",
    "selective_scan",
    "with_fast_linears",
]
