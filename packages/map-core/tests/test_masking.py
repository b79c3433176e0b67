"""Masking: exact counts, each strategy against a loop over samples, keyed randomness."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from map_core import Draw, GridRegions, Masking, Regions, UserError, sample_mask
from map_core.masking import truncated_normal
from map_core.testing import toy_tokens

LENGTH = 30


def make_regions(index):
    """Regions of each sample's tokens; a list is shared by all samples."""
    index = torch.as_tensor(index).reshape(-1, torch.as_tensor(index).shape[-1])
    sizes = [(index == region).sum(1).min().item() for region in range(int(index.max()) + 1)]
    return Regions(index, len(sizes), int(min(sizes)))


def slow_hidden(score, candidates, count):
    """The ``count`` candidates with the largest scores; ties go to the later one."""
    return set(sorted(candidates, key=lambda i: (score[i], i))[len(candidates) - count :])


def hidden_sets(mask):
    return [set(torch.nonzero(row).flatten().tolist()) for row in mask.hidden]


def assert_partition(mask):
    """keep and drop are ascending, disjoint and complete, and agree with hidden."""
    for hidden, keep, drop in zip(mask.hidden, mask.keep.tolist(), mask.drop.tolist(), strict=True):
        assert keep == sorted(keep)
        assert drop == sorted(drop)
        assert sorted(keep + drop) == list(range(len(hidden)))
        assert drop == torch.nonzero(hidden).flatten().tolist()


# ---- counts

RATIOS = (0.5, 0.2, 0.37, 0.75, 0.9)
LENGTHS = (2, 3, 7, 16, 64, 65, 196)
HIDES_SOME = [(n, ratio) for n in LENGTHS for ratio in RATIOS if 0 < round(ratio * n) < n]
HIDES_NONE_OR_ALL = [(n, ratio) for n in LENGTHS for ratio in RATIOS if not 0 < round(ratio * n) < n]


@pytest.mark.parametrize("strategy", ["random", "sequential", "diagonal"])
@pytest.mark.parametrize(("length", "ratio"), HIDES_SOME)
def test_every_sample_hides_exactly_its_share(length, ratio, strategy):
    mask, count = sample_mask(toy_tokens(batch=3, grid=(1, length)), ratio, strategy), round(ratio * length)
    assert mask.hidden.sum(1).tolist() == [count] * 3
    assert mask.drop.shape == (3, count)
    assert mask.keep.shape == (3, length - count)
    assert_partition(mask)


@pytest.mark.parametrize(("length", "ratio"), HIDES_NONE_OR_ALL)
def test_a_share_that_rounds_to_nothing_or_everything_is_refused(length, ratio):
    count = round(ratio * length)
    with pytest.raises(UserError, match=rf"{ratio} of {length} tokens hides {count}: .*smaller patches"):
        sample_mask(toy_tokens(length, batch=3), ratio)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        (4, r"0.6 of 1 squares of 4x4 tokens hides 1: .* or use a smaller mask unit, more tokens"),
        (8, r"mask unit 8 does not tile a grid of 4x4"),
    ],
)
def test_squares_as_large_as_the_grid_are_distinguished_from_too_few_tokens(unit, message):
    with pytest.raises(UserError, match=message):
        sample_mask(toy_tokens(grid=(4, 4)), 0.6, unit=unit)


@pytest.mark.parametrize(
    ("masking", "chosen"),
    [
        (Masking(0.5, strategy="diagonal", unit=2), "strategy 'diagonal'"),
        (Masking(0.5, strategy="sequential", unit=2), "strategy 'sequential'"),
        (Masking(0.5, scope="region", unit=2), "scope 'region'"),
    ],
)
def test_squares_are_hidden_at_random_over_the_grid_only(masking, chosen):
    tokens = toy_tokens(grid=(4, 4))
    message = f"mask unit 2 needs squares hidden at random over the grid; got {chosen}: use unit 1"
    with pytest.raises(UserError, match=message):
        masking(tokens, Draw.of_batch(tokens.batch_size), GridRegions("row")(tokens))


@pytest.mark.parametrize("ratio", [1.0, -0.5, 1.5, 50.0, math.nan])
def test_a_ratio_outside_0_and_1_is_refused(ratio):
    with pytest.raises(UserError, match=rf"mask ratio must lie in \[0, 1\); got {ratio}"):
        sample_mask(toy_tokens(LENGTH), ratio)


@pytest.mark.parametrize("shape", [(2, 31), (1, 30)])
def test_noise_of_another_shape_is_refused(shape):
    message = rf"noise has shape \({shape[0]}, {shape[1]}\), strategy 'random' .* needs \(2, 30\); draw it for these"
    with pytest.raises(UserError, match=message):
        sample_mask(toy_tokens(LENGTH, batch=2), 0.5, noise=torch.rand(shape))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_strategy_names_its_near_matches():
    with pytest.raises(UserError, match=r"mask strategy 'randm' is unknown; did you mean random\?"):
        sample_mask(toy_tokens(LENGTH), 0.5, "randm")


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_scope_names_its_near_matches():
    with pytest.raises(UserError, match=r"mask scope 'regions' is unknown; did you mean region\?"):
        Masking(scope="regions")(toy_tokens(LENGTH), Draw.of_batch(1))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_placement_names_its_near_matches():
    with pytest.raises(UserError, match=r"mask placement 'rand' is unknown; did you mean random\?"):
        Masking(strategy="sequential", placement="rand")(toy_tokens(LENGTH), Draw.of_batch(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.0}, r"mask ratio must lie in \[0, 1\); got 1.0"),
        ({"ratio": math.nan}, r"mask ratio must lie in \[0, 1\); got nan"),
        ({"ratio_std": 0.0}, "mask ratio_std must be positive; got 0.0"),
        ({"ratio_std": -1.0}, "mask ratio_std must be positive; got -1.0"),
        ({"ratio_bounds": (0.7, 0.3)}, "mask ratio_bounds must satisfy 0 < low < high < 1; got 0.7, 0.3"),
        ({"unit": 0}, "mask unit must be at least 1; got 0"),
        ({"unit": -2}, "mask unit must be at least 1; got -2"),
        ({"placement": "random"}, "mask placement 'random' has no effect with mask strategy 'random'"),
        ({"strategy": "rand"}, r"mask strategy 'rand' is unknown; did you mean random\?"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_masking_that_no_tokens_could_have_is_refused_when_it_is_made(changes, message):
    with pytest.raises(UserError, match=message):
        Masking(**changes)


@pytest.mark.parametrize("changes", [{}, {"strategy": "sequential", "placement": "random"}])
def test_a_draw_of_another_batch_is_refused(changes):
    message = r"the draw is of 8 samples, the batch has 4: .*Draw.of_batch\(len\(inputs\)"
    with pytest.raises(UserError, match=message):
        Masking(**changes)(toy_tokens(LENGTH, batch=4), Draw.of_batch(8))


def test_hiding_within_regions_needs_regions():
    with pytest.raises(
        UserError, match="mask scope 'region' needs the regions of the tokens; pass them, or use"
    ):
        Masking(scope="region")(toy_tokens(LENGTH), Draw.of_batch(1))


# ---- strategies against loops


def test_random_hides_the_largest_noise_of_each_sample():
    tokens, noise = toy_tokens(LENGTH, batch=4), torch.rand(4, 30)
    mask = sample_mask(tokens, 0.4, noise=noise)
    assert hidden_sets(mask) == [slow_hidden(row, range(30), 12) for row in noise.tolist()]


def test_sequential_hides_the_end_of_the_scan():
    mask = sample_mask(toy_tokens(LENGTH, batch=2), 0.2, "sequential")
    assert mask.drop.tolist() == [[24, 25, 26, 27, 28, 29]] * 2


@pytest.mark.parametrize(
    "expected", [[11], [10, 11], [7, 10, 11], [7, 9, 10, 11], [3, 6, 7, 9, 10, 11]], ids=len
)
def test_diagonal_hides_the_largest_row_plus_column(expected):
    """On 3 x 4 the sums are 0123 1234 2345: of the three 3s the latest goes first."""
    tokens = toy_tokens(batch=2, grid=(3, 4))
    assert sample_mask(tokens, len(expected) / 12, "diagonal").drop.tolist() == [expected] * 2


@pytest.mark.parametrize("count", [1, 7, 15, 29])
def test_diagonal_follows_the_coordinates_not_the_sequence(count):
    tokens = toy_tokens(grid=(6, 5))
    tokens = replace(tokens, position=tokens.position[:, torch.randperm(30)])
    score = tokens.position[0].sum(-1).tolist()
    mask = sample_mask(tokens, count / 30, "diagonal")
    assert hidden_sets(mask) == [slow_hidden(score, range(30), count)]


def test_diagonal_needs_a_grid():
    with pytest.raises(UserError, match=r"'diagonal' needs tokens on a grid.*use 'random' or 'sequential'"):
        sample_mask(toy_tokens(LENGTH), 0.5, "diagonal")


# ---- sequential and diagonal from a random start


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0.0, [7, 8, 9]), (0.05, [7, 8, 9]), (0.1, [0, 8, 9]), (0.35, [0, 1, 2]), (0.9999999, [6, 7, 8])],
)
def test_sequential_from_a_start_ends_before_it_and_goes_round(start, expected):
    """A scan of ten that begins at token 3 ends with 0, 1, 2."""
    mask = sample_mask(toy_tokens(10), 0.3, "sequential", noise=torch.tensor([[start]]))
    assert mask.drop.tolist() == [expected]


@pytest.mark.parametrize(
    ("corner", "expected"), [(0.0, [7, 10, 11]), (0.25, [4, 8, 9]), (0.5, [2, 3, 7]), (0.75, [0, 1, 4])]
)
def test_diagonal_from_each_corner_hides_the_opposite_one(corner, expected):
    """On 3 x 4: from the top left, the top right, the bottom left, the bottom right."""
    mask = sample_mask(toy_tokens(grid=(3, 4)), 0.25, "diagonal", noise=torch.tensor([[corner]]))
    assert mask.drop.tolist() == [expected]


@pytest.mark.parametrize("strategy", ["sequential", "diagonal"])
def test_only_a_drawn_beginning_trains_every_place(strategy):
    tokens, draw = toy_tokens(batch=256, grid=(6, 5)), Draw.of_batch(256, seed=0)
    fixed = Masking(0.5, strategy=strategy)(tokens, draw).hidden
    assert torch.equal(fixed, fixed[:1].expand(256, 30))
    random = Masking(0.5, strategy=strategy, placement="random")(tokens, draw).hidden
    assert random.sum(1).tolist() == [15] * 256
    assert random.float().mean(0) == pytest.approx([0.5] * 30, abs=5 * 0.5 / math.sqrt(256))
    assert len(random.unique(dim=0)) == {"sequential": 30, "diagonal": 4}[strategy]


def test_a_beginning_is_one_number_a_sample():
    with pytest.raises(UserError, match=r"noise has shape \(2, 30\), strategy 'diagonal' .* needs \(2, 1\)"):
        sample_mask(toy_tokens(batch=2, grid=(6, 5)), 0.5, "diagonal", noise=torch.rand(2, 30))


# ---- on a device without float64


class NoFloat64(TorchDispatchMode):
    """Refuses what mps refuses."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError(f"{func} makes a float64 tensor")
        return result


@pytest.mark.parametrize("grid", [(6, 5), (32, 32), (1, 1024), (1024, 1), (31, 33)], ids=str)
@pytest.mark.parametrize("scope", ["all", "region"])
@pytest.mark.parametrize(
    "masking",
    [
        Masking(0.37),
        Masking(0.37, strategy="sequential"),
        Masking(0.37, strategy="sequential", placement="random"),
        Masking(0.37, strategy="diagonal"),
        Masking(0.37, strategy="diagonal", placement="random"),
    ],
    ids=lambda masking: f"{masking.strategy}-{masking.placement}",
)
def test_a_device_without_float64_hides_the_same_tokens(monkeypatch, masking, scope, grid):
    tokens, draw = toy_tokens(batch=4, grid=grid, num_global=2), Draw.of_batch(4, seed=1)
    masking = replace(masking, scope=scope)
    regions = GridRegions("column" if grid[0] > 1 else "row")(tokens)
    expected = masking(tokens, draw, regions).hidden
    monkeypatch.setattr("map_core.float64.WITHOUT_FLOAT64", tokens.embedding.device.type)
    with NoFloat64():
        hidden = masking(tokens, draw, regions).hidden
    assert torch.equal(hidden, expected)


# ---- within each region


@pytest.mark.parametrize("ratio", [0.1, 0.17, 0.5, 0.63, 0.79])
@pytest.mark.parametrize("strategy", ["random", "sequential", "diagonal"])
def test_region_scope_splits_the_total_evenly_and_hides_the_largest_scores_of_each(strategy, ratio):
    region = torch.stack([torch.arange(30)[torch.randperm(30)] // 5 for _ in range(5)])
    tokens, noise = toy_tokens(batch=5, grid=(6, 5)), torch.rand(5, 30)
    sample_noise = noise if strategy == "random" else None
    mask = sample_mask(tokens, ratio, strategy, noise=sample_noise, within=make_regions(region))
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
    region = make_regions([r for r, size in enumerate(sizes) for _ in range(size)])
    mask = sample_mask(toy_tokens(19, batch=4000), 10 / 19, within=region)
    counts = torch.stack([part.sum(1) for part in mask.hidden.split(sizes, dim=1)], dim=1)
    assert set(counts.flatten().tolist()) == {2, 3}
    share = (counts == 3).float().mean(0)
    assert share == pytest.approx([0.5] * 4, abs=5 * 0.5 / math.sqrt(4000))


def test_extra_tokens_do_not_favour_a_place_within_their_region():
    mask = sample_mask(toy_tokens(6, batch=4000), 0.5, within=make_regions([0, 0, 0, 1, 1, 1]))
    assert mask.hidden.float().mean(0) == pytest.approx([0.5] * 6, abs=5 * 0.5 / math.sqrt(4000))


@pytest.mark.parametrize("region", [[0] * 9 + [1], [0] * 8 + [1, 1], [0] * 5 + [2] * 5], ids=str)
def test_a_region_smaller_than_its_share_is_refused_at_every_draw(region):
    """Regions of 9 + 1, of 8 + 2, and with an empty one among three."""
    for _ in range(10):
        with pytest.raises(
            UserError, match=r"scope 'region' must hide up to \d tokens .* the smallest has \d; lower"
        ):
            sample_mask(toy_tokens(10), 0.5, within=make_regions(region))


# ---- global tokens


@pytest.mark.parametrize("scope", ["all", "region"])
@pytest.mark.parametrize("strategy", ["random", "sequential", "diagonal"])
def test_global_tokens_stay_visible_and_do_not_count(strategy, scope):
    """Also where their noise is the highest."""
    tokens = toy_tokens(batch=6, grid=(6, 5), num_global=3)
    noise = torch.cat([torch.full((6, 3), 2.0), torch.rand(6, 30)], dim=1)
    within = GridRegions("row")(tokens) if scope == "region" else None
    sample_noise = noise if strategy == "random" else torch.rand(6, 1)
    mask = sample_mask(tokens, 0.5, strategy, noise=sample_noise, within=within)
    assert not mask.hidden[:, :3].any()
    assert mask.hidden.sum(1).tolist() == [15] * 6
    assert mask.keep.shape == (6, 18)
    assert_partition(mask)


@pytest.mark.parametrize("scope", ["all", "region"])
def test_global_tokens_do_not_change_what_else_is_hidden(scope):
    noise = torch.rand(2, 30)
    hidden = []
    for num_global in (0, 1):
        tokens = toy_tokens(batch=2, grid=(6, 5), num_global=num_global)
        within = GridRegions("row")(tokens) if scope == "region" else None
        all_noise = torch.cat([torch.rand(2, num_global), noise], dim=1)
        hidden.append(sample_mask(tokens, 0.5, noise=all_noise, within=within).hidden[:, num_global:])
    assert torch.equal(*hidden)


# ---- randomness


def test_random_hiding_is_uniform_over_subsets():
    """Each of the 20 ways to hide 3 of 6 tokens is equally likely (chi-squared, 19 degrees of freedom)."""
    hidden = sample_mask(toy_tokens(6, batch=8000), 0.5).hidden
    _, counts = (hidden.long() * 2 ** torch.arange(6)).sum(1).unique(return_counts=True)
    assert len(counts) == 20
    assert ((counts - 400.0) ** 2 / 400).sum() < 50  # p = 1e-4


@pytest.mark.parametrize("scope", ["all", "region"])
@pytest.mark.parametrize("masking", [{}, {"strategy": "sequential", "placement": "random"}], ids=str)
def test_two_processes_hide_what_one_hides(masking, scope):
    tokens = toy_tokens(batch=16, grid=(6, 5))
    halves = [slice(0, 8), slice(8, 16)]
    masking, regions = Masking(0.4, scope=scope, **masking), GridRegions("row")(tokens)
    whole = masking(tokens, Draw(7, 31, slice(0, 16), 16), regions).hidden
    part = replace(tokens, embedding=tokens.embedding[:8])
    parts = [masking(part, Draw(7, 31, half, 16), regions).hidden for half in halves]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(*parts)


@pytest.mark.parametrize("changes", [{"seed": 8}, {"step": 32}])
def test_what_is_hidden_depends_on_seed_and_step_and_on_nothing_else(changes):
    def hidden(**keys):
        return Masking()(
            toy_tokens(LENGTH, batch=4), Draw.of_batch(4, **{"seed": 7, "step": 31, **keys})
        ).hidden

    first = hidden()
    torch.rand(5)  # other draws must not matter
    assert torch.equal(first, hidden())
    assert not torch.equal(first, hidden(**changes))


@pytest.mark.parametrize(
    ("masking", "ratio", "strategy"),
    [(Masking(0.3), 0.3, "random"), (Masking(0.7, strategy="sequential"), 0.7, "sequential")],
)
def test_settings_reach_the_mask(masking, ratio, strategy):
    tokens, draw = toy_tokens(LENGTH, batch=2), Draw.of_batch(2, seed=3)
    noise = draw.uniform("mask", LENGTH) if strategy == "random" else None
    expected = sample_mask(tokens, ratio, strategy, noise=noise)
    assert torch.equal(masking(tokens, draw).hidden, expected.hidden)


@pytest.mark.parametrize(
    ("mean", "std", "bounds"), [(0.5, 0.25, (0.3, 0.7)), (0.35, 0.1, (0.3, 0.7)), (0.9, 0.2, (0.2, 0.6))]
)
def test_drawn_ratios_follow_the_truncated_normal(mean, std, bounds):
    """Compared with rejection sampling from the normal distribution."""
    masking = Masking(mean, std, bounds)
    ratios = np.array([masking.step_ratio(Draw.of_batch(2, seed=1, step=step)) for step in range(4000)])
    normal = np.random.default_rng(0).normal(mean, std, 400_000)
    expected = normal[(normal > bounds[0]) & (normal < bounds[1])]
    assert bounds[0] <= ratios.min() <= ratios.max() <= bounds[1]
    assert ratios.mean() == pytest.approx(expected.mean(), abs=5 * expected.std() / math.sqrt(4000))
    assert np.quantile(ratios, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(expected, [0.1, 0.5, 0.9]), abs=0.015
    )


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 0.3), (0.5, 0.5), (1 - 2**-53, 0.7)])
def test_ends_and_middle_of_the_uniform_are_those_of_the_bounds(uniform, expected):
    assert truncated_normal(uniform, 0.5, 0.25, (0.3, 0.7)) == pytest.approx(expected, abs=1e-9)


def test_a_drawn_ratio_depends_on_seed_and_step_only():
    masking = Masking(0.5, 0.25)
    draws = [Draw.of_batch(4, seed=seed, step=step) for seed in range(4) for step in range(4)]
    ratios = [masking.step_ratio(draw) for draw in draws]
    assert ratios == [masking.step_ratio(draw) for draw in draws]
    assert len(set(ratios)) == 16


def test_a_fixed_ratio_is_that_of_every_step():
    assert {Masking(0.4).step_ratio(Draw.of_batch(2, step=step)) for step in range(5)} == {0.4}


def test_the_extremes_are_the_bounds_of_what_is_drawn():
    fixed, random = Masking(0.4, unit=2), Masking(0.4, 0.1, (0.2, 0.6), scope="region")
    assert fixed.extremes == (fixed,)
    assert random.extremes == (
        Masking(0.2, None, (0.2, 0.6), scope="region"),
        Masking(0.6, None, (0.2, 0.6), scope="region"),
    )


@pytest.mark.parametrize(("masking", "highest"), [(Masking(0.4), 0.4), (Masking(0.4, 0.1, (0.2, 0.6)), 0.6)])
def test_the_highest_ratio_bounds_every_step(masking, highest):
    assert masking.highest_ratio == highest


@pytest.mark.parametrize("scope", ["all", "region"])
@pytest.mark.parametrize("strategy", ["sequential", "diagonal"])
@pytest.mark.parametrize("starts", [None, [[0.35], [0.8]]], ids=["fixed", "drawn"])
def test_global_tokens_do_not_shift_what_follows_the_scan_or_the_grid(starts, strategy, scope):
    noise, hidden = None if starts is None else torch.tensor(starts), []
    for num_global in (0, 3):
        tokens = toy_tokens(batch=2, grid=(6, 5), num_global=num_global)
        within = GridRegions("row")(tokens) if scope == "region" else None
        mask = sample_mask(tokens, 0.5, strategy, noise=noise, within=within)
        hidden.append(mask.hidden[:, num_global:])
    assert torch.equal(*hidden)
