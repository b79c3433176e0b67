"""Hiding tokens: exact counts, each strategy against a loop over samples, keyed randomness."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from map_core import UserError, mask_noise, sample_mask, truncated_normal_ratio
from map_core.testing import toy_tokens

ROWS = [row for row in range(6) for _ in range(5)]  # a grid of 6 x 5


def slow_hidden(score, candidates, count):
    """The ``count`` candidates with the largest score, equal scores to the later one."""
    return set(sorted(candidates, key=lambda i: (score[i], i))[len(candidates) - count :])


def hidden_sets(mask):
    return [set(torch.nonzero(row).flatten().tolist()) for row in mask.hidden]


def assert_partition(mask):
    """keep and drop are ascending, disjoint and complete, and say the same as hidden."""
    for hidden, keep, drop in zip(mask.hidden, mask.keep.tolist(), mask.drop.tolist(), strict=True):
        assert keep == sorted(keep)
        assert drop == sorted(drop)
        assert sorted(keep + drop) == list(range(len(hidden)))
        assert drop == torch.nonzero(hidden).flatten().tolist()


# ---- counts


@pytest.mark.parametrize("strategy", ["random", "sequential", "diagonal"])
@pytest.mark.parametrize("length", [2, 3, 7, 16, 64, 65, 196])
def test_every_sample_hides_exactly_its_share(length, strategy):
    tokens = toy_tokens([0] * length, batch=3, grid=(1, length))
    for ratio in (0.5, 0.2, 0.37, 0.75, 0.9):
        count = round(ratio * length)
        if not 0 < count < length:
            with pytest.raises(
                UserError, match=rf"{ratio} of {length} tokens hides {count}: .*smaller patches"
            ):
                sample_mask(tokens, ratio, strategy)
            continue
        mask = sample_mask(tokens, ratio, strategy)
        assert mask.hidden.sum(1).tolist() == [count] * 3
        assert mask.drop.shape == (3, count)
        assert mask.keep.shape == (3, length - count)
        assert_partition(mask)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5, 50.0, math.nan])
def test_a_ratio_outside_0_and_1_is_refused(ratio):
    with pytest.raises(UserError, match=rf"mask ratio must lie inside \(0, 1\); got {ratio}"):
        sample_mask(toy_tokens(ROWS), ratio)


def test_unknown_names_and_wrong_noise_are_refused():
    tokens = toy_tokens(ROWS, batch=2)
    with pytest.raises(UserError, match="noise has shape"):
        sample_mask(tokens, 0.5, noise=torch.rand(2, 31))
    with pytest.raises(UserError, match="noise has shape"):
        sample_mask(tokens, 0.5, noise=torch.rand(1, 30))


# ---- strategies against loops


def test_random_hides_the_largest_noise_of_each_sample():
    tokens, noise = toy_tokens(ROWS, batch=4), torch.rand(4, 30)
    mask = sample_mask(tokens, 0.4, noise=noise)
    assert hidden_sets(mask) == [slow_hidden(row, range(30), 12) for row in noise.tolist()]


def test_sequential_hides_the_end_of_the_scan():
    mask = sample_mask(toy_tokens(ROWS, batch=2), 0.2, "sequential")
    assert mask.drop.tolist() == [[24, 25, 26, 27, 28, 29]] * 2


def test_diagonal_hides_the_largest_row_plus_column():
    """On 3 x 4 the sums are 0123 1234 2345: of the three 3s the latest goes first."""
    tokens = toy_tokens([0] * 12, batch=2, grid=(3, 4))
    for count, expected in {
        1: [11],
        2: [10, 11],
        3: [7, 10, 11],
        4: [7, 9, 10, 11],
        6: [3, 6, 7, 9, 10, 11],
    }.items():
        assert sample_mask(tokens, count / 12, "diagonal").drop.tolist() == [expected] * 2


def test_diagonal_follows_the_coordinates_not_the_sequence():
    tokens = toy_tokens([0] * 30, grid=(6, 5))
    order = torch.randperm(30)
    tokens = replace(tokens, position=tokens.position[:, order])
    score = tokens.position[0].sum(-1).tolist()
    for count in (1, 7, 15, 29):
        mask = sample_mask(tokens, count / 30, "diagonal")
        assert hidden_sets(mask) == [slow_hidden(score, range(30), count)]


def test_diagonal_needs_a_grid():
    with pytest.raises(UserError, match=r"'diagonal' needs tokens on a grid.*use 'random' or 'sequential'"):
        sample_mask(toy_tokens(ROWS), 0.5, "diagonal")


# ---- within each region


@pytest.mark.parametrize("ratio", [0.1, 0.17, 0.5, 0.63, 0.79])
@pytest.mark.parametrize("strategy", ["random", "sequential", "diagonal"])
def test_region_scope_splits_the_total_evenly_and_hides_the_largest_scores_of_each(strategy, ratio):
    region = torch.stack([torch.tensor(ROWS)[torch.randperm(30)] for _ in range(5)])
    tokens, noise = toy_tokens(region.tolist(), grid=(6, 5)), torch.rand(5, 30)
    mask = sample_mask(tokens, ratio, strategy, noise=noise, scope="region")
    assert_partition(mask)
    score = {
        "random": noise,
        "sequential": torch.arange(30).expand(5, 30),
        "diagonal": tokens.position.sum(-1).expand(5, 30),
    }[strategy].tolist()
    for b, hidden in enumerate(hidden_sets(mask)):
        members = [[i for i in range(30) if region[b, i] == r] for r in range(6)]
        counts = [len(hidden & set(m)) for m in members]
        assert sum(counts) == round(ratio * 30)
        assert max(counts) - min(counts) <= 1
        assert hidden == set().union(
            *(slow_hidden(score[b], m, n) for m, n in zip(members, counts, strict=True))
        )


def test_extra_tokens_of_region_scope_fall_on_every_region_alike():
    """Also where regions differ in size: 10 of 6 + 5 + 4 + 4 is 2 of each and one more of two."""
    sizes = (6, 5, 4, 4)
    tokens = toy_tokens([r for r, size in enumerate(sizes) for _ in range(size)], batch=4000)
    mask = sample_mask(tokens, 10 / 19, scope="region")
    counts = torch.stack([part.sum(1) for part in mask.hidden.split(sizes, dim=1)], dim=1)
    assert set(counts.flatten().tolist()) == {2, 3}
    share = (counts == 3).float().mean(0)
    assert share == pytest.approx([0.5] * 4, abs=5 * 0.5 / math.sqrt(4000))


def test_extra_tokens_do_not_favour_a_place_within_their_region():
    mask = sample_mask(toy_tokens([0, 0, 0, 1, 1, 1], batch=4000), 0.5, scope="region")
    assert mask.hidden.float().mean(0) == pytest.approx([0.5] * 6, abs=5 * 0.5 / math.sqrt(4000))


@pytest.mark.parametrize(
    ("region", "ratio"), [([0] * 9 + [1], 0.5), ([0] * 8 + [1, 1], 0.5), ([0] * 5 + [2] * 5, 0.5)]
)
def test_a_region_smaller_than_its_share_is_refused_at_every_draw(region, ratio):
    for _ in range(10):
        with pytest.raises(
            UserError, match=r"scope 'region' must hide up to \d tokens .* the smallest has \d; lower"
        ):
            sample_mask(toy_tokens(region), ratio, scope="region")


# ---- global tokens


@pytest.mark.parametrize("scope", ["all", "region"])
@pytest.mark.parametrize("strategy", ["random", "sequential", "diagonal"])
def test_global_tokens_stay_visible_and_do_not_count(strategy, scope):
    """Three global tokens, at other places in every sample, and always with the highest noise."""
    region = torch.stack([torch.tensor([-1, -1, -1, *ROWS])[torch.randperm(33)] for _ in range(6)])
    tokens = toy_tokens(region.tolist(), grid=(1, 33))
    noise = torch.where(region == -1, 2.0, torch.rand(6, 33))
    mask = sample_mask(tokens, 0.5, strategy, noise=noise, scope=scope)
    assert not (mask.hidden & (region == -1)).any()
    assert mask.hidden.sum(1).tolist() == [15] * 6
    assert mask.keep.shape == (6, 18)
    assert_partition(mask)


def test_global_tokens_do_not_change_what_else_is_hidden():
    noise = torch.rand(2, 30)
    plain = sample_mask(toy_tokens(ROWS, batch=2), 0.5, noise=noise)
    with_global = sample_mask(
        toy_tokens([-1, *ROWS], batch=2), 0.5, noise=torch.cat([torch.rand(2, 1), noise], 1)
    )
    assert torch.equal(with_global.hidden[:, 1:], plain.hidden)


# ---- randomness


def test_random_hiding_is_uniform_over_subsets():
    """Each of the 20 ways to hide 3 of 6 tokens is equally likely (chi-squared, 19 degrees of freedom)."""
    hidden = sample_mask(toy_tokens([0] * 6, batch=8000), 0.5).hidden
    _, seen = (hidden.long() * 2 ** torch.arange(6)).sum(1).unique(return_counts=True)
    assert len(seen) == 20
    assert ((seen - 400.0) ** 2 / 400).sum() < 50  # p = 1e-4


def test_noise_of_two_processes_is_the_noise_of_one():
    whole = mask_noise(7, 31, slice(0, 16), (16, 196))
    halves = [mask_noise(7, 31, half, (16, 196)) for half in (slice(0, 8), slice(8, 16))]
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(halves[0], halves[1])


def test_noise_depends_on_its_keys_and_on_nothing_else():
    first = mask_noise(7, 31, slice(None), (4, 9))
    torch.rand(5)  # other draws must not matter
    assert torch.equal(first, mask_noise(7, 31, slice(None), (4, 9)))
    for other in (mask_noise(8, 31, slice(None), (4, 9)), mask_noise(7, 32, slice(None), (4, 9))):
        assert not torch.equal(first, other)
    assert 0 <= first.min() < first.max() < 1


@pytest.mark.parametrize(
    ("mean", "std", "bounds"), [(0.5, 0.25, (0.3, 0.7)), (0.35, 0.1, (0.3, 0.7)), (0.9, 0.2, (0.2, 0.6))]
)
def test_drawn_ratios_follow_the_truncated_normal(mean, std, bounds):
    """Against throwing away what falls outside the bounds."""
    drawn = np.array([truncated_normal_ratio(1, step, mean, std, bounds) for step in range(4000)])
    normal = np.random.default_rng(0).normal(mean, std, 400_000)
    expected = normal[(normal > bounds[0]) & (normal < bounds[1])]
    assert bounds[0] <= drawn.min() <= drawn.max() <= bounds[1]
    assert drawn.mean() == pytest.approx(expected.mean(), abs=5 * expected.std() / math.sqrt(4000))
    assert np.quantile(drawn, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(expected, [0.1, 0.5, 0.9]), abs=0.015
    )


def test_a_drawn_ratio_depends_on_seed_and_step_only():
    def draw(seed, step):
        return truncated_normal_ratio(seed, step, 0.5, 0.25, (0.3, 0.7))

    assert draw(3, 5) == draw(3, 5)
    assert len({draw(seed, step) for seed in range(4) for step in range(4)}) == 16
