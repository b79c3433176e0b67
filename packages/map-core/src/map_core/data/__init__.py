"""Data code shared by all domains: fixed subsets and held-out parts."""

from map_core.data.subsets import (
    evaluates_held_out,
    hold_out,
    prefer_given_holdout,
    refuse_two_evaluation_sets,
    report_unused_split,
    take_subset,
)

__all__ = [
    "evaluates_held_out",
    "hold_out",
    "prefer_given_holdout",
    "refuse_two_evaluation_sets",
    "report_unused_split",
    "take_subset",
]
