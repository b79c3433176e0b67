"""Depthwise convolution: the definition, implementations that compute it faster, and the choice between them."""

from map_core.ops.conv.interface import conv_backends, depthwise_causal_conv1d, depthwise_conv1d

__all__ = ["conv_backends", "depthwise_causal_conv1d", "depthwise_conv1d"]
