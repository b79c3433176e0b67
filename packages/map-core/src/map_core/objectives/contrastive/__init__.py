"""Contrastive learning as MoCo v2 and v3 do it: two views, a momentum encoder, keys of a queue or of the batch."""

from map_core.objectives.contrastive.objective import Contrastive, ContrastiveConfig

__all__ = ["Contrastive", "ContrastiveConfig"]
