"""Recipes that build on others say what they said before, when each was written in full."""

import dataclasses
import json
from pathlib import Path

import pytest

from map_core.commands.forms import choose_forms
from map_core.commands.parser import load_recipe
from map_core.commands.recipes import Layer, recipe_names
from map_core.commands.settings import fill, merge, to_plain
from map_core.commands.standard import configs
from map_points.domain import DOMAIN as POINTS
from map_points.fewshot import FewShotConfig
from map_points.segmentation.task import SegmentConfig
from map_vision.domain import DOMAIN as IMAGES

IN_FULL = json.loads(Path(__file__).with_name("recipes_in_full.json").read_text())
CONFIGS = {
    "pretrain": lambda domain: configs(domain).pretrain,
    "finetune": lambda domain: configs(domain).finetune,
    "linear": lambda domain: configs(domain).finetune,
    "fewshot": lambda domain: FewShotConfig,
    "segment": lambda domain: SegmentConfig,
}


def test_every_recipe_is_written_in_full() -> None:
    assert list(IN_FULL) == sorted({*recipe_names(IMAGES.recipes), *recipe_names(POINTS.recipes)})


@pytest.mark.parametrize("name", IN_FULL)
def test_what_a_recipe_resolves_to(name: str) -> None:
    """The file holds each recipe in full, as of version 0.1 or as it was changed on purpose; the rest is default."""
    domain = IMAGES if name in recipe_names(IMAGES.recipes) else POINTS
    config_class = CONFIGS[name.partition("_")[0]](domain)
    form, _ = choose_forms(config_class, [Layer("in full", IN_FULL[name])], Layer("", {}))
    expected = merge(fill(form, {}), IN_FULL[name] | {"out": f"runs/{name}"})
    resolved = load_recipe(domain.recipes, name, config_class)
    assert to_plain(dataclasses.asdict(resolved)) == to_plain(expected)
