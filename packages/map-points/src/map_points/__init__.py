"""Masked autoregressive pretraining for point clouds."""

from map_points.model import HybridNet3D, create_point_model

__version__ = "0.1.0"
__all__ = ["HybridNet3D", "create_point_model"]
