"""The objective over clouds: what it predicts, what may flow into a prediction, and what a run leaves."""

from dataclasses import replace

import pytest
import torch

from map_core import Draw
from map_core.commands.parser import load_recipe
from map_core.commands.standard import configs
from map_core.errors import UserError
from map_core.tasks.domain import OpenedData
from map_core.tasks.pretraining import PretrainTask, load_objective
from map_core.tasks.weights import read_description, read_weights
from map_core.testing import decoder_dependencies
from map_core.training import train
from map_points.domain import DOMAIN
from map_points.factory import create_backbone, create_classifier
from map_points.losses import chamfer_distance, masked_distance, transport_distance
from map_points.model import create_point_model
from map_points.pretraining import PointContrastiveConfig, PointSimMIMConfig, build_objective


@pytest.fixture
def make(tiny_model, tiny_objective):
    """Builds a tiny objective with changes to its settings."""

    def build(**changes):
        torch.manual_seed(0)
        return build_objective(create_backbone(tiny_model), replace(tiny_objective, **changes)).eval()

    return build


def test_each_hidden_patch_is_predicted_once(make):
    result = make()(torch.randn(3, 64, 3), Draw.of_batch(3))
    assert result.mask.hidden.sum(1).tolist() == [8, 8, 8]
    assert result.prediction.shape == (3, 8, 12)
    assert result.tokens.target.shape == (3, 16, 4, 3)
    for drop, hidden in zip(result.mask.drop, result.mask.hidden, strict=True):
        assert drop.tolist() == hidden.nonzero().flatten().tolist()
    target = torch.stack([t[d] for t, d in zip(result.tokens.target, result.mask.drop, strict=True)])
    torch.testing.assert_close(result.loss, masked_distance(result.prediction, target))


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_loss_is_of_the_kind_asked_for(make, kind):
    result = make(chamfer=kind)(torch.randn(2, 64, 3), Draw.of_batch(2))
    target = torch.stack([t[d] for t, d in zip(result.tokens.target, result.mask.drop, strict=True)])
    torch.testing.assert_close(result.loss, masked_distance(result.prediction, target, kind=kind))


SETTINGS = [
    {},
    {"regions": "after_mask"},
    {"region_order": "hilbert"},
    {"region_order": "random", "num_regions": 5},
]


@pytest.mark.parametrize(
    "changes", SETTINGS, ids=lambda changes: "-".join(map(str, changes.values())) or "scan"
)
def test_predictions_see_their_region_and_the_ones_before_it(make, changes):
    dependencies = decoder_dependencies(make(**changes), torch.randn(1, 64, 3), Draw.of_batch(1))
    expected = dependencies.region.unsqueeze(1) <= dependencies.hidden_region.unsqueeze(2)
    assert torch.equal(dependencies.depends, expected)
    assert len(dependencies.region.unique()) == changes.get("num_regions", 8)


def test_a_recipe_sees_its_region_and_the_ones_before_it():
    config = load_recipe(DOMAIN.recipes, "pretrain_shapes", configs(DOMAIN).pretrain)
    objective = build_objective(create_backbone(config.model), config.objective).eval()
    dependencies = decoder_dependencies(objective, torch.randn(1, 256, 3), Draw.of_batch(1))
    expected = dependencies.region.unsqueeze(1) <= dependencies.hidden_region.unsqueeze(2)
    assert torch.equal(dependencies.depends, expected)


def test_hidden_points_reach_no_prediction(make):
    objective, embeddings = make(), []
    objective.backbone.patch_embed.register_forward_hook(
        lambda module, arguments, output: embeddings.append(output) or output.retain_grad()
    )
    result = objective(torch.randn(1, 64, 3), Draw.of_batch(1))
    result.prediction.square().sum().backward()
    gradient = embeddings[0].grad[0].abs().sum(-1)
    assert (gradient[result.mask.hidden[0]] == 0).all()
    assert (gradient[~result.mask.hidden[0]] > 0).all()


def test_after_mask_puts_all_that_is_visible_before_all_that_is_hidden(make):
    points, draw = torch.randn(1, 64, 3), Draw.of_batch(1, seed=1)
    scan, after = (decoder_dependencies(make(regions=kind), points, draw) for kind in ("scan", "after_mask"))
    assert torch.equal(scan.mask.hidden, after.mask.hidden)
    hidden = after.mask.hidden
    assert after.depends[
        :, :, ~hidden[0]
    ].all()  # half of the regions are visible: every prediction sees them
    assert after.region[hidden].min() > after.region[~hidden].max()
    assert not scan.depends[:, :, ~hidden[0]].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regions": "after_mask", "region_order": "hilbert"}, "region_order has no effect with"),
        ({"num_regions": 0}, "objective.num_regions must be at least 1; got 0"),
        ({"num_regions": 17}, r"num_regions \(17\) must lie between 1 and the number of patches \(16\)"),
        ({"mask_ratio": 0.9}, r"model.neighbors \(3\) exceeds the 2 visible of 16 patches at ratio 0.9"),
        (
            {"mask_ratio_std": 0.25, "mask_ratio_bounds": (0.3, 0.9)},
            r"model.neighbors \(3\) exceeds the 2 visible of 16 patches at ratio 0.9",
        ),
        (
            {"mask_scope": "region", "num_regions": 9, "mask_ratio": 0.7},
            r"mask scope 'region' must hide up to 2 tokens of every region, but the smallest has 1",
        ),
        (
            {"mask_scope": "region", "regions": "after_mask"},
            r"regions 'after_mask' exist only once tokens are hidden: use mask scope 'all'",
        ),
        ({"mask_strategy": "diagonal"}, r"'diagonal' needs tokens on a grid; these have none"),
        (
            {"mask_ratio_std": 0.25, "mask_ratio_bounds": (0.01, 0.5)},
            r"mask ratio 0.01 of 16 tokens hides 0: .*objective.mask_ratio_bounds",
        ),
        (
            {"decoder": "mamba", "num_regions": 5},
            r"needs regions of equal size, but these 5 regions of 16 tokens differ",
        ),
        ({"mask_ratio": -0.5}, r"objective.mask_ratio must lie in \[0, 1\); got -0.5"),
        ({"decoder_depth": 0}, "objective.decoder_depth must be at least 1; got 0"),
        ({"decoder_heads": 3}, r"objective.decoder_dim \(16\) must be a multiple of objective.decoder_heads"),
        (
            {"decoder": "mamba", "decoder_repeat_position": True},
            "objective.decoder_repeat_position is of a Transformer decoder",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_settings_that_do_not_fit_are_refused(make, changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


def test_diagonals_of_clouds_are_refused_for_simmim_too(tiny_model):
    with pytest.raises(UserError, match="'diagonal' needs tokens on a grid"):
        build_objective(create_backbone(tiny_model), PointSimMIMConfig(mask_strategy="diagonal"))


def test_a_class_token_is_refused(tiny_model, tiny_objective):
    with pytest.raises(UserError, match="pretraining has no class token"):
        build_objective(create_classifier(tiny_model, 2), tiny_objective)


def test_a_second_order_is_refused_where_patches_are_predicted(tiny_model, tiny_objective):
    def model():
        return create_point_model(
            "point_mamba", 0, embed_dim=16, patch_hidden_dim=8, num_patches=16, patch_size=4, layout="SS"
        )

    for objective in (tiny_objective, PointSimMIMConfig()):
        with pytest.raises(UserError, match=r"reads its patches in two orders .* with second_order=None"):
            build_objective(model(), objective)
    contrastive = build_objective(model(), PointContrastiveConfig(hidden_dim=16, out_dim=8))
    assert contrastive(torch.randn(2, 2, 64, 3), Draw.of_batch(2)).loss.isfinite()


@pytest.mark.parametrize("linear_head", [False, True])
def test_a_classifiers_head_is_frozen(tiny_model, tiny_objective, linear_head):
    """A process would wait for a missing gradient."""
    arguments = tiny_model.arguments() | {"class_token": False, "linear_head": linear_head}
    objective = build_objective(create_point_model(tiny_model.name, 5, **arguments), tiny_objective)
    objective(torch.randn(2, 64, 3), Draw.of_batch(2)).loss.backward()
    assert not [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]


def test_a_pretraining_run_can_be_read_back(pretrained):
    run, task = pretrained
    points, draw = torch.randn(2, 64, 3), Draw.of_batch(2, seed=3)
    loaded = load_objective(DOMAIN, run).objective.eval()
    expected = task.model.eval()(points, draw)
    torch.testing.assert_close(loaded(points, draw).prediction, expected.prediction)
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "model.safetensors",
        "pretraining.safetensors",
        "reconstructions.png",
        "summary.json",
    }


def test_the_exported_model_is_the_objectives_backbone(pretrained):
    run, task = pretrained
    exported, state = read_weights(run), task.model.backbone.state_dict()
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[name], value) for name, value in state.items())
    assert {name.split(".")[0] for name in exported} == {"patch_embed", "encoder"}
    assert {name.split(".")[0] for name in read_weights(run / "pretraining.safetensors")} == {
        "decoder",
        "head",
    }


def test_a_run_describes_its_model(pretrained, tiny_model):
    run, _ = pretrained
    assert read_description(run) == {
        "name": "hybridnet3d",
        "arguments": tiny_model.arguments(),
        "task": "pretrain",
        "holds": "encoder",
        "weights": "raw",
        "preparation": {"source": "shapes", "num_points": 64, "unit_sphere": True, "up_axis": "z"},
    }


def test_a_users_data_set_is_trained_on_up_to_the_picture(
    tiny_model, tiny_objective, short_training, tmp_path
):
    """Bare tensors, no names, no axis that points up."""
    clouds = list(torch.randn(8, 64, 3, generator=torch.Generator().manual_seed(1)))
    config = configs(DOMAIN).pretrain(model=tiny_model, objective=tiny_objective, training=short_training)
    task = PretrainTask(DOMAIN, config, OpenedData("my own", (), clouds, None, None))
    train(task, config.training, str(tmp_path / "run"), run_config=config)
    assert (tmp_path / "run/reconstructions.png").stat().st_size > 0
    assert load_objective(DOMAIN, tmp_path / "run").model.embed_dim == 16


@pytest.mark.parametrize(
    ("matching", "distance"), [("nearest", chamfer_distance), ("transport", transport_distance)]
)
def test_the_loss_matches_points_as_asked_for(make, matching, distance):
    result = make(matching=matching)(torch.randn(2, 64, 3), Draw.of_batch(2))
    target = torch.stack([t[d] for t, d in zip(result.tokens.target, result.mask.drop, strict=True)])
    expected = distance(result.prediction.unflatten(-1, (-1, 3)), target).mean()
    torch.testing.assert_close(result.loss, expected)


def test_a_model_of_no_clouds_is_refused(tiny_objective):
    with pytest.raises(UserError, match=r"Linear is not a model of clouds: create one with map_points\."):
        build_objective(torch.nn.Linear(3, 3), tiny_objective)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"matching": "chamfer"}, "objective.matching 'chamfer' is unknown; .*nearest"),
        ({"regions": "aftermask"}, r"objective.regions 'aftermask' is unknown; did you mean after_mask\?"),
        ({"encoder": "casual"}, r"objective.encoder 'casual' is unknown; did you mean causal\?"),
        (
            {"decoder": "transform"},
            r"objective.decoder 'transform' is unknown; did you mean transformer\?",
        ),
        ({"mask_placement": "rand"}, r"objective.mask_placement 'rand' is unknown; did you mean random\?"),
    ],
)
def test_a_misspelt_choice_is_refused(make, changes, cure):
    with pytest.raises(UserError, match=cure):
        make(**changes)
