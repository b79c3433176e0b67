"""Masked autoregressive pretraining: the objective, hybrid blocks and the training engine, for any domain."""

from map_core.decoder import RegionDecoder
from map_core.encoder import Backbone, HybridEncoder, LayerFeatures, Registers, expand_layout
from map_core.errors import UserError
from map_core.losses import denormalize_prediction, masked_mse, normalize_targets
from map_core.masking import Masking, TokenMask, sample_mask
from map_core.objective import MaskedAutoregression, Objective, Reconstruction, Terms
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
from map_core.tokens import Features, Regions, Tokens

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "ConsecutiveRegions",
    "Draw",
    "Features",
    "GridRegions",
    "HybridEncoder",
    "LayerFeatures",
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
    "Terms",
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
