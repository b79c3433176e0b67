"""timm's Vision Transformers load into the Transformer-only family."""

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from map_core import UserError
from map_vision.weights import convert_state, load_init

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def vit():
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=10, depth=3
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that no bias or class token is zero
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def ours(make_tiny):
    def make(**changes):
        sizes = {"embed_dim": 192, "num_heads": 3, "layout": "Tx3", "num_registers": 1}
        return make_tiny("map_vit_tiny_patch16_224", **{**sizes, **changes})

    return make


def assert_equal_outputs(vit, model):
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(x), vit.forward_features(x), **TOLERANCE)
        torch.testing.assert_close(model(x), vit(x), **TOLERANCE)


@pytest.mark.parametrize("wrapped", [False, True])
def test_file_of_timms_weights_starts_ours(vit, ours, tmp_path, wrapped):
    state = vit.state_dict()
    torch.save({"model": state} if wrapped else state, tmp_path / "vit.pth")
    model = ours()
    assert load_init(model, tmp_path / "vit.pth").missing == ()
    assert_equal_outputs(vit, model)


def test_timm_itself_converts_pretrained_weights(vit, ours, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    overlay = {"file": str(tmp_path / "vit.pth"), "num_classes": 10}
    assert_equal_outputs(vit, ours(pretrained=True, pretrained_cfg_overlay=overlay))


def test_timms_checkpoint_path_reads_timms_weights(vit, ours, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    assert_equal_outputs(vit, ours(checkpoint_path=str(tmp_path / "vit.pth")))


def test_timms_checkpoint_path_warns_of_another_number_of_heads(vit, ours, tmp_path, caplog):
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    ours(checkpoint_path=str(tmp_path / "vit.pth"))
    assert "attention heads" not in caplog.text
    ours(checkpoint_path=str(tmp_path / "vit.pth"), num_heads=6)
    assert (
        "how many attention heads there are: this model has num_heads 6 and the published one 3"
        in caplog.text
    )


def test_positions_of_another_size_are_resampled_as_timm_does(vit, ours, tmp_path):
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    model = ours(img_size=(48, 32))
    load_init(model, tmp_path / "vit.pth")
    expected = resample_abs_pos_embed(vit.pos_embed.detach(), [6, 4], num_prefix_tokens=1)
    torch.testing.assert_close(model.encoder.position.table.flatten(0, 1), expected[0, 1:])
    torch.testing.assert_close(model.encoder.registers.position, expected[0, :1])


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_every_size_has_timms_shapes(size):
    with torch.device("meta"):
        theirs = timm.create_model(f"vit_{size}_patch16_224")
        model = timm.create_model(f"map_vit_{size}_patch16_224")
    converted = convert_state(theirs.state_dict(), model)
    shapes = {key: value.shape for key, value in converted.items()}
    assert shapes == {key: value.shape for key, value in model.state_dict().items()}
    heads = [block.attn.num_heads for block in theirs.blocks]
    assert heads == [block.attn.num_heads for block in model.encoder.blocks]


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", "backbone."])
def test_prefixes_of_wrappers_are_taken_off_a_state_dict(vit, ours, prefix):
    model = ours()
    model.load_state_dict({f"{prefix}{key}": value for key, value in vit.state_dict().items()})
    assert_equal_outputs(vit, model)


def test_positions_must_be_square(vit, ours):
    state = vit.state_dict()
    state["pos_embed"] = torch.zeros(1, 1 + 12, 192)
    with pytest.raises(
        UserError, match=r"pos_embed has 12 patch positions, which do not form a square grid, and no"
    ):
        convert_state(state, ours())
