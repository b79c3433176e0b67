"""Recipes that build on others resolve to the same settings as when each was written in full."""

import dataclasses
import json
from pathlib import Path

import pytest

from map_core.commands.forms import choose_forms
from map_core.commands.parser import load_recipe
from map_core.commands.recipes import Layer, recipe_names
from map_core.commands.settings import fill, merge, yaml_values
from map_core.commands.standard import configs
from map_points.domain import DOMAIN as POINTS
from map_points.fewshot import FewShotConfig
from map_points.segmentation.task import SegmentConfig
from map_vision.domain import DOMAIN as IMAGES

FULL_RECIPES = json.loads(Path(__file__).with_name("recipes_in_full.json").read_text())
CONFIGS = {
    "pretrain": lambda domain: configs(domain).pretrain,
    "finetune": lambda domain: configs(domain).finetune,
    "linear": lambda domain: configs(domain).finetune,
    "fewshot": lambda domain: FewShotConfig,
    "segment": lambda domain: SegmentConfig,
}


def test_every_recipe_is_written_in_full() -> None:
    assert list(FULL_RECIPES) == sorted({*recipe_names(IMAGES.recipes), *recipe_names(POINTS.recipes)})


@pytest.mark.parametrize("name", FULL_RECIPES)
def test_what_a_recipe_resolves_to(name: str) -> None:
    """The file has each recipe in full, as of version 0.1 or as changed on purpose since; the rest is default."""
    domain = IMAGES if name in recipe_names(IMAGES.recipes) else POINTS
    config_class = CONFIGS[name.partition("_")[0]](domain)
    form, _ = choose_forms(config_class, [Layer("in full", FULL_RECIPES[name])], Layer("", {}))
    expected = merge(fill(form, {}), FULL_RECIPES[name] | {"out": f"runs/{name}"})
    resolved = load_recipe(domain.recipes, name, config_class)
    assert yaml_values(dataclasses.asdict(resolved)) == yaml_values(expected)
