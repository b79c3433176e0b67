"""The objectives over clouds: what a prediction may read, what is refused, and what runs leave."""

import copy
from dataclasses import replace

import pytest
import torch

from map_core import Draw, UserError
from map_core.commands.standard import configs
from map_core.regions import region_attention_mask
from map_core.tasks.classification import FinetuneTask
from map_core.tasks.pretraining import PretrainTask, load_objective
from map_core.testing import learn_batch
from map_core.training import train
from map_points.blocks import LocalNormPool
from map_points.domain import DOMAIN
from map_points.factory import create_backbone
from map_points.pretraining import (
    OBJECTIVES,
    PointAutoregressionConfig,
    PointContrastiveConfig,
    PointObjectiveConfig,
    PointSimMIMConfig,
    build_objective,
)
from map_points.targets import WiderPatches

DECODER = {"decoder_dim": 16, "decoder_heads": 2, "decoder_depth": 1}
SECTIONS = {
    "causal": PointObjectiveConfig(encoder="causal", **DECODER),
    "autoregression": PointAutoregressionConfig(**DECODER),
    "simmim": PointSimMIMConfig(),
    "mamba_decoder": PointObjectiveConfig(decoder="mamba", **DECODER),
    "scales": PointObjectiveConfig(target_scales=(1, 2, 4), **DECODER),
    "ratio0": PointObjectiveConfig(mask_ratio=0.0, **DECODER),
    "moco_v2": PointContrastiveConfig(version="v2", queue=8, out_dim=8),
    "moco_v3": PointContrastiveConfig(hidden_dim=16, out_dim=8),
}
CAUSAL = ("causal", "autoregression")


@pytest.fixture
def clouds():
    return torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def build(tiny_model):
    def make(name, *, order="hilbert", **changes):
        torch.manual_seed(0)
        scan = "forward" if name in CAUSAL else "both"
        backbone = create_backbone(replace(tiny_model, scan=scan, order=order))
        return build_objective(backbone, replace(SECTIONS[name], **changes)).eval()

    return make


def test_every_method_that_makes_sense_for_clouds_has_its_section():
    assert list(OBJECTIVES) == ["masked_autoregression", "autoregression", "simmim", "contrastive"]
    for method, settings in OBJECTIVES.items():
        assert settings().method == method
        settings().validate()


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("region_order", [None, "z_order"])
def test_no_patch_of_a_later_region_reaches_a_prediction(build, clouds, name, region_order, monkeypatch):
    """Patches overlap, so that it is their embeddings that a prediction must not depend on."""
    objective, embeddings = build(name, region_order=region_order), []
    tokenize = objective.backbone.tokenize

    def remember(inputs, *, targets=False):
        tokens = tokenize(inputs, targets=targets)
        embeddings.append(tokens.embedding.detach().requires_grad_())
        return replace(tokens, embedding=embeddings[-1])

    monkeypatch.setattr(objective.backbone, "tokenize", remember)
    result = objective(clouds, Draw.of_batch(2))
    region = objective.regions(result.tokens, result.mask).index.expand(2, -1)
    # from the order of prediction to that of the scan, in which the embeddings were recorded
    place = result.tokens.origin.argsort(1)
    scan_order = tokenize(clouds).origin
    scanned_region = torch.gather(torch.gather(region, 1, place), 1, scan_order)
    dependencies = 0
    for h, patch_prediction in enumerate(result.prediction.unbind(1)):
        gradient = torch.autograd.grad(patch_prediction.square().sum(), embeddings[0], retain_graph=True)[
            0
        ].any(-1)
        patch_region = torch.gather(region, 1, result.index)[:, h : h + 1]
        forbidden = (
            scanned_region >= patch_region if name == "autoregression" else scanned_region > patch_region
        )
        assert not gradient[forbidden].any()
        dependencies += int(gradient.sum())
    assert dependencies > 0


def test_a_patch_is_described_by_neighbours_that_it_may_read():
    """Against a loop: the nearest of the readable, itself where there are too few, and their variance."""
    local, x, position = LocalNormPool(4, neighbors=3), torch.randn(2, 6, 4), torch.randn(2, 6, 3)
    with torch.no_grad():
        for parameter in local.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    attention_mask = region_attention_mask(torch.tensor([[0, 0, 1, 1, 1, 2]]), "map")
    output = local(x, position, attention_mask)
    for sample in range(2):
        relative = []
        for i in range(6):
            readable = attention_mask[0, i].nonzero().flatten().tolist()
            distance = [(position[sample, i] - position[sample, j]).square().sum().item() for j in readable]
            near = [j for _, j in sorted(zip(distance, readable, strict=True))][:3]
            near += [i] * (3 - len(near))
            relative.append(torch.stack([x[sample, j] - x[sample, i] for j in near]))
        for i in range(6):
            readable = attention_mask[0, i].nonzero().flatten().tolist()
            variance = torch.stack([relative[j] for j in readable]).var(correction=0)
            scaled = relative[i] * local.scale[:4] / (variance + local.eps).sqrt() + local.shift[:4]
            pooled = (scaled * scaled.softmax(0)).sum(0)
            patch = x[sample, i] * local.scale[4:] + local.shift[4:]
            expected = torch.nn.functional.silu(local.project(local.norm(torch.cat([pooled, patch]))))
            torch.testing.assert_close(output[sample, i], expected, rtol=1e-4, atol=1e-5)


def test_fewer_patches_than_neighbours_are_refused_by_autoregression_too(tiny_model, clouds):
    model = replace(tiny_model, scan="forward", num_patches=3, neighbors=4)
    objective = replace(SECTIONS["autoregression"], num_regions=3).build(create_backbone(model))  # unchecked
    with pytest.raises(UserError, match=r"cannot find 4 nearest neighbours among 2 points; lower k"):
        objective(clouds, Draw.of_batch(2))  # no region reads the last one


def test_where_everyone_may_read_everyone_nothing_changes():
    local, x, position = LocalNormPool(4, neighbors=3), torch.randn(2, 6, 4), torch.randn(2, 6, 3)
    everyone = torch.ones(1, 6, 6, dtype=torch.bool)
    torch.testing.assert_close(local(x, position, everyone), local(x, position))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["autoregression", "simmim", "scales", "mamba_decoder", "ratio0"])
def test_learning_overfits_a_batch(build, clouds, name):
    objective = build(name).train()
    losses = learn_batch(objective, clouds, Draw.of_batch(2), steps=60, lr=3e-3)
    assert losses[-1] < 0.8 * losses[0]


def with_augmentation(data, augmentation):
    """The same clouds to train on, augmented; other tests keep theirs."""
    train = copy.copy(data.train)
    train.config = replace(train.config, augmentation=augmentation)
    return replace(data, train=train)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_run_learns_and_comes_back(name, tiny_model, short_training, two_classes, tmp_path):
    scan = "forward" if name in CAUSAL else "both"
    data = two_classes
    if name.startswith("moco"):
        data = with_augmentation(data, "rotate_scale_translate")
    config = configs(DOMAIN).pretrain(
        model=replace(tiny_model, scan=scan), objective=SECTIONS[name], training=short_training
    )
    task = PretrainTask(DOMAIN, config, data)
    train(task, config.training, tmp_path, run_config=config)
    learnable = {key: value for key, value in task.model.named_parameters() if value.requires_grad}
    without_gradient = {key for key, value in learnable.items() if value.grad is None or not value.grad.any()}
    assert without_gradient == ({"decoder.mask_token"} if name == "ratio0" else set())
    trained = load_objective(DOMAIN, tmp_path)
    assert trained.settings == config.objective
    state = trained.objective.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in task.model.state_dict().items())
    assert (tmp_path / "reconstructions.png").is_file() == (not name.startswith("moco"))


def test_a_one_directional_run_starts_a_bidirectional_classifier(
    tiny_model, short_training, two_classes, tmp_path, caplog
):
    model = replace(tiny_model, scan="forward")
    config = configs(DOMAIN).pretrain(
        model=model, objective=SECTIONS["autoregression"], training=short_training
    )
    train(PretrainTask(DOMAIN, config, two_classes), config.training, tmp_path, run_config=config)
    finetune = configs(DOMAIN).finetune(
        model=replace(tiny_model, scan="both"), training=short_training, init=str(tmp_path)
    )
    task = FinetuneTask(DOMAIN, finetune, two_classes)
    mixer = task.model.encoder.blocks[0].mixer
    assert torch.equal(mixer.scan_backward.x_proj.weight, mixer.scan_forward.x_proj.weight)
    assert "scans one way and the model both: its 2 layers start their backward scan" in caplog.text


# ---- targets of several scales


def test_a_wider_patch_has_the_nearest_points_of_its_centre(build, clouds):
    tokens = build("scales").backbone.tokenize(clouds, targets=True)
    wider = WiderPatches(4, (1, 3))(clouds, tokens)
    assert torch.equal(wider[0], tokens.target)
    assert wider[1].shape == (2, 16, 12, 3)
    for token in range(16):
        distance = (clouds[0] - tokens.position[0, token]).norm(dim=-1).sort().values[:12]
        torch.testing.assert_close(wider[1][0, token].norm(dim=-1), distance)


def test_scales_beyond_the_cloud_are_refused(build, clouds):
    with pytest.raises(UserError, match=r"asks for 17 x 4 points around a centre, but a cloud has 64"):
        build("scales", target_scales=(1, 17))(clouds, Draw.of_batch(2))


# ---- bad input


def test_two_views_of_clouds_need_an_augmentation(two_classes):
    with pytest.raises(
        UserError, match=r"two views of a cloud would be the same .*: choose a data.augmentation"
    ):
        SECTIONS["moco_v3"].training_samples(
            with_augmentation(two_classes, "none"), batch_size=4, micro_batch=4
        )


def test_views_of_a_cloud_are_two_augmentations_of_it(two_classes):
    data = with_augmentation(two_classes, "rotate_scale_translate")
    views, label = SECTIONS["moco_v3"].training_samples(data, batch_size=4, micro_batch=4)[0]
    assert views.shape == (2, 64, 3)
    assert not torch.equal(views[0], views[1])
    assert label == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            PointSimMIMConfig(mask_unit=2),
            r"objective.mask_unit of clouds is 1, as patches tile no grid; got 2",
        ),
        (
            PointObjectiveConfig(encoder="causal", regions="after_mask"),
            r"objective.regions 'after_mask' .* too late for objective.encoder 'causal': use regions 'scan'",
        ),
        (PointAutoregressionConfig(num_regions=0), r"objective.num_regions must be at least 1; got 0"),
    ],
)
def test_settings_that_clouds_cannot_have_are_named(config, message):
    with pytest.raises(UserError, match=message):
        config.validate()


@pytest.mark.parametrize(
    ("name", "changes", "warns"),
    [
        ("autoregression", {}, False),
        ("autoregression", {"region_order": "hilbert"}, False),
        ("autoregression", {"region_order": "z_order"}, True),
        ("mamba_decoder", {"region_order": "z_order"}, True),
        ("mamba_decoder", {"region_order": "z_order", "attention": "mae"}, False),
    ],
)
def test_a_causal_objective_over_another_order_than_the_scans_is_warned_of(
    build, caplog, name, changes, warns
):
    build(name, **changes)
    assert ("a mismatch that costs accuracy by the paper's Table 2" in caplog.text) == warns


@pytest.mark.parametrize(
    ("model", "changes", "visible", "hidden"),
    [({}, {"hidden_tokens": 14}, 2, 14), ({"num_patches": 4}, {"num_regions": 2}, 2, 2)],
    ids=["hidden_tokens", "num_regions"],
)
def test_autoregression_that_leaves_too_few_patches_is_refused_before_the_first_step(
    tiny_model, model, changes, visible, hidden
):
    backbone = create_backbone(replace(tiny_model, scan="forward", **model))
    message = (
        rf"model.neighbors \(3\) exceeds the {visible} visible of {visible + hidden} patches with the last {hidden} "
        r"hidden; lower it or objective.hidden_tokens \(where that is not set, raise objective.num_regions\)"
    )
    with pytest.raises(UserError, match=message):
        build_objective(backbone, replace(SECTIONS["autoregression"], **changes))


def test_a_model_that_scans_both_ways_cannot_be_causal(tiny_model):
    with pytest.raises(UserError, match=r"scans one way, .* or --model.scan forward \(clouds\)"):
        build_objective(create_backbone(tiny_model), SECTIONS["autoregression"])
