"""The decoder lays out visible features and mask tokens in sequence order and returns the hidden ones."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from map_core import Features, RegionDecoder, Regions, make_position, region_attention_mask, sample_mask
from map_core.errors import UserError
from map_core.initialization import undecayed_parameters
from map_core.objectives.autoregression import NextRegionDecoder
from map_core.objectives.mamba_decoder import MambaRegionDecoder
from map_core.testing import LinearPosition, toy_tokens
from map_core.tokens import gather_tokens

ENCODER_DIM, WIDTH, LENGTH = 6, 8, 10
REGIONS = Regions(
    torch.zeros(1, LENGTH, dtype=torch.long), count=1, smallest=LENGTH
)  # only masks matter here


@pytest.fixture
def decoder():
    return RegionDecoder(ENCODER_DIM, LinearPosition(WIDTH), embed_dim=WIDTH, depth=2, num_heads=2)


def masked_tokens(batch=3):
    tokens = toy_tokens(LENGTH, batch=batch)
    return tokens, sample_mask(tokens, 0.4)


def test_the_sequence_holds_features_where_visible_and_the_mask_token_where_hidden(decoder):
    tokens, mask = masked_tokens()
    features = Features(torch.randn(3, 6, ENCODER_DIM), mask.keep)
    sequence = decoder.sequence(features, tokens, mask)
    position = decoder.position(tokens.position)[0]
    for b in range(3):
        for i in range(LENGTH):
            expected = decoder.mask_token
            if not mask.hidden[b, i]:
                expected = decoder.embed(features.embedding[b, mask.keep[b].tolist().index(i)])
            torch.testing.assert_close(sequence[b, i], expected + position[i])


def test_an_encoder_that_returns_the_whole_grid_tells_nothing_about_hidden_tokens(decoder):
    """A pyramid encoder gives features at every position; those of hidden tokens are replaced."""
    tokens, mask = masked_tokens()
    everywhere = torch.randn(3, LENGTH, ENCODER_DIM, requires_grad=True)
    whole = decoder.sequence(Features(everywhere, torch.arange(LENGTH).unsqueeze(0)), tokens, mask)
    visible = Features(gather_tokens(everywhere, mask.keep), mask.keep)
    torch.testing.assert_close(whole, decoder.sequence(visible, tokens, mask))
    whole.square().sum().backward()
    assert torch.equal((everywhere.grad != 0).any(-1), ~mask.hidden)


def every_token(decoder, x, attention_mask):
    """The plain computation: all blocks applied to all tokens."""
    for block in decoder.blocks:
        x = block(x, None, attention_mask)
    return decoder.norm(x)


@pytest.mark.parametrize("batch", [1, 3], ids=["one mask for all samples", "one each"])
def test_returns_what_all_blocks_over_all_tokens_make_of_the_hidden_ones_in_sequence_order(decoder, batch):
    """Outputs and gradients."""
    tokens, mask = masked_tokens()
    features = Features(torch.randn(3, 6, ENCODER_DIM), mask.keep)
    attention_mask = torch.rand(batch, LENGTH, LENGTH) < 0.5
    attention_mask |= torch.eye(LENGTH, dtype=torch.bool)
    x = decoder.sequence(features, tokens, mask)
    hidden = decoder(features, tokens, mask, REGIONS, attention_mask)
    assert hidden.shape == (3, 4, WIDTH)
    whole = every_token(decoder, x, attention_mask)
    expected = torch.stack([whole[b, mask.hidden[b]] for b in range(3)])
    torch.testing.assert_close(hidden, expected)
    cotangent = torch.randn_like(hidden)
    parameters = dict(decoder.named_parameters())
    gradients = (torch.autograd.grad(y, parameters.values(), cotangent) for y in (hidden, expected))
    for name, actual, expected_gradient in zip(parameters, *gradients, strict=True):
        torch.testing.assert_close(actual, expected_gradient, msg=lambda m, n=name: n + m)


def test_hidden_tokens_differ_by_their_position_alone(decoder):
    """Without positions all mask tokens are the same query."""
    tokens, mask = masked_tokens()
    features = Features(torch.randn(3, 6, ENCODER_DIM), mask.keep)
    attention_mask = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool)
    assert decoder(features, tokens, mask, REGIONS, attention_mask).std(dim=1).min() > 0
    unplaced = replace(tokens, position=torch.zeros_like(tokens.position))
    decoded = decoder(features, unplaced, mask, REGIONS, attention_mask)
    torch.testing.assert_close(decoded, decoded[:, :1].expand_as(decoded))


def test_output_is_normalised_and_the_mask_token_is_not_decayed(decoder):
    query = torch.arange(LENGTH).expand(2, LENGTH)
    attention_mask = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool)
    decoded = decoder.decode(torch.randn(2, LENGTH, WIDTH), attention_mask, query)
    torch.testing.assert_close(decoded.mean(-1), torch.zeros(2, LENGTH), rtol=0, atol=1e-5)
    assert undecayed_parameters(decoder) == {"mask_token"}


def test_bf16_autocast_is_close(decoder):
    tokens, mask = masked_tokens()
    features = Features(torch.randn(3, 6, ENCODER_DIM), mask.keep)
    attention_mask = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool)
    full = decoder(features, tokens, mask, REGIONS, attention_mask)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = decoder(features, tokens, mask, REGIONS, attention_mask)
    assert (narrow.float() - full).norm() / full.norm() < 0.02


def test_the_residual_stream_is_float32_under_autocast(decoder):
    tokens, mask = masked_tokens()
    features = Features(torch.randn(3, 6, ENCODER_DIM), mask.keep)
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder.sequence(features, tokens, mask).dtype == torch.float32


def test_the_shape_of_the_authors_code():
    decoder = RegionDecoder(768, LinearPosition(192))
    assert len(decoder.blocks) == 4
    assert {block.attn.num_heads for block in decoder.blocks} == {16}
    assert decoder.embed.weight.shape == (192, 768)
    assert decoder.blocks[0].mlp.fc1.weight.shape == (4 * 192, 192)


def test_global_tokens_learn_positions_of_their_own():
    """The others keep theirs, global tokens are read by all, and gradients reach their positions."""
    tokens = toy_tokens(grid=(3, 2), batch=2, num_global=2)
    position = make_position("learned", 8, grid=(3, 2))
    decoder = RegionDecoder(16, position, embed_dim=8, depth=1, num_heads=2, num_global=2)
    nn.init.normal_(decoder.global_position)
    mask = sample_mask(tokens, 0.5)
    features = Features(torch.randn(2, 5, 16), mask.keep)
    x = decoder.sequence(features, tokens, mask)
    front = decoder.embed(features.embedding[:, :2]) + decoder.global_position
    assert torch.equal(x[:, :2], front)
    places = position(tokens.position[:, 2:], (3, 2)).expand(2, -1, -1)
    hidden = mask.hidden[:, 2:]
    assert torch.equal(x[:, 2:][hidden], (decoder.mask_token + places)[hidden])
    region = torch.tensor([[-1, -1, 0, 0, 1, 1, 2, 2]])
    decoder.decode(x, region_attention_mask(region, "map"), mask.drop).square().sum().backward()
    assert (decoder.global_position.grad.abs().sum(1) > 0).all()
    assert "global_position" in undecayed_parameters(decoder)


def test_positions_are_added_before_every_block_where_asked_for():
    decoder = RegionDecoder(
        ENCODER_DIM, LinearPosition(WIDTH), embed_dim=WIDTH, depth=3, num_heads=2, repeat_position=True
    )
    tokens, mask = masked_tokens()
    features = Features(torch.randn(3, 6, ENCODER_DIM), mask.keep)
    x, position = decoder.sequence(features, tokens, mask), decoder.position(tokens.position)
    for i, block in enumerate(decoder.blocks):
        x = block(x if i == 0 else x + position)
    expected = torch.stack([decoder.norm(x)[b, mask.hidden[b]] for b in range(3)])
    all_pairs = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(decoder(features, tokens, mask, REGIONS, all_pairs), expected)


@pytest.mark.parametrize(
    "make", [RegionDecoder, NextRegionDecoder, partial(MambaRegionDecoder, attention="map")]
)
def test_a_decoder_without_blocks_is_refused(make):
    with pytest.raises(UserError, match="depth of a decoder must be at least 1; got 0"):
        make(ENCODER_DIM, LinearPosition(WIDTH), embed_dim=WIDTH, depth=0)
