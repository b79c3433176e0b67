"""Point models: their parameters, what reaches their encoder and their head, and what must not matter."""

from typing import get_args

import pytest
import torch

from map_core import sample_mask
from map_core.commands.parser import load_recipe
from map_core.commands.standard import configs
from map_core.encoder import Backbone
from map_core.errors import UserError
from map_core.tasks.model_card import registered
from map_core.tasks.weights import save_weights
from map_core.tokens import undo_scan
from map_points import create_point_model
from map_points.domain import DOMAIN
from map_points.factory import MODELS, PointModelConfig, create_backbone, create_classifier
from map_points.model import MODEL_NAMES
from map_points.tokenizer import PointOrder

TINY = {"embed_dim": 16, "num_heads": 2, "num_patches": 16, "patch_size": 4, "layout": "MMT"}


def count(module):
    return sum(p.numel() for p in module.parameters())


def tiny(**changes):
    torch.manual_seed(0)
    return create_point_model("hybridnet3d", **{"num_classes": 5, **TINY, **changes}).eval()


PUBLISHED = {"mamba3d_authors": 16_934_184, "point_mae": 22_099_752, "point_mamba": 12_297_768}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_parameters_of_the_originals(name):
    with torch.device("meta"):
        assert count(create_point_model(name, 40)) == PUBLISHED[name]


@pytest.mark.parametrize(("name", "total"), [("mamba3d", 16_934_184), ("hybridnet3d", 19_298_088)])
def test_parameters_of_the_classifier_for_40_classes(name, total):
    with torch.device("meta"):
        model = create_point_model(name, 40)
    assert count(model) == total
    assert count(model.patch_embed) == 494_464
    assert count(model.encoder.position) == 50_048
    assert count(model.encoder.registers) == 768
    assert count(model.encoder.norm) == 768
    assert count(model.head) == 273_960
    for letter, block in zip(model.encoder.layout, model.encoder.blocks, strict=True):
        assert count(block) == {"M": 1_342_848, "T": 590_976}[letter]
    block = model.encoder.blocks[0]
    assert count(block.local) == 298_368
    assert count(block.mixer) == 1_042_944
    assert model.encoder.layout == {"mamba3d": "M" * 12, "hybridnet3d": "MMMT" * 4}[name]


def test_nano_has_the_parameters_that_the_readme_says():
    with torch.device("meta"):
        assert count(create_point_model("hybridnet3d_nano", 40)) == 769_192


@pytest.mark.parametrize("recipe", ["pretrain_modelnet40_cpu", "finetune_modelnet40_cpu"])
def test_nano_is_what_the_recipes_for_a_cpu_train(recipe):
    model = load_recipe("map_points.recipes", recipe, getattr(configs(DOMAIN), recipe.split("_")[0])).model
    assert model.name == "hybridnet3d"
    assert registered(DOMAIN.models, model) == PointModelConfig("hybridnet3d_nano")


class TestPretrained:
    """Weights of a run, loaded by the model's name."""

    @pytest.fixture(params=["classifier", "encoder"])
    def run(self, request, tmp_path):
        classes = ["bed", "chair", "desk"] if request.param == "classifier" else []
        config = PointModelConfig("hybridnet3d", **TINY)
        trained = create_classifier(config, 3) if classes else create_backbone(config)
        description = MODELS.describe(
            config, holds=request.param, **({"classes": classes} if classes else {})
        )
        save_weights(tmp_path / "model.safetensors", trained.state_dict(), description)
        return tmp_path, trained.eval()

    def test_the_model_is_the_runs(self, run):
        path, trained = run
        model = create_point_model("hybridnet3d", pretrained=path, **TINY).eval()
        clouds = torch.randn(2, 64, 3)
        assert model.num_classes == trained.num_classes
        assert torch.equal(model(clouds), trained(clouds))

    def test_settings_are_the_runs(self, run):
        path, trained = run
        model = create_point_model("hybridnet3d", pretrained=path).eval()
        clouds = torch.randn(2, 64, 3)
        assert torch.equal(model(clouds), trained(clouds))
        assert create_point_model("hybridnet3d", pretrained=path, num_patches=9).num_patches == 9

    def test_another_number_of_classes_reinitialises_the_head(self, run):
        path, trained = run
        model = create_point_model("hybridnet3d", 7, pretrained=path, **TINY)
        assert model.num_classes == 7
        for key, value in trained.encoder.state_dict().items():
            assert torch.equal(model.encoder.state_dict()[key], value)

    def test_a_change_of_meaning_is_refused(self, run):
        with pytest.raises(UserError, match=r"'fps', this model has 'hilbert'.*leave out model.order"):
            create_point_model("hybridnet3d", pretrained=run[0], **TINY, order="hilbert")

    def test_a_model_that_the_weights_do_not_fill_is_refused(self, run):
        with pytest.raises(UserError, match=r"lacks (head|encoder\.registers).*; give num_classes"):
            create_point_model("hybridnet3d", pretrained=run[0], **TINY, linear_head=True, class_token=True)


def test_a_model_without_weights_says_where_some_come_from():
    with pytest.raises(UserError, match=r"^no pretrained weights of mamba3d are here .*hf-hub:USER/NAME"):
        create_point_model("mamba3d", pretrained=True)


def test_the_original_scan_has_as_many_parameters():
    with torch.device("meta"):
        assert count(create_point_model("mamba3d", 40, scan="channel_flip")) == 16_934_184


def test_the_position_is_added_before_every_block():
    model = tiny(class_token=True)
    inputs = []
    for block in model.encoder.blocks:
        block.forward = lambda x, position: inputs.append(x) or x
    tokens = model.tokenize(torch.randn(2, 64, 3))
    model.encoder.last_layer(tokens)
    position = model.encoder.position(tokens.position)
    for i, x in enumerate(inputs):
        torch.testing.assert_close(x[:, 1:], tokens.embedding + (i + 1) * position)
        registers = model.encoder.registers
        expected = registers.token + (i + 1) * registers.position
        torch.testing.assert_close(x[:, :1], expected.expand(2, 1, -1))


def test_hidden_patches_do_not_reach_the_encoder():
    model = tiny(class_token=False)
    tokens = model.tokenize(torch.randn(2, 64, 3))
    tokens.embedding.retain_grad()
    mask = sample_mask(tokens, 0.5)
    features = model.encode(tokens, mask)
    assert features.embedding.shape == (2, 8, 16)
    assert torch.equal(features.index, mask.keep)
    features.embedding.square().sum().backward()
    assert (tokens.embedding.grad[mask.hidden] == 0).all()
    assert (tokens.embedding.grad[~mask.hidden] != 0).any(-1).all()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_cloud_does_not_depend_on_its_company(name):
    layout = {"point_mae": "TT", "point_mamba": "SS", "hybridnet3d": "MMT"}.get(name, "MM")
    model = create_point_model(name, 5, **TINY | {"layout": layout}).eval()
    clouds = torch.randn(3, 64, 3) * torch.tensor([0.2, 0.5, 1.5])[:, None, None]
    torch.testing.assert_close(model(clouds)[1:2], model(clouds[1:2]), rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_no_gradient():
    model = tiny().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.BatchNorm1d):
            module.eval()
    clouds = torch.randn(2, 64, 3)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(clouds).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_blocks_are_recomputed_every_one_or_more():
    with pytest.raises(UserError, match="every must be at least 1, which recomputes every block; got 0"):
        tiny().set_grad_checkpointing(every=0)


def test_a_point_model_is_a_backbone():
    model = tiny(num_classes=0, class_token=False)
    assert isinstance(model, Backbone)
    tokens = model.tokenize(torch.randn(2, 64, 3), targets=True)
    assert tokens.target.shape == (2, 16, 4, 3)
    assert tokens.embedding.shape == (2, 16, model.embed_dim)
    assert model.encode(tokens).embedding.shape == (2, 16, model.embed_dim)
    assert model.encode(tokens).index.tolist() == [list(range(16))]


def test_encoding_is_what_features_are_made_of():
    model, clouds = tiny(num_classes=0, class_token=False), torch.randn(2, 64, 3)
    encoded = model.encode(model.tokenize(clouds)).embedding
    assert torch.equal(model.forward_features(clouds), encoded)


@pytest.mark.parametrize("class_token", [False, True])
def test_the_head_reads_maximum_and_mean_beside_the_class_token(class_token):
    model, clouds = tiny(class_token=class_token), torch.randn(2, 64, 3)
    tokens = model.forward_features(clouds)
    assert tokens.shape == (2, 16 + class_token, 16)
    patches = tokens[:, class_token:]
    pooled = patches.max(dim=1).values + patches.sum(dim=1) / 16
    expected = torch.cat([tokens[:, 0], pooled], dim=1) if class_token else pooled
    features = model.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(features, expected)
    assert features.shape[1] == model.head_hidden_size
    torch.testing.assert_close(model(clouds), model.head(expected))


@pytest.mark.parametrize(("pool", "width"), [("max", 16), ("mean", 16), ("mean_and_max", 32)])
def test_patches_are_pooled_as_asked_for(pool, width):
    model, clouds = tiny(class_token=False, pool=pool), torch.randn(2, 64, 3)
    tokens = model.forward_features(clouds)
    parts = {"max": tokens.max(dim=1).values, "mean": tokens.sum(dim=1) / 16}
    expected = torch.cat([parts[part] for part in pool.split("_and_")], dim=1)
    features = model.forward_head(tokens, pre_logits=True)
    torch.testing.assert_close(features, expected)
    assert features.shape[1] == width == model.head_hidden_size


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("pool", "sum", "pool 'sum' is unknown"),
        ("local_spread", "range", "local_spread must be 'variance' or 'deviation'; got 'range'"),
        ("position_activation", "selu", "activation 'selu' is unknown; known names: gelu, silu"),
    ],
)
def test_an_unknown_convention_is_refused(setting, value, message):
    with pytest.raises(UserError, match=message):
        tiny(**{setting: value})


def test_patches_read_twice_are_told_apart_by_their_scale():
    model = tiny(layout="SS", second_order="hilbert", order_scale=True, class_token=False)
    torch.nn.init.normal_(model.order_scale[1].scale)
    torch.nn.init.normal_(model.order_scale[1].shift)
    clouds = torch.randn(2, 64, 3)
    tokens, once = model.tokenize(clouds), tiny(layout="SS", order="hilbert").tokenize(clouds)
    assert tokens.length == 32
    assert torch.equal(tokens.position[:, 16:], once.position)
    second = model.order_scale[1]
    torch.testing.assert_close(tokens.embedding[:, 16:], once.embedding * second.scale + second.shift)
    in_order_of_sampling = undo_scan(tokens.position, tokens)
    assert torch.equal(in_order_of_sampling[:, :16], in_order_of_sampling[:, 16:])


def test_a_model_that_reads_its_patches_twice_is_not_pretrained():
    model = tiny(layout="SS", second_order="hilbert", class_token=False)
    with pytest.raises(UserError, match="in two orders sees in one what is hidden in the other"):
        model.tokenize(torch.randn(1, 64, 3), targets=True)


@pytest.mark.parametrize(("class_token", "width"), [(False, 16), (True, 32)])
def test_a_model_of_no_classes_gives_features(class_token, width):
    model, clouds = tiny(num_classes=0, class_token=class_token), torch.randn(2, 64, 3)
    pooled = model.forward_head(model.forward_features(clouds), pre_logits=True)
    assert pooled.shape == (2, width)
    assert torch.equal(model(clouds), pooled)


def test_a_linear_head_is_one_layer():
    model, clouds = tiny(class_token=False, linear_head=True), torch.randn(2, 64, 3)
    pooled = model.forward_head(model.forward_features(clouds), pre_logits=True)
    assert set(dict(model.head.named_parameters())) == {"weight", "bias"}
    torch.testing.assert_close(model(clouds), pooled @ model.head.weight.T + model.head.bias)


def test_initial_time_steps_survive():
    bias = tiny().encoder.blocks[0].mixer.scan_forward.dt_proj.bias
    step = torch.nn.functional.softplus(bias)
    assert step.min() >= 0.99e-3
    assert step.max() <= 0.101


def test_the_patch_embedding_keeps_a_spread_that_its_norms_can_measure():
    model = create_point_model("hybridnet3d", 40, layout="M")
    assert float(model.patch_embed.lift[0].weight.detach().std()) == pytest.approx(1 / 3, rel=0.1)
    assert float(model.encoder.blocks[0].mixer.in_proj.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match=r"model\.name 'hybridnet' is unknown; did you mean hybridnet3d"):
        create_point_model("hybridnet")


def test_dropout_in_the_head_has_the_rate_asked_for():
    model = tiny(drop_rate=0.25)
    assert [module.p for module in model.head if isinstance(module, torch.nn.Dropout)] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop_path_rate": 1.5}, r"model.drop_path_rate must lie in \[0, 1\); got 1.5"),
        ({"num_patches": 0}, "model.num_patches must be at least 1; got 0"),
        ({"patch_size": 0}, "model.patch_size must be at least 1; got 0"),
        ({"neighbors": 0}, "model.neighbors must be at least 1; got 0"),
        ({"in_chans": 2}, "model.in_chans must be at least 3, for x, y and z; got 2"),
        ({"order": "zigzag"}, "order 'zigzag' is unknown; .*fps.*hilbert_cells_swapped"),
        ({"second_order": "zigzag"}, "second_order 'zigzag' is unknown; .*hilbert_cells_swapped"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_an_argument_out_of_range_is_refused_when_the_model_is_made(change, message):
    with pytest.raises(UserError, match=message):
        tiny(**change)


@pytest.mark.usefixtures("unchecked")
def test_clouds_must_come_as_a_batch():
    with pytest.raises(UserError, match=r"a batch of clouds \(b, n, c\): a single cloud is points\[None\]"):
        tiny()(torch.randn(64, 3))


@pytest.mark.parametrize("order", get_args(PointOrder))
def test_an_empty_batch_has_no_scores(order):
    assert tiny(order=order).eval()(torch.randn(0, 64, 3)).shape == (0, tiny().num_classes)
