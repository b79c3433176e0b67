"""Parameters, multiply-adds and tokens of ``info --flops``, against arithmetic and what others published."""

from functools import partial

import pytest

from map_core.commands.costs import costs_of
from map_core.commands.program import main
from map_points.cli import COMMANDS
from map_points.domain import DOMAIN
from map_points.factory import PointModelConfig, create_classifier


def costs(name, num_patches):
    config = PointModelConfig(name, num_patches=num_patches)
    result = costs_of(partial(create_classifier, config, 40), DOMAIN.example(config), classify=True)
    return result.tokens, result.multiply_adds


def joined_once(num_patches, patch_size=32, hidden=256, width=512):
    """What is saved by multiplying a patch's maximum once, where the original does so beside each of its points."""
    return num_patches * (patch_size - 1) * hidden * width


@pytest.mark.parametrize(("num_patches", "published"), [(64, 2.4), (128, 4.8)])
def test_point_mae_takes_what_was_published_but_for_the_product_that_is_shared(num_patches, published):
    tokens, counts = costs("point_mae", num_patches)
    assert tokens == num_patches + 1
    assert (counts.total() + joined_once(num_patches)) / 1e9 == pytest.approx(published, rel=0.03)


def test_the_hybrid_adds_four_attentions_to_mamba3d():
    (_, mamba), (tokens, hybrid) = costs("mamba3d", 128), costs("hybridnet3d", 128)
    assert hybrid["attention"] == 4 * 2 * tokens * tokens * 384
    assert hybrid["scans"] == mamba["scans"] == 12 * 2 * tokens * 768 * (7 * 16 + 3) // 2
    assert hybrid["linear layers"] - mamba["linear layers"] == 4 * tokens * 4 * 384 * 384


def test_info_prints_what_was_counted(capsys):
    arguments = ["info", "--model.num_patches", "128", "--flops"]
    assert main("map-points", COMMANDS, DOMAIN.recipes, arguments) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    _, counts = costs("hybridnet3d", 128)
    assert lines[0] == "hybridnet3d, one cloud of 1024 x 3"
    assert f"classifier of 40 19,298,088 {counts.total() / 1e9:.3f} G 129" in lines
