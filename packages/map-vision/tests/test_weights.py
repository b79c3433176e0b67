"""Weights files: what may be missing, what is refused, and the error messages."""

import json
import pickle
import re

import pytest
import timm
import torch
from safetensors.torch import load_file

from map_core import UserError
from map_core.tasks.weights import read_description, read_weights, save_weights, weights_file
from map_vision.factory import MODELS, ModelConfig
from map_vision.pretrained import refuse_changed_settings
from map_vision.weights import load_init, pretrained_state

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def backbone(make_tiny):
    """What pretraining trains: no registers, no neck, no head."""
    return make_tiny(num_registers=0, global_pool="avg", num_classes=0)


def test_saved_weights_are_read_back(make_tiny, tmp_path):
    model = make_tiny()
    save_weights(tmp_path / "model.safetensors", model.state_dict(), {"name": "x", "classes": ["a"]})
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert weights_file(path) == tmp_path / "model.safetensors"
        state = read_weights(path)
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
        assert read_description(path) == {"name": "x", "classes": ["a"]}
    assert not list(tmp_path.glob("*.partial"))


class TestInit:
    """Design decision 8: exactly registers, their positions, neck, neck norm and head may be missing."""

    NEW = ("encoder.registers.token", "encoder.registers.position", "neck.reduce.weight", "neck.norm.weight")
    HEAD = ("head.weight", "head.bias")

    def test_pretrained_encoder_starts_a_classifier(self, backbone, make_tiny, tmp_path):
        save_weights(tmp_path / "model.safetensors", backbone.state_dict(), {})
        model = make_tiny(neck_reduction=2)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        report = load_init(model, tmp_path)
        assert sorted(report.missing) == sorted(self.NEW + self.HEAD)
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key] if key in report.missing else backbone.state_dict()[key]), (
                key
            )

    def test_every_part_that_may_be_missing(self, make_tiny, tmp_path):
        model = make_tiny(neck_reduction=2)
        for key in model.state_dict():
            state = {other: value for other, value in model.state_dict().items() if other != key}
            save_weights(tmp_path / "one.safetensors", state, {})
            if key in self.NEW + self.HEAD:
                # half a head does not count as one
                missing = self.HEAD if key in self.HEAD else (key,)
                assert load_init(model, tmp_path / "one.safetensors").missing == missing
            else:
                with pytest.raises(UserError, match=rf"does not fit this model: missing: {key}; choose"):
                    load_init(model, tmp_path / "one.safetensors")

    def test_head_for_other_classes_is_reinitialised(self, make_tiny, tmp_path):
        save_weights(tmp_path / "model.safetensors", make_tiny(num_classes=7).state_dict(), {})
        model = make_tiny()
        head = model.head.weight.clone()
        assert load_init(model, tmp_path).missing == self.HEAD
        assert torch.equal(model.head.weight, head)

    def test_head_of_equal_classes_is_kept(self, make_tiny, tmp_path):
        source, model = make_tiny(), make_tiny()
        torch.nn.init.normal_(source.head.weight)
        save_weights(tmp_path / "model.safetensors", source.state_dict(), {})
        assert load_init(model, tmp_path).missing == ()
        assert torch.equal(model(X), source(X))

    def test_a_description_says_which_model_would_fit(self, make_tiny, tmp_path):
        described = {"name": "hybridnet_tiny_patch16_224", "arguments": {"embed_dim": 16, "layout": "MT"}}
        save_weights(
            tmp_path / "model.safetensors", make_tiny(layout="MT", embed_dim=16).state_dict(), described
        )
        cure = r"\(--model.name hybridnet_tiny_patch16_224 --model.embed_dim 16 --model.layout MT\)$"
        with pytest.raises(UserError, match=cure):
            load_init(make_tiny(layout="MT"), tmp_path)

    def test_options_take_back_settings_that_the_pretrained_model_does_not_have(self, tmp_path):
        """A text setting is null in a section, but not by itself."""
        save_weights(tmp_path / "model.safetensors", {}, MODELS.describe(ModelConfig("map_mambavision_tiny")))
        config = ModelConfig("hybridnet_tiny_patch16_224", layout="MT", num_heads=2, drop_path_rate=0.05)
        options = MODELS.options_as_trained(config, tmp_path)
        assert options.startswith("--model.name map_mambavision_tiny --model.num_heads ")
        assert options.endswith(" --model '{layout: null}'")
        assert "drop_path_rate" not in options

    def test_other_model_is_refused_with_keys_and_shapes(self, make_tiny, tmp_path):
        save_weights(tmp_path / "model.safetensors", make_tiny(layout="MT", embed_dim=16).state_dict(), {})
        model = make_tiny(layout="TT")
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(UserError) as caught:
            load_init(model, tmp_path)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'model.safetensors'} does not fit this model: missing: ")
        assert "encoder.blocks.0.attn.qkv.weight" in message
        assert "; not used: encoder.blocks.0.mixer." in message
        assert "patch_embed.proj.weight (16, 3, 8, 8) for (32, 3, 8, 8)" in message
        assert " more; choose the model that was pretrained (--model.name and its sizes)" in message
        assert "\n" not in message
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_unused_key_is_refused(self, backbone, tmp_path):
        state = {**backbone.state_dict(), "decoder.mask_token": torch.zeros(4)}
        save_weights(tmp_path / "model.safetensors", state, {})
        with pytest.raises(UserError, match=r"does not fit this model: not used: decoder.mask_token; choose"):
            load_init(backbone, tmp_path)

    def test_positions_of_another_grid_are_resampled(self, make_tiny, tmp_path, caplog):
        source, model = make_tiny(), make_tiny(img_size=(48, 32))
        save_weights(tmp_path / "model.safetensors", source.state_dict(), {})
        load_init(model, tmp_path)
        assert "positions resampled from 4x4 to 6x4" in caplog.text
        x = torch.randn(1, 3, 48, 32)
        torch.testing.assert_close(model(x), source(x))

    def test_pretraining_run_is_a_timm_checkpoint(self, backbone, tmp_path):
        save_weights(tmp_path / "model.safetensors", backbone.state_dict(), {})
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "layout": "(MMMT)x1", "num_heads": 4}
        model = timm.create_model(
            "hybridnet_tiny_patch16_224",
            checkpoint_path=str(tmp_path / "model.safetensors"),
            num_registers=0,
            global_pool="avg",
            num_classes=0,
            **sizes,
        )
        assert torch.equal(model.eval()(X), backbone(X))


class Malicious:
    """It writes a file when unpickled naively."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class TestRefusedFiles:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_pickle_that_runs_code_is_refused_unrun(self, backbone, tmp_path, legacy):
        file, trace = tmp_path / "model.pth", tmp_path / "trace"
        torch.save(
            {"model": Malicious(trace)}, file, _use_new_zipfile_serialization=not legacy, pickle_module=pickle
        )
        with pytest.raises(
            UserError, match=r"model.pth holds more than tensors and was refused: .* could run code"
        ):
            load_init(backbone, file)
        assert not trace.exists()

    def test_plain_pickle_is_refused_unrun(self, backbone, tmp_path):
        file, trace = tmp_path / "model.bin", tmp_path / "trace"
        file.write_bytes(pickle.dumps(Malicious(trace), protocol=2))
        with pytest.raises(UserError, match=r"model.bin holds more than tensors and was refused"):
            load_init(backbone, file)
        assert not trace.exists()

    @pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
    def test_cut_off_file(self, backbone, tmp_path, name):
        file = tmp_path / name
        if name.endswith(".pth"):
            torch.save(backbone.state_dict(), file)
        else:
            save_weights(file, backbone.state_dict(), {})
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(
            UserError, match=rf"{name} cannot be read as weights .* cut off: copy or export it again"
        ):
            load_init(backbone, file)

    def test_empty_file(self, backbone, tmp_path):
        (tmp_path / "model.pth").touch()
        with pytest.raises(UserError, match=r"model.pth is not a weights file \(looks like an empty file\)"):
            load_init(backbone, tmp_path / "model.pth")

    def test_nothing_there(self, backbone, tmp_path):
        with pytest.raises(
            UserError, match=r"no weights at .*/run; give a finished run's directory or a weights file"
        ):
            load_init(backbone, tmp_path / "run")

    def test_directory_of_an_unfinished_run(self, backbone, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(
            UserError, match=r"no weights at .*model.safetensors \(the run has not finished: resume it\)"
        ):
            load_init(backbone, tmp_path)

    def test_no_state_dict(self, backbone, tmp_path):
        torch.save({"epoch": 3}, tmp_path / "model.pth")
        with pytest.raises(
            UserError,
            match=r"model.pth does not hold a state dict of tensors: it has epoch; expected parameter names",
        ):
            load_init(backbone, tmp_path / "model.pth")

    def test_broken_description(self, backbone, tmp_path):
        save_weights(tmp_path / "model.safetensors", backbone.state_dict(), {})
        (tmp_path / "model.json").write_text('{"name": "hyb')
        with pytest.raises(
            UserError,
            match=r"model.json is not valid JSON .*; it may be cut off: copy it or export the run again",
        ):
            read_description(tmp_path)


def test_description_is_plain_json_and_weights_plain_tensors(make_tiny, tmp_path):
    save_weights(tmp_path / "model.safetensors", make_tiny().state_dict(), {"mean": (0.5,)})
    assert json.loads((tmp_path / "model.json").read_text()) == {"mean": [0.5]}
    assert set(load_file(tmp_path / "model.safetensors")) == set(make_tiny().state_dict())


@pytest.mark.parametrize(
    ("trained", "requested", "difference"),
    [
        ({}, {"order": "column"}, "order 'row', this model has 'column'"),
        ({"order": "column"}, {}, "order 'column', this model has 'row'"),
        ({"num_heads": 6}, {}, "num_heads 6, this model has 12"),
        ({"name": "map_vit_tiny_patch16_224"}, {}, "num_heads 3, this model has 12"),
        ({"global_pool": "avg"}, {}, "global_pool 'avg', this model has 'register'"),
        ({"global_pool": "avg"}, {"global_pool": "avg", "pool_norm": True}, "pool_norm False, this model has True"),
        ({"order": "block", "block_size": (2, 2)}, {"order": "block"}, "block_size (2, 2), this model has (4, 4)"),
        ({"position": "sincos"}, {}, "position 'sincos', this model has 'learned'"),
        ({"patch_stride": 8}, {"patch_stride": 16}, "patch_stride (8, 8), this model has None"),
    ],
)  # fmt: skip
def test_settings_that_shapes_do_not_show_are_compared(tmp_path, trained, requested, difference):
    before, after = ModelConfig(**trained), ModelConfig(**requested)
    save_weights(tmp_path / "model.safetensors", {}, MODELS.describe(before))
    MODELS.refuse_other_settings(before, tmp_path)
    with pytest.raises(
        UserError, match=f"was trained with model.{re.escape(difference)}: even where its weights fit, they"
    ):
        MODELS.refuse_other_settings(after, tmp_path)
    MODELS.refuse_other_settings(after, tmp_path, may_differ=[difference.split()[0]])


@pytest.mark.parametrize(
    ("name", "trained", "requested", "difference"),
    [
        ("hybridnet_nano_patch4_32", {}, {"pool_norm": True}, "pool_norm=False; with True"),
        ("hybridnet_nano_patch4_32", {"pool_norm": True}, {}, "pool_norm=True; with False"),
        ("hybridnet_nano_patch4_32", {}, {"norm_eps": 0.1}, "norm_eps=1e-05; with 0.1"),
        ("map_vit_tiny_patch16_224", {}, {"norm_eps": 1e-5}, "norm_eps=1e-06; with 1e-05"),
        ("map_vit_tiny_patch16_224", {}, {"spread_registers": True}, "spread_registers=False; with True"),
    ],
)
def test_timm_changes_no_setting_that_shapes_do_not_show(name, trained, requested, difference):
    settings = {"pretrained_cfg": {"num_classes": 10}, "pretrained_model_args": trained}
    refuse_changed_settings(name, settings | trained)
    with pytest.raises(
        UserError, match=f"were trained with {re.escape(difference)} they would fit, but mean"
    ):
        refuse_changed_settings(name, settings | requested)


def test_timm_changes_what_the_weights_do_not_use():
    name, settings = "hybridnet_nano_patch4_32", {"pretrained_model_args": {}}
    refuse_changed_settings(name, settings | {"pretrained_cfg": {"num_classes": 0}, "pool_norm": True})
    refuse_changed_settings(name, settings | {"spread_registers": False})  # it has none
    refuse_changed_settings(name, settings | {"pretrained_cfg": "in1k"})
    refuse_changed_settings("map_mambavision_tiny", settings | {"norm_eps": 0.1, "pool_norm": True})


@pytest.mark.parametrize(("trained", "requested"), [("Mx8", None), (None, "Mx8")])
def test_other_kinds_of_layers_are_left_to_the_shapes(tmp_path, trained, requested):
    save_weights(tmp_path / "model.safetensors", {}, MODELS.describe(ModelConfig(layout=trained)))
    MODELS.refuse_other_settings(ModelConfig(layout=requested), tmp_path)


def test_what_is_pretrained_or_probed_may_be_pooled_otherwise_than_the_classifier(tmp_path):
    save_weights(tmp_path / "model.safetensors", {}, MODELS.describe(ModelConfig(global_pool="register")))
    MODELS.refuse_other_settings(ModelConfig(global_pool="avg"), tmp_path, is_classifier=False)


def test_an_encoder_may_be_pooled_in_another_way(tmp_path):
    trained = ModelConfig(global_pool="avg")
    save_weights(tmp_path / "model.safetensors", {}, MODELS.describe(trained) | {"holds": "encoder"})
    MODELS.refuse_other_settings(ModelConfig(global_pool="register"), tmp_path)
    MODELS.refuse_other_settings(ModelConfig(global_pool="avg", pool_norm=True), tmp_path)


@pytest.mark.parametrize(
    ("name", "trained", "requested"),
    [
        ("mambar_tiny_patch16_224", {"num_heads": 5}, {}),
        ("map_arm_base_patch16_224", {}, {"num_heads": 5}),
    ],
)
def test_heads_that_no_layer_reads_are_not_compared(tmp_path, name, trained, requested):
    save_weights(tmp_path / "model.safetensors", {}, MODELS.describe(ModelConfig(name, **trained)))
    MODELS.refuse_other_settings(ModelConfig(name, **requested), tmp_path)


def test_weights_without_a_description_are_taken_as_they_are(tmp_path):
    save_weights(tmp_path / "model.safetensors", {}, {})
    MODELS.refuse_other_settings(ModelConfig(), tmp_path)


@pytest.mark.parametrize("num_classes", [0, 10])
def test_weights_without_registers_do_not_start_a_model_with_some(make_tiny, num_classes):
    source = make_tiny(num_registers=0, global_pool="avg", num_classes=num_classes)
    state = source.state_dict()
    assert pretrained_state(state, source, with_head=False).keys() == state.keys()
    with pytest.raises(
        UserError, match=r"they have no registers: add num_registers=0, global_pool='avg', or load"
    ):
        pretrained_state(state, make_tiny(), with_head=False)
    with pytest.raises(UserError, match=r"leave out what changes its layers, their sizes"):
        pretrained_state(state, make_tiny(layout="MTMT"), with_head=False)


def test_registers_that_were_pretrained_are_not_left_out_and_those_of_a_classifier_are(make_tiny):
    without = make_tiny(num_registers=0, global_pool="avg", num_classes=0)
    in_front = {"spread_registers": False, "global_pool": "avg"}
    with pytest.raises(
        UserError, match=r"not used: encoder.registers.token, encoder.registers.position; leave out"
    ):
        pretrained_state(make_tiny(**in_front, num_classes=0).state_dict(), without)
    pretrained_state(make_tiny(**in_front).state_dict(), without)


def test_a_neck_alone_is_no_lack_of_registers(make_tiny):
    in_front = {"spread_registers": False, "num_classes": 0}
    state = make_tiny(**in_front, global_pool="avg").state_dict()
    with pytest.raises(
        UserError, match=r"missing: neck.*; leave out what changes its layers, .* or its pooling"
    ):
        pretrained_state(state, make_tiny(**in_front, neck_reduction=2))
