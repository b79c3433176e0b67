"""The registered models: what they hold, and that they behave as timm's users expect."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3

from map_core import Backbone, Draw, Masking, UserError
from map_core.commands.parser import load_recipe
from map_core.commands.standard import configs
from map_core.tasks.model_card import registered
from map_core.tasks.weights import save_weights
from map_core.tokens import undo_scan
from map_core.training.optimizer import default_parameter_groups
from map_vision.domain import DOMAIN
from map_vision.factory import ModelConfig
from map_vision.registry import ARCHITECTURES

# counted from the shapes; they fit the paper's 12M, 37M, 128M, 443M
PARAMETERS = {
    "hybridnet_nano_patch4_32": 1_217_256,
    "hybridnet_tiny_patch16_224": 11_640_424,
    "hybridnet_small_patch16_224": 37_272_040,
    "hybridnet_base_patch16_224": 127_674_088,
    "hybridnet_large_patch16_224": 442_049_512,
    "hybridnet_tiny_patch16_384": 11_713_384,
    "hybridnet_small_patch16_384": 37_417_960,
    "hybridnet_base_patch16_384": 127_965_928,
    "hybridnet_large_patch16_384": 442_438_632,
    "mambar_tiny_patch16_224": 9_264_232,
    "mambar_small_patch16_224": 27_801_064,
    "mambar_base_patch16_224": 99_301_096,
    "mambar_large_patch16_224": 341_222_376,
    "map_vit_tiny_patch16_224": 5_717_416,
    "map_vit_small_patch16_224": 22_050_664,
    "map_vit_base_patch16_224": 86_567_656,
    "map_vit_large_patch16_224": 304_326_632,
    "map_vit_huge_patch14_224": 632_045_800,
    "map_vim_tiny_patch16_224": 7_148_008,
    "map_vim_small_patch16_224": 25_796_584,
    "map_vim_base_patch16_224": 97_598_440,
    "map_arm_base_patch16_224": 85_031_656,
    "map_arm_large_patch16_224": 297_035_720,
    "map_arm_huge_patch16_224": 662_682_088,
}


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_papers(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("recipe", ["pretrain_cifar10", "finetune_cifar10"])
def test_nano_is_what_the_recipes_for_cifar10_train(recipe):
    model = load_recipe("map_vision.recipes", recipe, getattr(configs(DOMAIN), recipe.split("_")[0])).model
    assert model.name != "hybridnet_nano_patch4_32"
    assert registered(DOMAIN.models, model) == ModelConfig("hybridnet_nano_patch4_32")


def test_nano_is_for_cifar10s_classes_and_fits_into_the_repository():
    model = timm.create_model("hybridnet_nano_patch4_32")
    assert model.num_classes == 10
    assert sum(4 * value.numel() for value in model.state_dict().values()) < 6e6


def test_a_model_without_weights_says_where_some_come_from():
    with pytest.raises(
        UserError, match=r"^no pretrained weights of hybridnet_base_patch16_224 .*hf-hub:USER/NAME"
    ):
        timm.create_model("hybridnet_base_patch16_224", pretrained=True)
    assert "hybridnet_base_patch16_224" not in timm.list_models(pretrained=True)


def test_a_missing_weights_file_is_reported():
    with pytest.raises(
        UserError, match=r"^hybridnet_tiny_patch16_224: .* file no\.safetensors does not exist"
    ):
        timm.create_model(
            "hybridnet_tiny_patch16_224",
            pretrained=True,
            pretrained_cfg_overlay={"file": "no.safetensors"},
        )


@pytest.mark.parametrize("setting", ["in_chans", "img_size", "embed_dim", "num_heads"])
@pytest.mark.parametrize("name", ["hybridnet_nano_patch4_32", "map_mambavision_tiny"])
def test_no_setting_of_a_name_is_nothing(name, setting):
    with pytest.raises(UserError, match=rf"^model\.{setting} must be at least 1; got 0"):
        timm.create_model(name, **{setting: 0})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": (0, 2)}, r"model\.block_size must be at least 1; got \(0, 2\)"),
        ({"drop_path_rate": 1.5}, r"model\.drop_path_rate must lie in \[0, 1\); got 1.5"),
        ({"mlp_ratio": -1.0}, r"model\.mlp_ratio must be 0 or more; got -1.0"),
        ({"order": "spiral"}, r"order 'spiral' is unknown"),
    ],
)
def test_numbers_and_orders_of_a_name_are_checked_when_it_is_made(settings, message):
    with pytest.raises(UserError, match=message):
        timm.create_model("hybridnet_nano_patch4_32", **settings)


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize(
    "name", ["hybridnet_nano_patch4_32", "map_vit_tiny_patch16_224", "map_mambavision_tiny"]
)
def test_timm_keeps_the_head_of_a_finetuned_run(name, described, tmp_path):
    trained = timm.create_model(name, num_classes=2)
    description = {"name": name, "holds": "classifier", "classes": ["cat", "dog"], "mean": [0.1] * 3}
    save_weights(tmp_path / "model.safetensors", trained.state_dict(), description)
    overlay: dict[str, Any] = {"file": str(tmp_path / "model.safetensors")}
    if not described:
        (tmp_path / "model.json").write_text("[1]")  # somebody else's
        for changes in ({}, {"num_classes": 2}):
            with pytest.raises(
                UserError, match=r"have 2 classes, .*: add num_classes=2 to pretrained_cfg_overlay"
            ):
                timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **changes)
        features = timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True
        )
        assert "head.weight" not in features.state_dict()
        overlay["num_classes"] = 2
    for changes in ({}, {"num_classes": 2}):
        again = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **changes)
        assert torch.equal(again.head.weight, trained.head.weight)
    assert (again.pretrained_cfg["mean"] == (0.1, 0.1, 0.1)) == described
    other = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5)
    assert other.head.out_features == 5


def test_what_the_caller_says_of_weights_comes_before_their_description(tmp_path):
    name = "map_vit_tiny_patch16_224"
    encoder = timm.create_model(name, num_classes=0)
    description = {"name": name, "holds": "encoder", "mean": [0.1] * 3, "std": [0.2] * 3}
    save_weights(tmp_path / "model.safetensors", encoder.state_dict(), description)
    given = {"file": str(tmp_path / "model.safetensors"), "mean": (0.9, 0.9, 0.9)}
    again = timm.create_model(name, pretrained=True, pretrained_cfg=given)
    assert again.num_classes == 0  # an encoder's
    assert again.pretrained_cfg["mean"] == (0.9, 0.9, 0.9)
    assert again.pretrained_cfg["std"] == (0.2, 0.2, 0.2)
    assert torch.equal(again.patch_embed.proj.weight, encoder.patch_embed.proj.weight)


@pytest.mark.parametrize(
    ("name", "count"), [("map_vim_tiny_patch16_224", 7_250_344), ("map_vim_small_patch16_224", 26_001_256)]
)
def test_overlapping_patches_have_vims_parameters(name, count):
    with torch.device("meta"):
        model = timm.create_model(name, patch_stride=8)
    assert sum(p.numel() for p in model.parameters()) == count


def test_every_registered_model_is_counted_and_listed():
    assert set(ARCHITECTURES) == set(PARAMETERS) <= set(timm.list_models())


@pytest.mark.parametrize(
    ("name", "letters"),
    [("hybridnet_base_patch16_224", "MMMT" * 8), ("hybridnet_large_patch16_224", "MMMT" * 16)],
)
def test_layers_follow_the_papers_pattern(name, letters):
    with torch.device("meta"):
        model = timm.create_model(name)
    kinds = {"MambaBlock": "M", "TransformerBlock": "T"}
    assert "".join(kinds[type(block).__name__] for block in model.encoder.blocks) == letters


def test_keys_of_the_state_dict_stay(make_tiny):
    model = make_tiny(layout="MT", neck_reduction=2)
    direction = (
        "A_log",
        "D",
        "conv1d.weight",
        "conv1d.bias",
        "x_proj.weight",
        "dt_proj.weight",
        "dt_proj.bias",
    )
    assert sorted(model.state_dict()) == sorted(
        [
            "patch_embed.proj.weight",
            "patch_embed.proj.bias",
            "encoder.position.table",
            "encoder.registers.token",
            "encoder.registers.position",
            "encoder.blocks.0.norm.weight",
            "encoder.blocks.0.mixer.in_proj.weight",
            *(
                f"encoder.blocks.0.mixer.{scan}.{key}"
                for scan in ("scan_forward", "scan_backward")
                for key in direction
            ),
            "encoder.blocks.0.mixer.out_proj.weight",
            *(
                f"encoder.blocks.1.{layer}.{kind}"
                for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
                for kind in ("weight", "bias")
            ),
            "encoder.norm.weight",
            "neck.reduce.weight",
            "neck.norm.weight",
            "head.weight",
            "head.bias",
        ]
    )


@pytest.mark.parametrize(
    "name",
    [
        "hybridnet_tiny_patch16_224",
        "mambar_tiny_patch16_224",
        "map_vit_tiny_patch16_224",
        "map_vim_tiny_patch16_224",
    ],
)
def test_family_classifies(make_tiny, name):
    model = make_tiny(name, num_classes=7, in_chans=1)
    assert model(images(2, 1, 32, 32)).shape == (2, 7)
    assert model.num_classes == 7


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("hybridnet_tiny_patch16_224", 0.875),
        ("hybridnet_tiny_patch16_384", 1.0),
        ("mambar_tiny_patch16_224", 1.0),
        ("map_mambavision_tiny", 1.0),
        ("map_mambavision_tiny2", 0.98),
    ],
)
def test_crops_of_evaluation_are_those_of_the_family(name, crop):
    config = timm.models.get_pretrained_cfg(name).to_dict()
    assert timm.data.resolve_data_config(pretrained_cfg=config)["crop_pct"] == crop


class TestContract:
    """A model satisfies :class:`map_core.Backbone`: it makes tokens of images and encodes them."""

    FAMILIES = ("hybridnet_tiny_patch16_224", "mambar_tiny_patch16_224", "map_vit_tiny_patch16_224")

    @pytest.fixture(params=FAMILIES)
    def backbone(self, request, make_tiny):
        return make_tiny(request.param, num_registers=0, global_pool="avg", num_classes=0, order="block")

    def test_every_family_is_a_backbone(self, backbone):
        assert isinstance(backbone, Backbone)
        assert backbone.embed_dim == 32

    def test_encoding_all_tokens_is_forward_features(self, backbone):
        x = images(2, 3, 32, 24)
        tokens = backbone.tokenize(x)
        features = backbone.encode(tokens)
        assert features.index.tolist() == [list(range(12))]
        torch.testing.assert_close(undo_scan(features.embedding, tokens), backbone.forward_features(x))

    def test_hidden_tokens_are_not_read(self, backbone):
        x = images(2, 3, 32, 32)
        tokens = backbone.tokenize(x)
        mask = Masking(0.25)(tokens, Draw.of_batch(2))
        features = backbone.encode(tokens, mask)
        assert torch.equal(features.index, mask.keep)
        other = tokens.embedding.masked_fill(mask.hidden.unsqueeze(-1), 7.0)
        assert torch.equal(
            backbone.encode(replace(tokens, embedding=other), mask).embedding, features.embedding
        )
        visible = tokens.embedding.masked_fill(~mask.hidden.unsqueeze(-1), 7.0)
        changed = backbone.encode(replace(tokens, embedding=visible), mask)
        assert not torch.allclose(changed.embedding, features.embedding)


def silence_blocks(model):
    """Make every Transformer block the identity."""
    for block in model.encoder.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)


@pytest.mark.parametrize("order", ["row", "column", "snake", "block", "hilbert"])
def test_features_are_registers_then_patches_in_raster_order(make_tiny, order):
    model = make_tiny(layout="Tx2", order=order)
    silence_blocks(model)
    x, encoder = images(2, 3, 32, 32), model.encoder
    patches = model.patch_embed(x) + encoder.position.table.flatten(0, 1)
    registers = (encoder.registers.token + encoder.registers.position).expand(2, -1, -1)
    expected = encoder.norm(torch.cat([registers, patches], dim=1))
    torch.testing.assert_close(model.forward_features(x), expected)
    assert model.num_prefix_tokens == 4


@pytest.mark.parametrize(("layout", "same"), [("Tx2", True), ("Mx2", False)])
def test_scan_order_matters_to_mamba_and_not_to_attention(make_tiny, layout, same):
    by_row, by_column = (make_tiny(layout=layout, order=order) for order in ("row", "column"))
    by_column.load_state_dict(by_row.state_dict())
    x = images(2, 3, 32, 32)
    difference = (by_row.forward_features(x) - by_column.forward_features(x)).abs().max()
    assert (difference < 1e-5) == same


def test_column_scan_is_the_row_scan_of_the_transposed_image(make_tiny):
    by_row, by_column = make_tiny(img_size=(32, 48)), make_tiny(img_size=(48, 32), order="column")
    state = by_row.state_dict()
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].mT
    state["encoder.position.table"] = state["encoder.position.table"].transpose(0, 1)
    by_column.load_state_dict(state)
    x = images(2, 3, 32, 48)
    a, b = by_row.forward_features(x), by_column.forward_features(x.mT)
    torch.testing.assert_close(a[:, :4], b[:, :4])
    torch.testing.assert_close(a[:, 4:].unflatten(1, (4, 6)), b[:, 4:].unflatten(1, (6, 4)).transpose(1, 2))


def test_forward_head_pools_then_classifies(make_tiny):
    x = images(2, 3, 32, 32)
    registers = make_tiny(neck_reduction=2)
    features = registers.forward_features(x)
    pooled = registers.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, registers.head_hidden_size) == (2, 4 * 32 // 2)
    torch.testing.assert_close(registers.head(pooled), registers(x))
    other_patches = torch.cat([features[:, :4], torch.randn_like(features[:, 4:])], dim=1)
    torch.testing.assert_close(registers.forward_head(other_patches), registers(x))

    average = make_tiny(global_pool="avg")
    features = average.forward_features(x)
    torch.testing.assert_close(average.forward_head(features, pre_logits=True), features[:, 4:].mean(1))

    every = make_tiny(global_pool="")
    assert every(x).shape == (2, 4 + 16, 10)


@pytest.mark.usefixtures("unchecked")
def test_global_pool_must_exist_and_have_registers(make_tiny):
    with pytest.raises(
        UserError, match=r"global_pool must be 'register' \(.*class token.*\), 'avg' or ''; got 'max'"
    ):
        make_tiny(global_pool="max")
    with pytest.raises(
        UserError, match=r"global_pool='register' needs num_registers > 0; got 0: use .*'avg'"
    ):
        make_tiny(num_registers=0)


def test_classifier_can_be_read_and_replaced(make_tiny):
    model = make_tiny(global_pool="avg")
    assert model.get_classifier() is model.head
    model.reset_classifier(5)
    assert model(images(1, 3, 32, 32)).shape == (1, 5)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    assert model(images(1, 3, 32, 32)).shape == (1, 32)
    model.reset_classifier(3, global_pool="")
    assert model(images(1, 3, 32, 32)).shape == (1, 20, 3)
    with pytest.raises(
        UserError, match=r"global_pool cannot change from '' to 'register'; create the model with it"
    ):
        model.reset_classifier(3, global_pool="register")
    assert model(images(1, 3, 32, 32)).shape == (1, 20, 3)  # the refused change had no effect
    model.double().reset_classifier(2)
    assert model.head.weight.dtype == torch.float64


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "pool", "message"),
    [
        ({}, "max", r"global_pool must be 'register' .*, 'avg' or ''; got 'max'"),
        ({"pool_norm": True}, "", r"pool_norm needs global_pool='avg', whose mean it normalises; got ''"),
        ({}, "register", r"global_pool cannot change from 'avg' to 'register'"),
        ({"num_registers": 0}, "register", r"global_pool='register' needs num_registers > 0; got 0"),
    ],
)
def test_a_new_classifier_pools_as_the_model_can(make_tiny, changes, pool, message):
    model, x = make_tiny(global_pool="avg", **changes), images(1, 3, 32, 32)
    before = model(x)
    with pytest.raises(UserError, match=message):
        model.reset_classifier(3, global_pool=pool)
    assert torch.equal(model(x), before)  # the refused change had no effect


def test_head_without_classes_gives_features(make_tiny):
    model = make_tiny(num_classes=0)
    assert model(images(2, 3, 32, 32)).shape == (2, model.head_hidden_size)


class TestIntermediates:
    @pytest.fixture
    def model(self, make_tiny):
        return make_tiny(order="column")

    def test_last_layer_with_norm_is_forward_features(self, model):
        x = images(2, 3, 32, 24)
        final, layers = model.forward_intermediates(x, return_prefix_tokens=True, norm=True, output_fmt="NLC")
        expected = model.forward_features(x)
        assert len(layers) == 4
        torch.testing.assert_close(final, expected)
        patches, registers = layers[-1]
        torch.testing.assert_close(torch.cat([registers, patches], dim=1), expected)

    def test_norm_is_applied_to_each(self, model):
        x = images(1, 3, 32, 32)
        raw = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        normed = model.forward_intermediates(x, norm=True, output_fmt="NLC", intermediates_only=True)
        for a, b in zip(raw, normed, strict=True):
            torch.testing.assert_close(model.encoder.norm(a), b)

    def test_maps_are_the_tokens_on_the_grid(self, model):
        x = images(2, 3, 32, 24)
        maps = model.forward_intermediates(x, intermediates_only=True)
        tokens = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
        for one_map, one in zip(maps, tokens, strict=True):
            assert one_map.shape == (2, 32, 4, 3)
            torch.testing.assert_close(one_map, one.mT.unflatten(2, (4, 3)))

    @pytest.mark.parametrize(
        ("indices", "layers"), [(2, [2, 3]), ([0, 2], [0, 2]), ([-1], [3]), (None, [0, 1, 2, 3])]
    )
    def test_indices_choose_layers(self, model, indices, layers):
        x = images(1, 3, 32, 32)
        every = model.forward_intermediates(x, intermediates_only=True)
        chosen = model.forward_intermediates(x, indices=indices, intermediates_only=True)
        assert len(chosen) == len(layers)
        for one, layer in zip(chosen, layers, strict=True):
            torch.testing.assert_close(one, every[layer])

    def test_stop_early_runs_no_later_layer(self, model):
        ran = []
        for i, block in enumerate(model.encoder.blocks):
            block.register_forward_hook(lambda *_, i=i: ran.append(i))
        model.forward_intermediates(images(1, 3, 32, 32), [1], stop_early=True, intermediates_only=True)
        assert ran == [0, 1]

    def test_format_must_exist(self, model):
        with pytest.raises(UserError, match=r"output_fmt must be 'NCHW' or 'NLC'; got 'NHWC'"):
            model.forward_intermediates(images(1, 3, 32, 32), output_fmt="NHWC")

    def test_features_only_wraps_it(self, model, make_tiny):
        x = images(1, 3, 32, 24)
        wrapped = make_tiny(order="column", features_only=True, out_indices=(0, 2))
        assert wrapped.feature_info.channels() == [32, 32]
        assert wrapped.feature_info.reduction() == [8, 8]
        every = model.forward_intermediates(x, intermediates_only=True)
        for one, layer in zip(wrapped(x), (0, 2), strict=True):
            torch.testing.assert_close(one, every[layer])
        assert not any(".blocks.3." in key for key in wrapped.state_dict())

    @pytest.mark.parametrize(
        "form", [{"global_pool": "register", "neck_reduction": 2}, {"pool_norm": True, "global_pool": "avg"}]
    )
    def test_features_only_keeps_nothing_that_learns_nothing(self, make_tiny, form):
        wrapped = make_tiny(features_only=True, out_indices=(0, 2), **form)
        sum(one.square().sum() for one in wrapped(images(1, 3, 32, 32))).backward()
        assert [name for name, parameter in wrapped.named_parameters() if parameter.grad is None] == []

    def test_features_only_takes_other_layers_the_next_time(self, make_tiny):
        chosen = [make_tiny(features_only=True, **layers) for layers in ({}, {"out_indices": (0, 1)}, {})]
        maps = [[one.shape for one in wrapped(images(1, 3, 32, 24))] for wrapped in chosen]
        assert maps == [[(1, 32, 4, 3)] * count for count in (3, 2, 3)]
        assert [wrapped.feature_info.out_indices for wrapped in chosen] == [(1, 2, 3), (0, 1), (1, 2, 3)]


def test_gradients_with_activation_checkpointing_are_equal(make_tiny):
    plain, recomputing = make_tiny().train(), make_tiny().train()
    recomputing.set_grad_checkpointing()
    for model in (plain, recomputing):
        model(images(2, 3, 32, 32)).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        assert a.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, msg=name)


class TestLayerDecay:
    @pytest.fixture
    def model(self):
        with torch.device("meta"):
            return timm.create_model("hybridnet_small_patch16_224")

    def test_every_parameter_is_in_one_group_of_its_layer(self, model):
        groups = group_parameters(model, model.group_matcher(), reverse=False)
        names = [name for group in groups.values() for name in group]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters())
        assert len(groups) == 1 + 32 + 1  # embeddings, layers, head
        ordered = [groups[key] for key in sorted(groups)]
        for i in range(32):
            ours = [name for name in ordered[i + 1] if name != "encoder.norm.weight"]
            assert all(name.startswith(f"encoder.blocks.{i}.") for name in ours)
        assert all(name.startswith(("neck.", "head.")) for name in ordered[-1])

    def test_mamba_and_transformer_layers_are_one_step_each(self, model):
        names = {id(p): name for name, p in model.named_parameters()}
        groups = param_groups_layer_decay(
            model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.9
        )
        scale = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
        assert scale["head.weight"] == 1
        assert scale["patch_embed.proj.weight"] == pytest.approx(0.9**33)
        for i in range(32):
            of_layer = [value for name, value in scale.items() if name.startswith(f"encoder.blocks.{i}.")]
            assert of_layer == pytest.approx([0.9 ** (32 - i)] * len(of_layer))

    def test_states_positions_registers_and_vectors_are_not_decayed(self, model):
        names = {id(p): name for name, p in model.named_parameters()}
        groups = default_parameter_groups(model, 0.05)
        decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
        assert {name.split(".")[-2] for name in decayed} == {
            *(
                "proj",
                "in_proj",
                "out_proj",
                "conv1d",
                "x_proj",
                "dt_proj",
                "qkv",
                "fc1",
                "fc2",
                "reduce",
                "head",
            )
        }
        undecayed = set(names.values()) - decayed
        embeddings = {"encoder.position.table", "encoder.registers.token", "encoder.registers.position"}
        assert (
            embeddings | {name for name in names.values() if name.endswith((".A_log", ".D", "bias"))}
            <= undecayed
        )
        assert model.no_weight_decay() <= undecayed


class TestImageSizes:
    @pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 48), (40, 24)])
    @pytest.mark.parametrize("position", ["learned", "sincos", "fourier", "mlp"])
    def test_model_takes_other_sizes_at_run_time(self, make_tiny, size, position):
        model = make_tiny(position=position)
        x = images(2, 3, *size)
        assert model(x).shape == (2, 10)
        assert model.forward_features(x).shape == (2, 4 + size[0] // 8 * (size[1] // 8), 32)
        made_for_it = make_tiny(position=position, img_size=size)
        made_for_it.load_state_dict(model.state_dict())  # resamples learned positions at load
        torch.testing.assert_close(made_for_it(x), model(x))

    @pytest.mark.parametrize("position", ["learned", "sincos"])
    def test_input_size_can_be_set_for_good(self, make_tiny, position, tmp_path):
        model, x = make_tiny(position=position), images(2, 3, 16, 48)
        expected = model(x)
        model.set_input_size((16, 48))
        assert model.img_size == (16, 48)
        torch.testing.assert_close(model(x), expected)
        made_for_it = make_tiny(position=position, img_size=(16, 48))
        shapes = {name: value.shape for name, value in made_for_it.state_dict().items()}
        assert {name: value.shape for name, value in model.state_dict().items()} == shapes
        assert all(parameter.requires_grad for parameter in model.parameters())
        timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert again.img_size == (16, 48)
        torch.testing.assert_close(again(x), expected)
        with pytest.raises(UserError, match="image size 20x20 does not fit patch size 8x8"):
            model.set_input_size(20)
        assert model.img_size == (16, 48)

    def test_patches_may_be_oblong(self, make_tiny):
        model = make_tiny(patch_size=(4, 16))
        assert model.forward_features(images(1, 3, 32, 32)).shape == (1, 4 + 8 * 2, 32)

    def test_size_must_fit_the_patch(self, make_tiny):
        message = r"image size 36x32 does not fit patch size 8x8: height and width must be multiples"
        with pytest.raises(UserError, match=message):
            make_tiny(img_size=(36, 32))
        with pytest.raises(UserError, match=message):
            make_tiny()(images(1, 3, 36, 32))

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 3, 32, 32)])
    def test_images_must_come_as_a_batch(self, make_tiny, shape):
        with pytest.raises(
            UserError, match=r"a batch of images \(b, c, h, w\): a single image is images\[None\]"
        ):
            make_tiny()(torch.randn(shape))

    @pytest.mark.parametrize("order", ["row", "hilbert"])
    def test_no_images_have_no_scores(self, make_tiny, order):
        model = make_tiny(order=order)
        assert model(torch.randn(0, 3, 32, 32)).shape == (0, model.num_classes)

    def test_channels_must_be_the_models(self, make_tiny):
        with pytest.raises(UserError, match=r"images have 1 channels, the model takes in_chans=3; convert"):
            make_tiny()(images(1, 1, 32, 32))


def test_unparsable_layout_is_named(make_tiny):
    with pytest.raises(
        UserError, match=r"layout '\(MMMT' does not parse at '\(MMMT'; write letters with counts"
    ):
        make_tiny(layout="(MMMT")


def test_checkpoint_path_restores_the_model(make_tiny, tmp_path):
    model = make_tiny()
    save_weights(tmp_path / "model.safetensors", model.state_dict(), {})
    other = make_tiny(checkpoint_path=str(tmp_path / "model.safetensors"), drop_path_rate=0.1)
    x = images(2, 3, 32, 32)
    assert torch.equal(other(x), model(x))
    larger = make_tiny(checkpoint_path=str(tmp_path / "model.safetensors"), img_size=64)
    x = images(2, 3, 64, 64)
    torch.testing.assert_close(larger(x), model(x))


def test_copies_and_averages_are_independent(make_tiny):
    model = make_tiny()
    clone, average = copy.deepcopy(model), ModelEmaV3(model, decay=0.5)
    x = images(1, 3, 32, 32)
    before = model(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert torch.equal(clone(x), before)
    average.update(model)
    torch.testing.assert_close(average.module.head.weight, (clone.head.weight + model.head.weight) / 2)


def test_one_direction_has_no_backward_scan(make_tiny):
    model = make_tiny(layout="Mx2", bidirectional=False, num_registers=0, global_pool="avg")
    x = images(1, 3, 32, 32)
    changed = x.clone()
    changed[..., 24:, 24:] += 1  # the last patch
    before, after = model.forward_features(x), model.forward_features(changed)
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.usefixtures("unchecked")
@torch.no_grad()
def test_exports_as_one_graph(make_tiny):
    model, x = make_tiny(order="column"), images(2, 3, 32, 32)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


NANO = "hybridnet_nano_patch4_32"  # whose patches are averaged


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": NANO, "block_size": (2, 2)},
            r"model.block_size \(2, 2\) has no effect with model.order row: leave it out",
        ),
        (
            {"name": NANO, "order": "hilbert", "block_size": (2, 2)},
            r"model.block_size \(2, 2\) has no effect with model.order hilbert: leave it out",
        ),
        (
            {"name": NANO, "neck_reduction": 4},
            "model.neck_reduction 4 has no effect with model.global_pool 'avg': leave it out",
        ),
        (
            {"global_pool": "avg", "neck_reduction": 4},
            "model.neck_reduction 4 has no effect with model.global_pool 'avg': leave it out",
        ),
    ],
)
def test_a_section_with_a_setting_that_its_model_never_reads_is_refused(settings, message):
    """The model is created nevertheless: trained models with such a description stay usable."""
    config = ModelConfig(**settings)
    with pytest.raises(UserError, match=message):
        config.validate()
    with torch.device("meta"):
        assert DOMAIN.models.create_classifier(config, 10) is not None


@pytest.mark.parametrize(
    "settings",
    [
        {"order": "block", "block_size": (2, 2)},
        {"neck_reduction": 4},
        {"name": NANO, "global_pool": "register", "num_registers": 2, "neck_reduction": 4},
    ],
)
def test_a_setting_that_its_model_reads_is_accepted(settings):
    ModelConfig(**settings).validate()


def test_dropout_before_the_head_has_the_rate_asked_for(make_tiny):
    model, features = make_tiny(drop_rate=0.25), torch.ones(64, 4 + 16, 32)
    dropped = (model.train().forward_head(features, pre_logits=True) == 0).float().mean()
    assert dropped == pytest.approx(0.25, abs=0.03)
    assert model.eval().forward_head(features, pre_logits=True).all()
