"""The four decoder masks, entry by entry against their definitions."""

from inspect import unwrap

import pytest
import torch

from map_core import UserError, region_attention_mask


def may_attend(kind, region, i, j):
    """design.md: the definition of each mask for query i and key j of one sequence."""
    if region[j] == -1:
        return True
    if kind == "map":
        return region[j] <= region[i]
    if kind == "local_mae":
        return region[j] == region[i]
    if kind == "mae":
        return True
    return (region[j], j) <= (region[i], i)  # ar


SEQUENCES = {
    "rows": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "unordered": [2, 0, 1, 1, 2, 0, 1, 0, 2],
    "single tokens": [3, 1, 0, 2],
    "one region": [0, 0, 0],
    "global in front": [-1, 0, 0, 1, 1],
    "global within": [1, 0, -1, 1, 0, -1],
}


@pytest.mark.parametrize("kind", ["map", "mae", "local_mae", "ar"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_every_entry_follows_the_definition(name, kind):
    region = SEQUENCES[name]
    length = range(len(region))
    expected = torch.tensor([[may_attend(kind, region, i, j) for j in length] for i in length])
    actual = region_attention_mask(torch.tensor(region), kind)
    assert actual.dtype == torch.bool
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", ["map", "mae", "local_mae", "ar"])
def test_samples_of_a_batch_have_their_own_masks(kind):
    region = torch.stack(
        [torch.tensor([-1, *torch.randperm(6).div(2, rounding_mode="floor")]) for _ in range(4)]
    )
    batched = region_attention_mask(region, kind)
    assert batched.shape == (4, 7, 7)
    for sample, mask in zip(region, batched, strict=True):
        assert torch.equal(mask, region_attention_mask(sample, kind))


@pytest.mark.parametrize("kind", ["map", "mae", "local_mae", "ar"])
def test_every_token_may_attend_to_itself(kind):
    """A row without any True would be NaN behind the softmax."""
    mask = region_attention_mask(torch.randint(-1, 4, (3, 20)), kind)
    assert mask.diagonal(dim1=-2, dim2=-1).all()


@pytest.mark.parametrize("kind", ["map", "mae", "local_mae", "ar"])
def test_depth_adds_no_reach(kind):
    """What two layers reach, one layer may reach: otherwise depth would leak later regions."""
    mask = region_attention_mask(torch.randint(-1, 4, (12,)), kind).int()
    assert torch.equal((mask @ mask) > 0, mask > 0)


def test_an_unknown_kind_names_its_near_matches():
    with pytest.raises(
        UserError, match=r"attention mask kind 'local-mae' is unknown; did you mean local_mae"
    ):
        unwrap(region_attention_mask)(torch.zeros(3, dtype=torch.long), "local-mae")
