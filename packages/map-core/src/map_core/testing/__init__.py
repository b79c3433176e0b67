"""Toy modules and checks for the tests of this package and of every domain; training does not use them."""

from map_core.testing.dependencies import Dependencies, decoder_dependencies
from map_core.testing.learning import learn_batch, take_step
from map_core.testing.toys import GridBackbone, LinearPosition, toy_encoder, toy_objective, toy_tokens
from map_core.testing.waiting import ACCELERATOR, NoWaiting

__all__ = [
    "ACCELERATOR",
    "Dependencies",
    "GridBackbone",
    "LinearPosition",
    "NoWaiting",
    "decoder_dependencies",
    "learn_batch",
    "take_step",
    "toy_encoder",
    "toy_objective",
    "toy_tokens",
]
