"""For every packaged study, the commands accept the settings of each arm, and its models can be built."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import map_points.domain
import map_vision.domain
from map_core.commands.parser import load_recipe
from map_core.commands.recipes import find_recipe, recipe_names
from map_core.commands.standard import configs
from map_core.errors import UserError
from map_core.study.definition import Study, read_study
from map_core.study.location import as_option
from map_core.study.measures import added_measures, load_measure
from map_core.study.plan import PlannedRun, planned_runs
from map_core.study.preconditions import refuse_impossible_runs
from map_core.tasks.domain import Domain

DOMAINS = (map_vision.domain.DOMAIN, map_points.domain.DOMAIN)
SIZES = {  # largest over smallest number of parameters, in studies that call their classifiers equal
    "cifar10_encoders": 1.05,
    "cifar10_table1": 1.05,
}
SHORT = {"segment": {"model.data_preprocessor.size": [64, 64]}}  # settings with which counting a step is fast


def studies() -> Iterator[tuple[Domain, str]]:
    for domain in DOMAINS:
        for name in recipe_names(f"{domain.module}.studies"):
            yield domain, name


def packaged_study(domain: Domain, name: str) -> Study:
    package = f"{domain.module}.studies"
    with find_recipe(package, name) as path:
        return read_study(path, package)


def first_runs(domain: Domain, name: str) -> list[PlannedRun]:
    """Each arm's runs at the first seed, as far as they can be planned without results."""
    study = packaged_study(domain, name)
    assert study.name == name
    return [run for run in planned_runs(study, []) if run.seed == study.seeds[0]]


@pytest.mark.parametrize(
    ("domain", "name"), list(studies()), ids=lambda value: getattr(value, "module", value)
)
def test_every_arm_can_be_built(domain: Domain, name: str) -> None:
    sizes = {}
    for run in first_runs(domain, name):
        if run.command == "features":
            continue
        if run.stage in added_measures():
            settings = {key: value for key, value in run.settings.items() if key != "init"}
            assert load_measure(run.stage).cost(settings | SHORT[run.stage]).flops > 0
            continue
        kind = configs(domain).pretrain if run.command == "pretrain" else configs(domain).finetune
        settings = {key: value for key, value in run.settings.items() if key != "recipe"}
        options = [as_option(key, value) for key, value in settings.items()]
        config = load_recipe(domain.recipes, run.settings["recipe"], kind, options)
        if run.command == "pretrain":
            backbone = domain.models.create_backbone(config.model)
            objective = domain.build_objective(backbone, config.objective)
            assert objective.backbone is backbone
        else:
            classifier = domain.models.create_classifier(config.model, 10)
            sizes[run.arm] = sum(p.numel() for p in classifier.parameters())
    assert max(sizes.values(), default=0) <= SIZES.get(name, 10.0) * min(sizes.values(), default=0)


@pytest.mark.parametrize(
    ("domain", "name"), list(studies()), ids=lambda value: getattr(value, "module", value)
)
def test_no_run_is_taken_for_impossible(tmp_path: Path, domain: Domain, name: str) -> None:
    refuse_impossible_runs(packaged_study(domain, name), domain, tmp_path / "none", [])


@pytest.mark.parametrize(
    ("domain", "name"),
    list(zip(DOMAINS, ("digits_labels", "modelnet40_pretraining"), strict=True)),
    ids=("images", "clouds"),
)
def test_a_model_that_its_pretraining_would_not_fit_is_refused(
    tmp_path: Path, domain: Domain, name: str
) -> None:
    study = packaged_study(domain, name)
    arm = next(arm for arm in study.arms if arm.pretrain is not None)
    deeper = replace(arm, stages={**arm.stages, "finetune": {"model.layout": "Mx20"}})
    with pytest.raises(
        UserError, match=rf"study {name}, finetune: the pretraining of its arm does not fit .*missing: enc"
    ):
        refuse_impossible_runs(replace(study, arms=(deeper,)), domain, tmp_path / "none", [])


def test_null_in_a_study_is_no_text_and_leaves_the_rest_of_its_section() -> None:
    domain, recipe = map_vision.domain.DOMAIN, "finetune_vit_base_in1k"
    kind = configs(domain).finetune
    before = load_recipe(domain.recipes, recipe, kind, [])
    assert isinstance(before.data.auto_augment, str)
    overrides = {"data.augmentation": "crop_flip", "data.auto_augment": None}
    config = load_recipe(domain.recipes, recipe, kind, [as_option(*item) for item in overrides.items()])
    assert config.data == replace(before.data, augmentation="crop_flip", auto_augment=None)
