"""The hybrid encoder: layouts, reading of masked sequences, registers, depth and precision."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from map_core import Features, Registers, TokenMask, UserError, expand_layout, sample_mask
from map_core.blocks import MambaBlock
from map_core.encoder import Backbone
from map_core.testing import GridBackbone, LinearPosition, toy_encoder, toy_tokens
from map_core.tokens import gather_tokens, with_global_tokens

WIDTH = 16


def make_tokens(batch=3, length=12):
    return toy_tokens(length, batch=batch, embed_dim=WIDTH)


# ---- layouts


@pytest.mark.parametrize(
    ("layout", "letters"),
    [
        ("Tx32", "TTTTTTTTTTTTTTTTTTTTTTTTTTTTTTTT"),
        ("Mx32", "MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMM"),
        ("Mx24,Tx8", "MMMMMMMMMMMMMMMMMMMMMMMMTTTTTTTT"),
        ("Tx8,Mx24", "TTTTTTTTMMMMMMMMMMMMMMMMMMMMMMMM"),
        ("(TMMM)x8", "TMMMTMMMTMMMTMMMTMMMTMMMTMMMTMMM"),
        ("(MMMT)x8", "MMMTMMMTMMMTMMMTMMMTMMMTMMMTMMMT"),
    ],
)
def test_layouts_of_the_papers_table_4(layout, letters):
    assert len(letters) == 32
    assert expand_layout(layout) == letters


@pytest.mark.parametrize(
    ("layout", "letters"),
    [("T", "T"), ("MMMT", "MMMT"), ("(MT)", "MT"), ("Mx2, (PT)x2", "MMPTPT"), ("(MMMT)x16", "MMMT" * 16)],
)
def test_other_layouts(layout, letters):
    assert expand_layout(layout) == letters


@pytest.mark.parametrize(
    ("layout", "part"),
    [
        ("", "''"),
        ("MMMTx2", "'MMMTx2'"),  # of four letters or of the last one?
        ("Mx2,(MMT", r"'\(MMT'"),
        ("Mx0", "'Mx0'"),
        ("mx3", "'mx3'"),
        ("Mx2,", "''"),
        ("M-T", "'M-T'"),
        ("(M)x2x3", r"'\(M\)x2x3'"),
        ("((M)x2)x2", r"'\(\(M\)x2\)x2'"),
    ],
)
def test_a_layout_that_does_not_parse_says_where(layout, part):
    with pytest.raises(UserError, match=rf"does not parse at {part}; write letters with counts"):
        expand_layout(layout)


def test_a_letter_without_a_maker_is_refused():
    with pytest.raises(UserError, match=r"layout 'MTQ' uses Q; known layers: M, T"):
        toy_encoder(layout="MTQ")


# ---- what is read


def test_hidden_tokens_are_never_read():
    """Encoding under a mask equals encoding the visible tokens alone, at their own positions."""
    encoder, tokens = toy_encoder(WIDTH, "MTM"), make_tokens()
    mask = sample_mask(tokens, 0.4)
    alone = replace(
        tokens,
        embedding=gather_tokens(tokens.embedding, mask.keep),
        position=gather_tokens(tokens.position, mask.keep),
    )
    masked = encoder.encode(tokens, mask)
    assert torch.equal(masked.index, mask.keep)
    torch.testing.assert_close(masked.embedding, encoder.encode(alone).embedding)


def test_gradient_reaches_exactly_the_visible_tokens():
    tokens = make_tokens()
    tokens = replace(tokens, embedding=tokens.embedding.requires_grad_())
    mask = sample_mask(tokens, 0.4)
    toy_encoder(WIDTH, "MT").encode(tokens, mask).embedding.square().sum().backward()
    assert torch.equal((tokens.embedding.grad != 0).any(-1), ~mask.hidden)


@pytest.mark.parametrize("moved", ["hidden", "visible"])
def test_positions_of_each_token_travel_with_it(moved):
    """Moving hidden tokens elsewhere changes nothing; moving visible ones does."""
    encoder, tokens = toy_encoder(WIDTH), make_tokens()
    mask = sample_mask(tokens, 0.4)
    before = encoder.encode(tokens, mask).embedding
    place = mask.hidden if moved == "hidden" else ~mask.hidden
    elsewhere = replace(tokens, position=tokens.position.expand(3, -1, -1) + 5 * place.unsqueeze(-1))
    assert torch.equal(encoder.encode(elsewhere, mask).embedding, before) is (moved == "hidden")


def test_without_a_mask_everything_is_read_in_order():
    features = toy_encoder(WIDTH).encode(make_tokens())
    assert features.index.tolist() == [list(range(12))]
    assert features.embedding.shape == (3, 12, WIDTH)


def test_a_domains_own_blocks_get_the_coordinates_of_what_they_read():
    calls = []

    class Neighbours(nn.Module):
        def __init__(self, dim, drop_path):
            super().__init__()
            self.built = (dim, drop_path)

        def forward(self, x, position):
            calls.append((x.shape, position))
            return x + 1

    encoder = toy_encoder(
        WIDTH, "PPP", block_makers={"P": Neighbours}, drop_path_rate=0.2, registers=Registers(2, WIDTH)
    )
    tokens = make_tokens()
    mask = sample_mask(tokens, 0.5)
    layers = list(encoder.layer_outputs(tokens, mask))
    assert [block.built for block in encoder.blocks] == [(WIDTH, 0.0), (WIDTH, 0.1), (WIDTH, 0.2)]
    for shape, position in calls:
        assert shape == (3, 6 + 2, WIDTH)
        assert torch.equal(position, gather_tokens(tokens.position, mask.keep))
    torch.testing.assert_close(
        layers[2].patches.embedding - layers[0].patches.embedding, torch.full((3, 6, 16), 2.0)
    )


# ---- every layer's features


@pytest.mark.parametrize("num_registers", [0, 3])
def test_the_last_intermediate_normalised_is_the_encoding(num_registers):
    registers = Registers(num_registers, WIDTH) if num_registers else None
    encoder, tokens = toy_encoder(WIDTH, "MTM", registers=registers), make_tokens()
    layers = list(encoder.layer_outputs(tokens))
    assert len(layers) == 3
    assert torch.equal(encoder.normalize(layers[-1]).patches.embedding, encoder.encode(tokens).embedding)
    assert not torch.equal(layers[-1].patches.embedding, encoder.encode(tokens).embedding)
    if num_registers:
        last = encoder.normalize(encoder.last_layer(tokens)).registers
        assert last.shape == (3, 3, WIDTH)
        assert torch.equal(last, encoder.norm(layers[-1].registers))
    else:
        assert layers[-1].registers is None


def test_intermediates_stop_where_asked():
    encoder, tokens = toy_encoder(WIDTH, "MTM"), make_tokens()
    calls = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    next(encoder.layer_outputs(tokens))
    assert len(calls) == 1


# ---- registers


def test_twelve_registers_stand_behind_every_fifteen_of_196_patches():
    assert Registers(12, 2).places(196) == [15 + 16 * i for i in range(12)]


@pytest.mark.parametrize(("length", "count"), [(196, 12), (576, 12), (196, 16), (5, 5), (3, 5), (64, 1)])
@pytest.mark.parametrize("spread", [True, False])
def test_registers_are_inserted_at_their_places_and_split_off_again(length, count, spread):
    registers = Registers(count, 4, spread=spread)
    x = torch.randn(2, length, 4)
    sequence = registers.insert(x)
    places = registers.places(length)
    assert len(set(places)) == count
    assert torch.equal(sequence[:, places], (registers.token + registers.position).expand(2, -1, -1))
    others = [i for i in range(length + count) if i not in places]
    assert torch.equal(sequence[:, others], x)
    split, rest = registers.split(sequence)
    assert torch.equal(split, sequence[:, places])
    assert torch.equal(rest, x)


def test_a_class_token_stands_in_front():
    assert Registers(1, 2, spread=False).places(196) == [0]
    assert Registers(3, 2, spread=False).places(196) == [0, 1, 2]


def test_registers_are_spread_through_the_visible_tokens():
    """Under a mask the places follow from the visible tokens, and patches keep their indices."""
    encoder, tokens = toy_encoder(WIDTH, "T", registers=Registers(2, WIDTH)), make_tokens()
    mask = sample_mask(tokens, 0.5)
    features = encoder.last_layer(tokens, mask)
    assert features.patches.embedding.shape == (3, 6, WIDTH)
    assert torch.equal(features.patches.index, mask.keep)
    assert features.registers.shape == (3, 2, WIDTH)


# ---- depth


def test_stochastic_depth_grows_linearly():
    encoder = toy_encoder(WIDTH, "MTMTM", drop_path_rate=0.4)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_one_layer_has_no_stochastic_depth():
    assert isinstance(toy_encoder(WIDTH, "M", drop_path_rate=0.4).blocks[0].drop_path, nn.Identity)


def test_stochastic_depth_drops_whole_branches_in_training_only():
    encoder, tokens = toy_encoder(WIDTH, "TTMM", drop_path_rate=0.9), make_tokens(batch=16)
    plain = toy_encoder(WIDTH, "TTMM")
    plain.load_state_dict(encoder.state_dict())
    training = encoder.encode(tokens).embedding
    assert not torch.allclose(training, plain.encode(tokens).embedding)
    torch.testing.assert_close(encoder.eval().encode(tokens).embedding, plain.eval().encode(tokens).embedding)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_activation_checkpointing_changes_no_number(drop_path_rate):
    encoder, tokens = toy_encoder(WIDTH, "MTMT", drop_path_rate=drop_path_rate), make_tokens()
    calls = []
    encoder.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))

    def run(checkpointing):
        encoder.set_grad_checkpointing(checkpointing)
        encoder.zero_grad()
        torch.manual_seed(1)
        output = encoder.encode(tokens).embedding
        output.square().sum().backward()
        return [output, *(p.grad.clone() for p in encoder.parameters())]

    for with_it, without in zip(run(True), run(False), strict=True):
        assert torch.equal(with_it, without)
    assert len(calls) == 3  # forward and recomputation, then forward alone
    encoder.eval()
    encoder.set_grad_checkpointing()
    assert torch.equal(encoder.encode(tokens).embedding, encoder.encode(tokens).embedding)


def test_blocks_are_recomputed_every_one_or_more():
    with pytest.raises(UserError, match="every must be at least 1, which recomputes every block; got 0"):
        toy_encoder(WIDTH, "M").set_grad_checkpointing(every=0)


@pytest.mark.parametrize("wiring", ["residual", "branch"])
@pytest.mark.parametrize(("every", "again"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])])
def test_every_nth_block_is_computed_again(every, again, wiring):
    encoder, tokens = toy_encoder(WIDTH, "MTMTM", wiring=wiring), make_tokens()
    calls = []
    for i, block in enumerate(encoder.blocks):
        norm = block.norm if isinstance(block, MambaBlock) else block.norm1
        norm.register_forward_pre_hook(lambda *_, i=i: calls.append(i))

    def run(checkpointing):
        encoder.set_grad_checkpointing(checkpointing, every=every)
        encoder.zero_grad()
        output = encoder.encode(tokens).embedding
        forward = list(calls)
        output.square().sum().backward()
        recomputed = sorted(calls[len(forward) :])
        calls.clear()
        return recomputed, [output, *(p.grad.clone() for p in encoder.parameters())]

    (recomputed, with_it), (nothing, without) = run(True), run(False)
    assert (recomputed, nothing) == (again, [])
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


# ---- devices, precision, protocol


def test_builds_on_the_meta_device():
    real = toy_encoder(WIDTH, "MT", registers=Registers(2, WIDTH))
    with torch.device("meta"):
        encoder = toy_encoder(WIDTH, "MT", registers=Registers(2, WIDTH))
    assert {p.device.type for p in encoder.parameters()} == {"meta"}
    assert {k: v.shape for k, v in encoder.state_dict().items()} == {
        k: v.shape for k, v in real.state_dict().items()
    }


def test_bf16_autocast_is_close_and_keeps_float32_gradients():
    encoder, tokens = toy_encoder(WIDTH, "MTM", registers=Registers(2, WIDTH)), make_tokens()
    mask = sample_mask(tokens, 0.25)
    full = encoder.encode(tokens, mask).embedding
    with torch.autocast("cpu", torch.bfloat16):
        narrow = encoder.encode(tokens, mask).embedding
    assert (narrow.float() - full).norm() / full.norm() < 0.02
    narrow.float().square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name


def test_the_residual_stream_is_float32_under_autocast_and_unchanged_without():
    """Under autocast tokens are bf16; 32 layers that add to a bf16 stream lose what they add."""
    encoder, tokens = toy_encoder(WIDTH, "MT", registers=Registers(2, WIDTH)), make_tokens()
    narrow = replace(tokens, embedding=tokens.embedding.bfloat16(), position=tokens.position.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert [x.patches.embedding.dtype for x in encoder.layer_outputs(narrow)] == [torch.float32] * 2
    whole = encoder.bfloat16()
    assert [x.patches.embedding.dtype for x in whole.layer_outputs(narrow)] == [torch.bfloat16] * 2


@pytest.mark.parametrize(
    ("module", "fits"),
    [(GridBackbone(4, toy_encoder()), True), (toy_encoder(), False), (LinearPosition(4), False)],
    ids=["tokenizes and encodes", "encodes only", "neither"],
)
def test_a_backbone_is_what_tokenizes_and_encodes(module, fits):
    assert isinstance(module, Backbone) is fits


def test_calling_an_encoder_encodes():
    encoder, tokens = toy_encoder(WIDTH), make_tokens()
    features = encoder(tokens)
    assert isinstance(features, Features)
    assert torch.equal(features.embedding, encoder.encode(tokens).embedding)


# ---- the position before every block


def plain_stack(encoder, tokens, mask):
    """The position is added to what each block reads, again before each."""
    position = encoder.position(tokens.position, tokens.grid).expand_as(tokens.embedding)
    x, position = gather_tokens(tokens.embedding, mask.keep), gather_tokens(position, mask.keep)
    for block in encoder.blocks:
        x = block(x + position, None)
    return encoder.norm(x)


def test_positions_can_be_added_before_every_block():
    encoder, tokens = toy_encoder(WIDTH, "MTM", repeat_position=True), make_tokens()
    mask = sample_mask(tokens, 0.25)
    torch.testing.assert_close(encoder.encode(tokens, mask).embedding, plain_stack(encoder, tokens, mask))


def test_registers_add_their_positions_before_every_block_too():
    registers = Registers(2, WIDTH, spread=False)
    encoder, tokens = toy_encoder(WIDTH, "TM", repeat_position=True, registers=registers), make_tokens()
    position = encoder.position(tokens.position, tokens.grid).expand(3, -1, -1)
    front = registers.position.expand(3, -1, -1)
    added = torch.cat([front, position], dim=1)
    x = torch.cat([registers.token.expand(3, -1, -1), tokens.embedding], dim=1)
    for block in encoder.blocks:
        x = block(x + added, None)
    torch.testing.assert_close(encoder.encode(tokens).embedding, encoder.norm(x)[:, 2:])


# ---- global tokens and wiring


@pytest.mark.parametrize("masked", [False, True])
def test_registers_in_the_tokens_are_the_registers_put_in_front(masked):
    """A class token that the tokens carry is encoded as one that the encoder puts in front of them."""
    plain = make_tokens()
    registers = Registers(2, WIDTH, spread=False)
    encoder = toy_encoder(WIDTH, "MT", registers=registers).eval()
    tokens = with_global_tokens(plain, registers.token, registers.num_registers)
    mask, whole = None, None
    if masked:
        mask = sample_mask(plain, 0.5)
        front = mask.hidden.new_zeros(3, 2)
        keep_index = torch.cat([torch.arange(2).expand(3, 2), mask.keep + 2], dim=1)
        whole = TokenMask(torch.cat([front, mask.hidden], dim=1), keep_index, mask.drop + 2)
    inserted = encoder.normalize(encoder.last_layer(plain, mask))
    carried = encoder.encode(tokens, whole)
    assert torch.equal(carried.embedding, torch.cat([inserted.registers, inserted.patches.embedding], dim=1))
    assert carried.index.shape[1] == carried.embedding.shape[1]


def test_global_tokens_are_counted_first_in_the_order_before_the_scan():
    plain = replace(
        make_tokens(batch=2, length=4), origin=torch.tensor([[2, 0, 1, 3]]), target=torch.ones(2, 4, 5)
    )
    tokens = with_global_tokens(plain, torch.full((2, WIDTH), 7.0), 2)
    assert tokens.origin.tolist() == [[0, 1, 4, 2, 3, 5]]
    assert (tokens.num_global, tokens.num_maskable) == (2, 4)
    assert torch.equal(tokens.embedding[:, 2:], plain.embedding)
    assert (tokens.embedding[:, :2] == 7).all()
    assert (tokens.position[:, :2] == -1).all()
    assert (tokens.target[:, :2] == 0).all()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_wired_by_branches_a_transformer_block_reads_what_was_added_last(checkpointing):
    encoder = toy_encoder(WIDTH, "MMTTM", wiring="branch").train()
    encoder.set_grad_checkpointing(checkpointing)
    tokens = make_tokens()
    x = tokens.embedding + encoder.position(tokens.position, None)
    stream, hidden = 0, x
    for letter, block in zip("MMTTM", encoder.blocks, strict=True):
        if letter == "M":
            stream = stream + hidden
            hidden = block.mixer(block.norm(stream))
        else:
            hidden = block(hidden) + hidden
    torch.testing.assert_close(encoder(tokens).embedding, encoder.norm(stream + hidden), rtol=1e-5, atol=1e-5)


def test_without_transformer_blocks_both_wirings_are_one():
    encoder, tokens = toy_encoder(WIDTH, "MM").eval(), make_tokens()
    expected = encoder(tokens).embedding
    encoder.wiring = "branch"
    assert torch.equal(encoder(tokens).embedding, expected)


@pytest.mark.parametrize(
    ("wiring", "layout", "message"),
    [
        ("branch", "TM", "wiring 'branch' needs a layout of M and T that begins with M, .*; got 'TM'"),
        ("branch", "MF", "needs a layout of M and T .*; got 'MF'"),
    ],
)
def test_a_layout_that_does_not_suit_the_wiring_is_refused(wiring, layout, message):
    with pytest.raises(UserError, match=message):
        toy_encoder(WIDTH, layout, wiring=wiring)
