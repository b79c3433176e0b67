"""Draws are functions of their keys: the same on every machine, however samples are distributed."""

import pytest
import torch

from map_core import Draw
from map_core.randomness import derive_seed, keyed_generator


def test_seeds_are_the_same_on_every_machine():
    """The first 63 bits of BLAKE2b of "0/mask/3": a change would change every run that is resumed."""
    assert derive_seed(0, "mask", 3) == 8568783435518715260


def test_seeds_fit_generators_and_differ_by_every_key():
    seeds = {derive_seed(seed, what, step) for seed in range(9) for what in "ab" for step in range(9)}
    assert len(seeds) == 9 * 2 * 9
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("processes", [2, 4, 16])
def test_processes_draw_the_parts_of_what_one_draws(processes):
    whole = Draw(7, 31, slice(0, 16), 16).uniform("mask", 9)
    size = 16 // processes
    parts = [Draw(7, 31, slice(i * size, (i + 1) * size), 16).uniform("mask", 9) for i in range(processes)]
    assert torch.equal(torch.cat(parts), whole)
    assert len({tuple(row) for row in whole.tolist()}) == 16, "samples share their numbers"


@pytest.mark.parametrize("process", [0, 1])
def test_what_belongs_to_the_whole_batch_is_the_same_on_every_process(process):
    whole, half = Draw(7, 31, slice(0, 16), 16), Draw(7, 31, slice(8 * process, 8 * process + 8), 16)
    assert half.scalar("ratio") == whole.scalar("ratio")
    first, second = (torch.randperm(16, generator=draw.generator("pairs")) for draw in (whole, half))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"seed": 8}, "mask"), ({"step": 32}, "mask"), ({}, "ratio")],
    ids=["seed", "step", "what"],
)
def test_a_draw_depends_on_seed_step_and_name(changes, what):
    keys = {"seed": 7, "step": 31, "samples": slice(0, 4), "global_batch": 4}
    first = Draw(**keys)
    torch.rand(5)  # the global generator must not matter
    assert torch.equal(Draw(**keys).uniform("mask", 9), first.uniform("mask", 9))
    assert not torch.equal(Draw(**keys | changes).uniform(what, 9), first.uniform("mask", 9))
    assert Draw(**keys | changes).scalar(what) != first.scalar("mask")


def test_drawing_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    draw = Draw.of_batch(4, seed=1, step=2)
    draw.uniform("mask", 9), draw.scalar("ratio"), keyed_generator(0, "order")
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_are_uniform():
    """Deciles of 100,000 numbers hold a tenth each (chi-squared, 9 degrees of freedom, p = 1e-4)."""
    numbers = Draw.of_batch(1000).uniform("mask", 100).flatten()
    assert 0 <= numbers.min() <= numbers.max() < 1
    counts = torch.histc(numbers, 10, 0, 1)
    assert ((counts - 1e4) ** 2 / 1e4).sum() < 33.7


def test_a_draw_of_a_batch_is_that_of_one_process():
    assert Draw.of_batch(4, seed=1, step=2) == Draw(1, 2, slice(0, 4), 4)
