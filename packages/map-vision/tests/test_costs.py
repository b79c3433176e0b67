"""Parameters, multiply-adds and tokens of ``info --flops`` against arithmetic and published numbers."""

from functools import partial

import pytest
import torch

from map_core.commands.costs import costs_of, describe_costs
from map_core.commands.program import main
from map_vision.cli import COMMANDS
from map_vision.domain import DOMAIN
from map_vision.factory import ModelConfig, create_backbone, create_model, input_size


def costs(name, *, classify=True, **changes):
    config = ModelConfig(name, **changes)
    create = partial(create_model, config, 1000) if classify else partial(create_backbone, config)
    counts = costs_of(create, torch.zeros(1, *input_size(config)), classify=classify)
    return counts.tokens, counts.multiply_adds


def test_a_vit_takes_what_its_shapes_say():
    tokens, counts = costs("map_vit_small_patch16_224")
    d, length, patches, depth = 384, 197, 196, 12
    assert tokens == length
    assert counts == {
        "linear layers": depth * length * 12 * d * d + d * 1000,
        "attention": depth * 2 * length * length * d,
        "convolutions": patches * 16 * 16 * 3 * d,
    }


@pytest.mark.parametrize(("classify", "tokens"), [(True, 208), (False, 196)])
def test_a_hybrid_scans_both_ways_registers_included(classify, tokens):
    length, counts = costs("hybridnet_tiny_patch16_224", classify=classify)
    layers, directions, inner, state = 24, 2, 2 * 192, 16
    assert length == tokens
    assert counts["scans"] == layers * directions * tokens * inner * (7 * state + 3) // 2
    assert counts["attention"] == 8 * 2 * tokens * tokens * 192


@pytest.mark.parametrize(
    ("name", "published"),
    [("map_vit_base_patch16_224", 17.6), ("map_mambavision_tiny", 4.4), ("map_mambavision_small", 7.5)],
)
def test_others_publish_the_same_within_a_few_percent(name, published):
    """From the papers of DeiT and MambaVision; counters of that time left out attention's products and the scan."""
    assert costs(name)[1].total() / 1e9 == pytest.approx(published, rel=0.05)


def test_more_pixels_are_more_tokens_and_more_work():
    tokens, counts = costs("hybridnet_tiny_patch16_224", img_size=384)
    assert tokens == 24 * 24 + 12
    assert counts["scans"] / costs("hybridnet_tiny_patch16_224")[1]["scans"] == pytest.approx(588 / 208)


def test_info_prints_what_was_counted(capsys):
    arguments = ["info", "--flops", "--model.name", "hybridnet_tiny_patch16_224"]
    assert main("map-vision", COMMANDS, DOMAIN.recipes, arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    _, counts = costs("hybridnet_tiny_patch16_224")
    assert printed[0] == "hybridnet_tiny_patch16_224, one image of 3 x 224 x 224"
    row = f"classifier of 1000 11,640,424 {counts.total() / 1e9:.3f} G 208"
    assert row in [" ".join(line.split()) for line in printed]
    assert f"scans {counts['scans'] / 1e9:.3f} G" in [" ".join(line.split()) for line in printed]


def test_a_model_as_a_study_changes_it_is_described():
    described = describe_costs(DOMAIN, ModelConfig("hybridnet_tiny_patch16_224", layout="Mx2", img_size=32))
    assert "attention" not in described
    assert "one image of 3 x 32 x 32" in described
