"""An order that reads few shards at a time visits every sample once and mixes the samples."""

import pytest
import torch

from map_core.shards import in_windows

SHARD = torch.arange(4000) // 100  # 40 shards of 100


def order(window, seed=0, shard=SHARD):
    return in_windows(shard, window, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [1, 3, 16, 40, 1000])
def test_every_sample_comes_once(window):
    assert order(window).sort().values.tolist() == list(range(4000))


@pytest.mark.parametrize("window", [1, 3, 16])
def test_a_stretch_reads_from_the_window_and_the_shard_that_begins(window):
    shards = SHARD[order(window)]
    counts = [len(shards[start : start + 50].unique()) for start in range(0, 3950, 50)]
    assert max(counts) <= window + 2
    assert sum(counts) / len(counts) > 0.7 * min(window, 50)


def test_a_shard_is_opened_once_an_epoch_or_twice_around_its_end():
    shards = SHARD[order(8)]
    spans = [(shards == shard).nonzero().flatten() for shard in range(40)]
    spans_within = [int(span[-1] - span[0]) for span in spans]
    assert sum(width > 1100 for width in spans_within) <= 8
    assert min(spans_within) > 500, "a shard was read in one go"


def test_shards_come_in_an_order_of_the_epochs():
    first = [SHARD[order(1, seed)][::100].tolist() for seed in range(2)]
    assert first[0] != first[1]
    assert sorted(first[0]) != first[0]


def test_all_shards_at_once_is_any_order():
    places = torch.empty(4000, dtype=torch.long)
    places[order(40)] = torch.arange(4000)
    mean = torch.stack([places[shard == SHARD].float().mean() for shard in range(40)])
    assert (mean - 2000).abs().max() < 500


def test_the_order_is_a_function_of_the_generator():
    assert torch.equal(order(4), order(4))
    assert not torch.equal(order(4), order(4, seed=1))
    expected = [0, 1, 3, 2, 6, 7, 4, 5]  # as drawn with torch 2.12
    assert order(2, shard=torch.arange(8) // 2).tolist() == expected


def test_shards_of_which_a_subset_has_nothing_do_no_harm():
    shard = torch.tensor([7, 7, 2, 2, 2, 9])
    assert sorted(order(2, shard=shard).tolist()) == list(range(6))
