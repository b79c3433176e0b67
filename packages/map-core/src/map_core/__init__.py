"""Masked autoregressive pretraining: the objective, hybrid blocks and the training engine, for any domain.

Public names are imported at their first use, so that a command line that only shows its help does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from map_core.decoder import RegionDecoder
    from map_core.encoder import Backbone, HybridEncoder, LayerFeatures
    from map_core.errors import UserError
    from map_core.layout import expand_layout
    from map_core.losses import denormalize_prediction, masked_mse, normalize_targets
    from map_core.masking import Masking, TokenMask, sample_mask
    from map_core.objective import LossOutput, MaskedAutoregression, Objective, Reconstruction
    from map_core.ops import (
        ScanInputs,
        bidirectional_selective_scan,
        depthwise_causal_conv1d,
        selective_scan,
    )
    from map_core.orders import scan_order
    from map_core.positions import make_position
    from map_core.randomness import Draw
    from map_core.regions import (
        ConsecutiveRegions,
        GridRegions,
        RegionRule,
        RegionsAfterMask,
        region_attention_mask,
    )
    from map_core.registers import Registers
    from map_core.tokens import Features, Regions, Tokens

__all__ = [
    "Backbone",
    "ConsecutiveRegions",
    "Draw",
    "Features",
    "GridRegions",
    "HybridEncoder",
    "LayerFeatures",
    "LossOutput",
    "MaskedAutoregression",
    "Masking",
    "Objective",
    "Reconstruction",
    "RegionDecoder",
    "RegionRule",
    "Regions",
    "RegionsAfterMask",
    "Registers",
    "ScanInputs",
    "TokenMask",
    "Tokens",
    "UserError",
    "bidirectional_selective_scan",
    "denormalize_prediction",
    "depthwise_causal_conv1d",
    "expand_layout",
    "make_position",
    "masked_mse",
    "normalize_targets",
    "region_attention_mask",
    "sample_mask",
    "scan_order",
    "selective_scan",
]
_NAMES = {
    "map_core.decoder": ("RegionDecoder",),
    "map_core.encoder": ("Backbone", "HybridEncoder", "LayerFeatures"),
    "map_core.errors": ("UserError",),
    "map_core.layout": ("expand_layout",),
    "map_core.losses": ("denormalize_prediction", "masked_mse", "normalize_targets"),
    "map_core.masking": ("Masking", "TokenMask", "sample_mask"),
    "map_core.objective": ("LossOutput", "MaskedAutoregression", "Objective", "Reconstruction"),
    "map_core.ops": (
        "ScanInputs",
        "bidirectional_selective_scan",
        "depthwise_causal_conv1d",
        "selective_scan",
    ),
    "map_core.orders": ("scan_order",),
    "map_core.positions": ("make_position",),
    "map_core.randomness": ("Draw",),
    "map_core.regions": (
        "ConsecutiveRegions",
        "GridRegions",
        "RegionRule",
        "RegionsAfterMask",
        "region_attention_mask",
    ),
    "map_core.registers": ("Registers",),
    "map_core.tokens": ("Features", "Regions", "Tokens"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("map-core")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
