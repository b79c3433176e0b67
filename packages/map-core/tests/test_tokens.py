"""Indexing what travels with the tokens."""

import pytest
import torch

from map_core.tokens import gather_tokens


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
