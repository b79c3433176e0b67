"""Studies of clouds: what a run costs is counted on the model that its command builds."""

from pathlib import Path

from map_core.study.cost import configuration
from map_core.study.plan import PlannedRun
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
