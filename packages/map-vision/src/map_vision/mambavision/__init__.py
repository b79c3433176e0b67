"""MambaVision: a pyramid of convolutions, Mamba mixers and attention (arXiv 2407.08083)."""

from map_vision.mambavision.model import MambaVision

__all__ = ["MambaVision"]
