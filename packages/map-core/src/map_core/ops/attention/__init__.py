"""Attention: the definition, implementations that compute it faster, and the choice between them."""

from map_core.ops.attention.interface import attention, attention_backends

__all__ = ["attention", "attention_backends"]
