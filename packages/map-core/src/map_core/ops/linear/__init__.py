"""Linear layers: PyTorch's own product or oneDNN's, and the choice between them."""

from map_core.ops.linear.interface import Linear, linear, linear_backends

__all__ = ["Linear", "linear", "linear_backends"]
