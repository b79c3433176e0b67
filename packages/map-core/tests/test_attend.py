"""FlexAttention under region masks computes what the dense mask does, leaves blocks out, and serves where it fits."""

import pytest
import torch
import torch.nn.functional as F

from map_core.blocks import attend as attending
from map_core.blocks.attend import attend, flex, flex_fits, make_block_mask
from map_core.regions import region_attention_mask

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
LENGTH = 300  # two whole blocks and a part of one


def heads(batch, length=LENGTH):
    return tuple(torch.randn(batch, 2, length, 16) for _ in range(3))


def mask_of(kind, batch, num_global=3):
    region = torch.arange(LENGTH).div(60, rounding_mode="floor").expand(batch, -1).clone()
    if batch > 1:
        region = torch.stack([row[torch.randperm(LENGTH)] for row in region])
    region[:, :num_global] = -1
    return region_attention_mask(region, kind)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", ["map", "mae", "local_mae", "ar"])
def test_flex_attention_equals_the_dense_mask(kind, batch):
    q, k, v = heads(2)
    mask = mask_of(kind, batch)
    with torch.no_grad():
        actual = flex(q, k, v, mask, compiled=False)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "computed"), [("mae", 9), ("map", 8), ("local_mae", 7), ("ar", 6)])
def test_blocks_that_are_hidden_whole_are_left_out(kind, computed):
    """Regions of 60, blocks of 128: by the definition, a block counts where any of its entries is True."""
    mask = mask_of(kind, 1, num_global=0)
    padded = F.pad(mask, (0, 84, 0, 84)).reshape(3, 128, 3, 128)
    block_mask = make_block_mask(mask)
    blocks = block_mask.kv_num_blocks.sum() + block_mask.full_kv_num_blocks.sum()
    assert blocks == padded.any(3).any(1).sum()
    assert blocks <= computed


def test_layers_that_share_a_mask_share_its_blocks(monkeypatch):
    made = []
    monkeypatch.setattr(attending, "make_block_mask", lambda mask: made.append(mask) or make_block_mask(mask))
    masks = [mask_of("map", 1), mask_of("ar", 1)]
    q, k, v = heads(1)
    with torch.no_grad():
        results = [flex(q, k, v, mask, compiled=False) for mask in (masks[0], masks[0], masks[1], masks[0])]
    assert len(made) == 3
    assert torch.equal(results[0], results[3])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"dtype": torch.bfloat16}, True),
        ({"device": "cpu"}, False),
        ({"dtype": torch.float64}, False),
        ({"query": (2, 4, 196, 64), "mask": (1, 196, 196)}, False),  # too short
        ({"query": (2, 16, 1024, 12)}, False),  # the decoder of the authors: too narrow
        ({"mask": (2, 1, 1024)}, False),  # one row for all queries
    ],
)
def test_where_it_serves(changes, fits, monkeypatch):
    monkeypatch.setattr(attending, "_compiles", lambda: True)
    call = {"device": "cuda", "dtype": torch.float32, "query": (2, 4, 1024, 64), "mask": (1, 1024, 1024)}
    assert flex_fits(**call | changes) == fits


def test_the_choice_is_asked_of_every_masked_call(monkeypatch):
    q, k, v = heads(1)
    mask = mask_of("map", 1)
    monkeypatch.setattr(attending, "flex_fits", lambda *call: True)
    monkeypatch.setattr(attending, "flex", lambda q, k, v, mask: q)
    assert attend(q, k, v, mask) is q
    torch.testing.assert_close(attend(q, k, v, None), F.scaled_dot_product_attention(q, k, v))
