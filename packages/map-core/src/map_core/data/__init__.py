"""Data code shared by all domains: fixed subsets and held-out parts."""

from map_core.data.subsets import hold_out, take_subset

__all__ = ["hold_out", "take_subset"]
