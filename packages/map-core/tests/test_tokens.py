"""Indexing tokens and the values that belong to them."""

import pytest
import torch

from map_core import Tokens
from map_core.testing import toy_tokens
from map_core.tokens import gather_tokens, undo_scan


@pytest.mark.parametrize("tail", [(), (3,), (2, 3)])
@pytest.mark.parametrize("shared_values", [True, False])
@pytest.mark.parametrize("shared_index", [True, False])
def test_gathering_equals_indexing_each_sample(tail, shared_values, shared_index):
    """In any order and with repeats; a leading axis of 1 is shared by all samples."""
    values = torch.randn(1 if shared_values else 4, 7, *tail)
    index = torch.randint(7, (1 if shared_index else 4, 5))
    gathered = gather_tokens(values, index)
    batch = max(len(values), len(index))
    assert gathered.shape == (batch, 5, *tail)
    for b in range(batch):
        expected = values[b % len(values)][index[b % len(index)]]
        assert torch.equal(gathered[b], expected)


@pytest.mark.parametrize(("values", "index"), [(0, 0), (0, 1), (1, 0)])
def test_gathering_from_an_empty_batch_gives_one(values, index):
    gathered = gather_tokens(torch.randn(values, 7, 3), torch.zeros(index, 5, dtype=torch.long))
    assert gathered.shape == (0, 5, 3)


@pytest.mark.parametrize("shared_origin", [True, False])
def test_undoing_the_scan_puts_every_value_back(shared_origin):
    """``origin`` holds each token's index before the scan, for all samples together or for each."""
    before = torch.randn(3, 7, 2)
    origin = torch.stack([torch.randperm(7) for _ in range(1 if shared_origin else 3)])
    tokens = Tokens(torch.randn(3, 7, 4), torch.randn(1, 7, 2), origin=origin)
    assert torch.equal(undo_scan(gather_tokens(before, origin), tokens), before)


def test_a_scan_in_the_order_before_it_needs_no_undoing():
    values = torch.randn(2, 6, 1)
    assert undo_scan(values, toy_tokens(6, batch=2)) is values


def test_global_tokens_count_as_tokens_that_cannot_be_hidden():
    tokens = toy_tokens(grid=(3, 2), batch=2, num_global=2)
    assert (tokens.batch_size, tokens.length, tokens.num_maskable) == (2, 8, 6)
    assert tokens.position[0, 2:].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
