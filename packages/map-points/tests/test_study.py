"""Studies of clouds: what a run costs is counted on the model that its command builds."""

from pathlib import Path

import pytest
import yaml

from map_core.errors import UserError
from map_core.study.cost import configuration
from map_core.study.definition import read_study
from map_core.study.plan import PlannedRun
from map_core.study.preconditions import check_preconditions
from map_core.tasks.weights import save_weights
from map_points.domain import DOMAIN
from map_points.factory import MODELS, PointModelConfig

SMALL = {"embed_dim": 48, "layout": "MT", "num_heads": 2, "num_patches": 8, "patch_size": 8}


def test_a_run_has_the_model_of_the_pretraining_that_it_follows(tmp_path: Path) -> None:
    pretrain = {"recipe": "pretrain_shapes", **{f"model.{key}": value for key, value in SMALL.items()}}
    settings = {"recipe": "finetune_shapes"}
    run = PlannedRun(
        "key", "map", 0, None, "finetune", "finetune", settings, "map/pretrain", pretrain=pretrain
    )
    model = configuration(DOMAIN, run, tmp_path / "none").model
    assert (model.embed_dim, model.layout, model.num_heads) == (48, "MT", 2)  # which its weights have
    assert (model.num_patches, model.drop_path_rate) == (32, 0.1)  # the recipe's


def test_a_run_has_the_model_of_the_weights_that_it_starts_from(tmp_path: Path) -> None:
    config = PointModelConfig("hybridnet3d", **SMALL)
    description = MODELS.describe(config, task="pretrain", holds="encoder", weights="raw")
    save_weights(tmp_path / "model.safetensors", MODELS.create_backbone(config).state_dict(), description)
    settings = {"recipe": "finetune_shapes", "init": str(tmp_path)}
    run = PlannedRun("key", "map", 0, None, "finetune", "finetune", settings)
    model = configuration(DOMAIN, run, tmp_path / "none").model
    assert (model.embed_dim, model.layout, model.num_heads) == (48, "MT", 2)


def test_arms_are_finetuned_on_clouds_of_as_many_points(tmp_path: Path) -> None:
    """Weights bring the number of points of their training; a run from scratch has its recipe's."""
    small = {f"model.{key}": value for key, value in SMALL.items()}
    values = {
        "name": "points",
        "pretrain": {"recipe": "pretrain_shapes", "data.num_points": 512, **small},
        "arms": {"map": {"pretrain": {}}, "scratch": {}},
        "finetune": {"recipe": "finetune_shapes"},
        "measures": ["finetune"],
        "seeds": [0],
    }
    file = tmp_path / "points.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    message = "arms map and scratch of study points differ in data.num_points .*512 and 1024.*: set data.num_points in"
    with pytest.raises(UserError, match=message):
        check_preconditions(read_study(file, "map_points.studies"), DOMAIN, tmp_path / "none", [])
    values["finetune"] = {"recipe": "finetune_shapes", "data.num_points": 512}
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    check_preconditions(read_study(file, "map_points.studies"), DOMAIN, tmp_path / "none", [])
