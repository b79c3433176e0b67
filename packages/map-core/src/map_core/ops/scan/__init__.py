"""Selective scan: the definition, implementations that compute it faster, and the choice between them."""

from map_core.ops.scan.inputs import ScanInputs
from map_core.ops.scan.interface import bidirectional_selective_scan, scan_backends, selective_scan

__all__ = ["ScanInputs", "bidirectional_selective_scan", "scan_backends", "selective_scan"]
