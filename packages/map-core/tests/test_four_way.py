"""Four scans, along rows and columns both ways, with registers in their places."""

import pytest
import torch

from map_core.blocks import FourWayBlock
from map_core.blocks.four_way import FourWayMixer, column_order
from map_core.ops import selective_scan
from map_core.registers import spread_places


def raster(rows, cols):
    index = torch.arange(rows * cols)
    return torch.stack([index // cols, index % cols], dim=-1).float()[None]


@pytest.mark.parametrize(("rows", "cols", "registers"), [(2, 3, 0), (4, 4, 1), (3, 5, 1), (4, 6, 3)])
def test_columns_are_read_one_after_the_other_and_registers_stay(rows, cols, registers):
    length = rows * cols + registers
    order = column_order(raster(rows, cols), length)[0].tolist()
    assert sorted(order) == list(range(length))
    places = spread_places(registers, rows * cols)
    assert [order[place] for place in places] == places
    sequence = [i for i in range(length) if i not in places]  # of the patches, row by row
    patches = [sequence.index(i) for i in order if i not in places]
    assert patches == [row * cols + col for col in range(cols) for row in range(rows)]


def test_visible_tokens_alone_are_read_by_their_columns():
    position = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    assert column_order(position, 3).tolist() == [[1, 0, 2], [0, 2, 1]]


def test_few_visible_tokens_of_a_tall_grid_are_read_by_their_columns():
    cells = [
        [0, 1],
        [2, 0],
        [3, 1],
        [9, 0],
        [11, 1],
        [14, 0],
        [15, 0],
        [15, 1],
    ]  # of 16 rows, more than tokens
    order = column_order(torch.tensor([cells]).float(), 8)[0].tolist()
    assert [cells[index] for index in order] == sorted(cells, key=lambda cell: (cell[1], cell[0]))


def test_tokens_in_any_order_are_read_by_their_columns():
    cells = raster(5, 4)[:, torch.randperm(20)]
    order = column_order(cells, 20)[0]
    assert torch.equal(cells[0, order], raster(4, 5)[0].flip(-1))


def test_the_mixer_is_the_mean_of_four_scans():
    torch.manual_seed(0)
    mixer, x = FourWayMixer(16).double(), torch.randn(2, 6, 16, dtype=torch.float64)
    by_column = column_order(raster(2, 3), 6)
    u, z = mixer.in_proj(x).chunk(2, dim=-1)
    total = 0
    for scan, order in (
        (mixer.row_forward, torch.arange(6)),
        (mixer.row_backward, torch.arange(6).flip(0)),
        (mixer.column_forward, by_column[0]),
        (mixer.column_backward, by_column[0].flip(0)),
    ):
        reverse, scan.reverse = scan.reverse, False  # the order already reverses the backward scans
        total = (
            total
            + selective_scan(**vars(scan(u[:, order].contiguous(), "reference")), backend="reference")[
                :, order.argsort()
            ]
        )
        scan.reverse = reverse
    expected = mixer.out_proj(total / 4 * torch.nn.functional.silu(z))
    torch.testing.assert_close(mixer(x, by_column), expected, rtol=1e-5, atol=1e-6)


def test_every_token_reads_every_other_and_every_parameter_learns():
    torch.manual_seed(0)
    block = FourWayBlock(16)
    x = torch.randn(1, 5, 16, requires_grad=True)
    out = block(x, raster(2, 2))  # one register among four patches
    for place in range(5):
        (grad,) = torch.autograd.grad(out[0, place].sum(), x, retain_graph=True)
        assert (grad.abs().sum(-1) > 0).all()
    out.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in block.parameters())
