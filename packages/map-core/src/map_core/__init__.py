"""Masked autoregressive pretraining: the objective, hybrid blocks and the training engine, for any domain."""

from map_core.decoder import RegionDecoder
from map_core.encoder import Encoder, HybridEncoder, LayerFeatures, Registers, expand_layout
from map_core.errors import UserError
from map_core.losses import denormalize_prediction, masked_mse, normalize_targets
from map_core.masking import TokenMask, mask_noise, sample_mask, truncated_normal_ratio
from map_core.objective import MaskedAutoregression, ObjectiveConfig, Reconstruction
from map_core.ops import (
    ScanInputs,
    bidirectional_selective_scan,
    depthwise_causal_conv1d,
    selective_scan,
)
from map_core.regions import region_attention_mask
from map_core.tokens import Features, Tokens

__version__ = "0.1.0"

__all__ = [
    "Encoder",
    "Features",
    "HybridEncoder",
    "LayerFeatures",
    "MaskedAutoregression",
    "ObjectiveConfig",
    "Reconstruction",
    "RegionDecoder",
    "Registers",
    "ScanInputs",
    "TokenMask",
    "Tokens",
    "UserError",
    "bidirectional_selective_scan",
    "denormalize_prediction",
    "depthwise_causal_conv1d",
    "expand_layout",
    "mask_noise",
    "masked_mse",
    "normalize_targets",
    "region_attention_mask",
    "sample_mask",
    "selective_scan",
    "truncated_normal_ratio",
]
