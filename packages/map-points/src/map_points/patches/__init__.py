"""Patches of clouds: centres, neighbours, and their embedding."""

from map_points.patches.embedding import PatchEmbedding
from map_points.patches.grouping import Patches, group_points

__all__ = ["PatchEmbedding", "Patches", "group_points"]
