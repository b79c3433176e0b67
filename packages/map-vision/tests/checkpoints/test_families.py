"""Files are recognised by their keys and described, and anything else is refused."""

import re

import published
import pytest
import states
import timm
import torch
from other_shapes import refused_shapes
from safetensors.torch import save_file

import map_vision
from map_core import UserError
from map_core.commands.program import main
from map_core.positions import resize_table
from map_core.tasks.conversion import convert_checkpoint
from map_core.tasks.families import family_of
from map_core.tasks.weights import read_description, read_settings
from map_vision.checkpoints import FAMILIES
from map_vision.checkpoints.description import as_table, nearest_model
from map_vision.cli import COMMANDS
from map_vision.domain import DOMAIN
from map_vision.factory import ModelConfig, create_backbone, create_model
from map_vision.mambavision import MambaVision
from map_vision.pictures import reconstruct
from map_vision.weights import load_init

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
OURS = {"img_size": 32, "patch_size": 8, "embed_dim": 32}
FILES = {
    "ViT (timm, DeiT, DINO, MAE's encoder)": states.vit,
    "MAE with decoder": states.mae,
    "Mamba-R": states.mambar,
    "Vim": states.vim,
    "MAP's authors": states.authors,
    "ARM, finetuned": states.arm,
}


def below(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def save(state, path, wrapper="model"):
    torch.save({wrapper: state} if wrapper else state, path)
    return path


# ---- recognition


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_of_one_family_alone(name):
    keys = list(FILES[name]())
    assert [family.name for family in FAMILIES if family.has(keys)] == [name]


@pytest.mark.parametrize("name", FILES)
def test_other_shapes_are_a_sentence_that_names_the_file(name):
    state = FILES[name]()
    assert refused_shapes(family_of(state, FAMILIES), state)


@pytest.mark.parametrize("number", ["999999999", "9" * 5000, "01"])
@pytest.mark.parametrize("name", FILES)
def test_a_layer_called_the_billionth_makes_no_billion_layers(name, number):
    state = FILES[name]()
    key = next(key for key in state if key.startswith(("blocks.0.", "layers.0.")))
    state[key.replace(".0.", f".{number}.", 1)] = state[key]
    with pytest.raises(
        UserError, match=r"file.pth: it has \d+ layers called (blocks|layers).#, and none of them is"
    ):
        family_of(state, FAMILIES).convert_file_state(state, "file.pth")


def test_a_pyramid_of_ours_and_as_published_is_mambavision():
    with torch.device("meta"):
        model = timm.create_model("map_mambavision_base")
    family = family_of(model.state_dict(), FAMILIES)
    assert family.name == "MambaVision"
    converted = family.convert(model.state_dict())
    assert converted.model == {"name": "map_mambavision_base"}
    assert len(converted.classes) == 1000


@pytest.mark.parametrize("size", ["tiny", "tiny2", "small", "base", "large", "large2"])
def test_a_pyramid_is_named_by_its_sizes(size):
    with torch.device("meta"):
        state = timm.create_model(f"map_mambavision_{size}").state_dict()
    assert family_of(state, FAMILIES).convert(state).model == {"name": f"map_mambavision_{size}"}


def test_a_model_is_named_by_its_width_first():
    """MAP's published base has the MLP ratio that tiny has here, and the width of base."""
    sizes = {"in_chans": 3, "patch_size": 16, "img_size": (224, 224), "layout": "(MMMT)x8", "mlp_ratio": 2.0}
    assert nearest_model("hybridnet_", embed_dim=768, **sizes) == {
        "name": "hybridnet_base_patch16_224",
        "mlp_ratio": 2.0,
    }
    small = nearest_model("hybridnet_", embed_dim=48, num_heads=12, **sizes | {"layout": "(MMMT)x2"})
    assert small == {"name": "hybridnet_tiny_patch16_224", "embed_dim": 48, "layout": "(MMMT)x2"}


def test_a_classifier_that_would_get_a_random_head_is_refused(tmp_path):
    pretrained = ("decoder", "ar_pred", "mask_")
    state = {key: value for key, value in states.authors().items() if not key.startswith(pretrained)}
    file = save(state, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"do not divide its width: give --model.num_heads N"):
        convert_checkpoint(DOMAIN, file, tmp_path / "run")
    other = {"num_heads": 4, "global_pool": "avg", "num_registers": 0}
    with pytest.raises(
        UserError, match=r"is a classifier, of which hybridnet_\w+ would keep no .*head.weight"
    ):
        convert_checkpoint(DOMAIN, file, tmp_path / "run", model=other)
    assert not (tmp_path / "run").exists()
    report = convert_checkpoint(DOMAIN, file, tmp_path / "run", model={"num_heads": 4})
    assert (report.unused, report.missing) == ((), ())


def test_a_checkpoint_is_not_overwritten_by_what_it_becomes(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({key: value.contiguous() for key, value in states.authors().items()}, file)
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"is where .* lies, which would be overwritten; give another"):
        convert_checkpoint(DOMAIN, file, tmp_path, model={"num_heads": 4})
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("size", "crop"),
    [("tiny", 1.0), ("tiny2", 0.98), ("small", 0.93), ("base", 1.0), ("large", 1.0), ("large2", 1.0)],
)
def test_a_pyramid_is_evaluated_at_the_crop_that_was_published(size, crop):
    with torch.device("meta"):
        state = timm.create_model(f"map_mambavision_{size}").state_dict()
    assert family_of(state, FAMILIES).convert(state).preprocessing["crop_pct"] == crop


LARGE3 = {
    "embed_dim": 2048,
    "stem_dim": 64,
    "depths": (3, 3, 20, 10),
    "num_heads": (16, 32),
    "window_size": (16, 8),
    "layer_scale": 1e-5,
}


def test_the_largest_pyramid_has_the_heads_and_windows_that_were_published():
    with torch.device("meta"):
        published_as = MambaVision(**LARGE3)
        state = published_as.state_dict()
        converted = family_of(state, FAMILIES).convert(state)
        model = create_model(read_settings(ModelConfig, converted.model, "the file"), 1000)
    assert sum(p.numel() for p in model.parameters()) == 739_570_472
    assert (converted.model["name"], model.img_size) == ("map_mambavision_large", (256, 256))
    for stage, theirs in zip(model.stages[2:], published_as.stages[2:], strict=True):
        assert stage.window_size == theirs.window_size
        assert stage.blocks[-1].mixer.num_heads == theirs.blocks[-1].mixer.num_heads


def test_heads_are_those_of_the_width_whatever_the_depth():
    with torch.device("meta"):
        state = timm.create_model("map_mambavision_tiny", embed_dim=1568).state_dict()
    assert family_of(state, FAMILIES).convert(state).model == {
        "name": "map_mambavision_tiny",
        "embed_dim": 1568,
        "num_heads": (16, 32),
    }


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        ("vit_base_patch16_224", "map_vit_base_patch16_224"),
        ("vit_huge_patch14_224", "map_vit_huge_patch14_224"),
        ("deit_small_patch16_224", "map_vit_small_patch16_224"),
    ],
)
def test_a_vit_of_timms_is_named_by_its_sizes(theirs, name):
    with torch.device("meta"):
        state = timm.create_model(theirs, num_classes=1000).state_dict()
    converted = family_of(state, FAMILIES).convert(state)
    assert converted.model == {"name": name}
    assert (len(converted.classes), converted.classes[0]) == (1000, "n01440764")


@pytest.mark.parametrize(
    ("state", "nearest", "against"),
    [
        (
            states.vit() | {"dist_token": torch.ones(1)},
            "ViT",
            "1 of its .* keys are none of that: dist_token",
        ),
        ({k: v for k, v in states.vim().items() if "_b" not in k}, "Vim", "it lacks layers.#.mixer.A_b_log"),
        (states.mambar() | {"layers.0.gamma": torch.ones(1)}, "Mamba-R", "none of that: layers.0.gamma"),
        ({"conv1.weight": torch.ones(1), "bn1.weight": torch.ones(1)}, "ViT", "conv1.weight, bn1.weight"),
    ],
    ids=["distilled", "one way", "another layer scale", "a ResNet"],
)
def test_an_unknown_file_names_the_nearest_family_and_what_speaks_against_it(
    tmp_path, state, nearest, against
):
    file = save(state, tmp_path / "odd.pth")
    with pytest.raises(
        UserError, match=rf"odd.pth is a checkpoint of no family .* nearest: {nearest}.*{against}"
    ):
        load_init(create_backbone(ModelConfig("map_vim_tiny_patch16_224")), file)
    with pytest.raises(UserError, match=rf"nearest: {nearest}.*{against}"):
        convert_checkpoint(DOMAIN, file, tmp_path / "out")


# ---- starting a model from a file

ORDER = r"whose order is 'row', and not 'column': .*; make the model with order='row' \(--model.order row\)"


def test_a_finetuned_model_starts_from_a_file_and_says_what_became_of_it(tmp_path, caplog):
    model = create_model(ModelConfig("map_vim_tiny_patch16_224", **OURS | {"img_size": 48}, layout="Mx3"), 10)
    report = load_init(model, save(states.vim(), tmp_path / "vim.pth"))
    assert (report.family, report.resampled, report.unused, report.missing) == (
        "Vim", ("encoder.position.table",), (), (),
    )  # fmt: skip
    assert "vim.pth: Vim, " in caplog.text
    assert "1 resampled (encoder.position.table); none left; none new" in caplog.text
    assert torch.equal(model.head.weight, states.vim()["head.weight"])


def test_a_head_that_is_not_wanted_is_left(tmp_path):
    model = create_model(ModelConfig("map_vim_tiny_patch16_224", **OURS, layout="Mx3"), 10)
    report = load_init(model, save(states.vim(), tmp_path / "vim.pth"), keep_head=False)
    assert report.unused == report.missing == ("head.weight", "head.bias")


def test_pretraining_starts_from_a_classifier_without_its_registers(tmp_path):
    model = create_backbone(ModelConfig("mambar_tiny_patch16_224", **OURS, layout="Mx3"))
    report = load_init(model, save(states.mambar(), tmp_path / "mambar.pth"))
    assert set(report.unused) == {
        "encoder.registers.token", "encoder.registers.position", "neck.reduce.weight", "neck.norm.weight",
        "head.weight", "head.bias",
    }  # fmt: skip
    assert report.missing == ()
    assert torch.equal(model.encoder.norm.weight, states.mambar()["norm_f.weight"])


def test_a_file_for_another_model_says_which_it_fits(tmp_path):
    model = create_model(ModelConfig("map_vim_tiny_patch16_224", **OURS, layout="Mx4"), 10)
    with pytest.raises(
        UserError,
        match=r"missing: encoder.blocks.3.norm.weight.*\(Vim: --model.name map_vim_\w+ .*layout Mx3",
    ):
        load_init(model, save(states.vim(), tmp_path / "vim.pth"))


@pytest.mark.parametrize(
    ("state", "config", "message"),
    [
        (
            states.authors(),
            {"layout": "MMTMMT", "num_heads": 4},
            "MAP's authors, whose wiring is 'branch', and not 'resi",
        ),
        (
            states.vit(last="fc_norm"),
            {"name": "map_vit_tiny_patch16_224", "layout": "Tx2", "num_heads": 4, "global_pool": "avg"},
            "whose pool_norm is True, and not False",
        ),
        (
            states.vit(last="fc_norm", with_head=False),
            {"name": "map_vit_tiny_patch16_224", "layout": "Tx2", "num_heads": 4, "global_pool": "avg"},
            r"whose pool_norm is True, and not False.*with pool_norm=True \(--model.pool_norm true\)",
        ),
        (
            states.vit(),
            {
                "name": "map_vit_tiny_patch16_224",
                "layout": "Tx2",
                "num_heads": 4,
                "global_pool": "avg",
                "pool_norm": True,
            },
            "whose pool_norm is False, and not True",
        ),
        *(
            (state, {"name": name, "order": "column", **changes}, ORDER)
            for state, name, changes in (
                (states.mambar(), "mambar_tiny_patch16_224", {"layout": "Mx3"}),
                (states.vim(), "map_vim_tiny_patch16_224", {"layout": "Mx3"}),
                (states.arm(), "map_arm_base_patch16_224", {"layout": "Fx2"}),
                (
                    states.authors(),
                    "hybridnet_tiny_patch16_224",
                    {"layout": "MMTMMT", "num_heads": 4, "wiring": "branch"},
                ),
            )
        ),
    ],
    ids=[
        *(
            "wiring",
            "norm behind the pooling",
            "norm behind the pooling of an encoder",
            "norm before the pooling",
        ),
        *("Mamba-R's order", "Vim's order", "ARM's order", "the authors' order"),
    ],
)
def test_a_model_that_would_compute_something_else_is_refused(tmp_path, state, config, message):
    config = ModelConfig(**{"name": "hybridnet_tiny_patch16_224", **OURS, **config})
    create = create_backbone if "ar_pred.weight" in state else lambda config: create_model(config, 10)
    model = create(config)
    if "fc_norm.weight" in state:  # shapes fit except for the norms' names
        state = dict(state)
    with pytest.raises(UserError, match=message):
        load_init(model, save(state, tmp_path / "file.pth"))


def test_attention_alone_computes_the_same_in_any_order(tmp_path):
    config = ModelConfig("map_vit_tiny_patch16_224", **OURS, layout="Tx2", num_heads=4, order="column")
    load_init(create_model(config, 10), save(states.vit(), tmp_path / "vit.pth"))


@pytest.mark.parametrize(
    "state", [states.vit(with_head=False), states.mae()], ids=["encoder", "with decoder"]
)
def test_maes_encoder_starts_a_classifier_that_normalises_the_mean_patch(tmp_path, state):
    """As recipe finetune_vit_base_in1k has it; the encoder's last norm gives way to a new one."""
    config = ModelConfig(
        "map_vit_tiny_patch16_224", **OURS, layout="Tx2", num_heads=4, global_pool="avg", pool_norm=True
    )
    model = create_model(config, 10)
    report = load_init(model, save(state, tmp_path / "mae.pth"))
    assert set(report.missing) == {"pool_norm.weight", "pool_norm.bias", "head.weight", "head.bias"}
    assert torch.equal(model.encoder.blocks[1].norm1.weight, state["blocks.1.norm1.weight"])


def test_a_model_with_other_heads_than_moco_v3_is_warned_of(tmp_path, caplog):
    """Its ViT-S has 12 heads, and map_vit_small 6."""
    state = below("base_encoder.", states.vit(with_head=False)) | {
        "base_encoder.head.0.weight": torch.ones(1)
    }
    config = ModelConfig("map_vit_tiny_patch16_224", **OURS, layout="Tx2", num_heads=4)
    load_init(create_model(config, 10), save(state, tmp_path / "moco.pth", "state_dict"))
    assert (
        "attention heads there are: this model has num_heads 4 and the published one 12, whose weights"
        in caplog.text
    )
    assert "make the model with num_heads=12 (--model.num_heads 12)" in caplog.text
    assert "unless --model.num_heads says otherwise" not in caplog.text


def test_a_pyramid_with_other_windows_than_published_is_warned_of(tmp_path, caplog):
    config = ModelConfig("map_mambavision_tiny", depths=(1, 1, 2, 2), num_heads=(8, 16), window_size=(16, 8))
    model = create_model(config, 5)
    file = save(model.state_dict(), tmp_path / "pyramid.pth")
    load_init(model, file)
    assert "this model has window_size (16, 8) and the published one (14, 7), whose weights" in caplog.text
    assert "(--model.window_size 14 7)" in caplog.text
    assert "attention heads there are: 8 16, as published" in caplog.text


# ---- variants inside a family


def test_overlapping_patches_of_vim_are_read_as_such():
    state = states.vim()
    state["patch_embed.proj.weight"] = torch.randn(32, 3, 16, 16)
    state["pos_embed"] = torch.randn(1, 730, 32)
    converted = family_of(state, FAMILIES).convert(state)
    assert converted.invisible_settings == {"order": "row", "patch_stride": (8, 8)}
    model = create_model(ModelConfig(**converted.model), 10).eval()
    assert model.patch_embed.grid_of((224, 224)) == (27, 27)
    model.load_state_dict(converted.state)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        patches = (
            torch.nn.functional.unfold(images, 16, stride=8).mT
            @ state["patch_embed.proj.weight"].flatten(1).mT
        )
        torch.testing.assert_close(
            model.patch_embed(images), patches + state["patch_embed.proj.bias"], rtol=1e-4, atol=1e-4
        )
        assert model(images).shape == (1, 10)
    with pytest.raises(UserError, match="overlap, so visible ones show what hidden ones hold"):
        model.tokenize(images, targets=True)


def test_an_odd_number_of_arms_patches_is_refused():
    state = states.arm() | {"pos_embed": torch.randn(1, 10, 32)}
    with pytest.raises(UserError, match="of 3 x 3 patches these are not equally many"):
        family_of(state, FAMILIES).convert(state)


def test_layers_that_make_no_layout_of_maps_are_refused():
    state = {key: value for key, value in states.authors().items() if not key.startswith("layers.3.")}
    with pytest.raises(UserError, match="3 Mamba layers are not a multiple of 2 Transformer blocks"):
        family_of(state, FAMILIES).convert(state)


@pytest.mark.parametrize(
    ("prefix", "extra", "family", "unused"),
    [
        ("backbone.", {"head.mlp.0.weight": torch.ones(1)}, "DINO's training", ("head.mlp.0.weight",)),
        (
            "base_encoder.",
            {"base_encoder.head.0.weight": torch.ones(1), "predictor.0.weight": torch.ones(1)},
            "MoCo v3's training",
            ("base_encoder.head.0.weight", "predictor.0.weight"),
        ),
    ],
)
def test_the_encoder_inside_a_training_checkpoint_is_read(prefix, extra, family, unused):
    trunk = states.vit(with_head=False)
    state = below(prefix, trunk) | extra
    actual = family_of(state, FAMILIES)
    assert actual.name == family
    converted = actual.convert(state)
    assert (converted.unused, converted.holds) == (unused, "encoder")
    plain = family_of(trunk, FAMILIES).convert(trunk)
    assert converted.state.keys() == plain.state.keys()
    assert all(torch.equal(converted.state[key], plain.state[key]) for key in plain.state)


# ---- the command


def convert(file, out, *more):
    arguments = ["convert", str(file), "--out", str(out), *more]
    return main("map-vision", COMMANDS, DOMAIN.recipes, arguments)


def test_a_converted_classifier_is_a_run(tmp_path, capsys):
    state = states.mambar()
    assert convert(save(state, tmp_path / "mambar.pth"), tmp_path / "run") == 0
    assert f"Mamba-R, {len(state)} parameters mapped; none resampled" in capsys.readouterr().out
    model = map_vision.load(tmp_path / "run")
    assert model.classes == tuple("0123456789")
    expected = published.mambar(state, IMAGES)["logits"]
    torch.testing.assert_close(model(IMAGES), expected, rtol=1e-4, atol=1e-4)
    description = read_description(tmp_path / "run")
    assert description["holds"] == "classifier"
    assert description["family"] == "Mamba-R"
    assert description["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert description["crop_pct"] == 1.0
    overlaid = timm.create_model(
        description["name"],
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "run" / "model.safetensors"), "num_classes": 10},
        num_classes=10,
        **description["arguments"] | {"img_size": 32},
    ).eval()
    assert torch.equal(overlaid(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    "state",
    [
        states.vit(with_head=False),
        below("backbone.", states.vit(with_head=False)),
        below("base_encoder.", states.vit(with_head=False)) | {"base_encoder.head.0.weight": torch.ones(1)},
        states.mae(),
    ],
    ids=["ViT", "DINO", "MoCo v3", "MAE"],
)
def test_timm_makes_a_converted_encoder_from_its_description(tmp_path, state):
    file = save(state, tmp_path / "encoder.pth")
    decoder = ("--decoder_heads", "3") if "mask_token" in state else ()
    assert convert(file, tmp_path / "run", "--model.num_heads", "4", *decoder) == 0
    description = read_description(tmp_path / "run")
    assert description["arguments"]["keep_registers"]

    def create(**changes):
        return timm.create_model(
            description["name"],
            pretrained=True,
            pretrained_cfg_overlay={"file": str(tmp_path / "run" / "model.safetensors")},
            num_classes=0,
            **description["arguments"] | changes,
        ).eval()

    assert torch.equal(create()(IMAGES), map_vision.load(tmp_path / "run")(IMAGES))
    with pytest.raises(UserError, match=r"not used: encoder.registers.position, encoder.registers.token"):
        create(num_registers=0, global_pool="avg")


def test_a_pyramid_is_converted_with_the_windows_that_it_is_run_in(tmp_path):
    sizes = {"embed_dim": 64, "stem_dim": 4, "depths": (1, 1, 2, 2), "mlp_ratio": 3.0, "layer_scale": 1e-5}
    shapeless = {"num_heads": (2, 4), "window_size": (4, 2)}
    source = timm.create_model("map_mambavision_base", **sizes, **shapeless, num_classes=5).eval()
    file = save(source.state_dict(), tmp_path / "pyramid.pth.tar", "state_dict")
    changes = ["--model.num_heads", "2", "4", "--model.window_size", "4", "2"]
    assert convert(file, tmp_path / "run", *changes) == 0
    images = torch.randn(1, 3, 96, 80)
    assert torch.equal(map_vision.load(tmp_path / "run")(images), source(images))
    assert read_description(tmp_path / "run")["family"] == "MambaVision"
    with pytest.raises(
        UserError, match=r"is one of ours already, which model.json describes as map_mambavision"
    ):
        convert_checkpoint(DOMAIN, tmp_path / "run", tmp_path / "again", model={"num_heads": (2, 4)})


def test_heads_of_a_pyramid_of_another_width_are_asked_for(tmp_path, capsys):
    source = timm.create_model("map_mambavision_base", embed_dim=64, stem_dim=4, depths=(1, 1, 2, 2))
    file = save(source.state_dict(), tmp_path / "pyramid.pth.tar", "state_dict")
    assert convert(file, tmp_path / "run") == 2
    assert re.search(
        r"how many attention heads .* none of embed_dim 64 is published: give .*--model.num_heads 8 16",
        capsys.readouterr().err,
    )
    assert not (tmp_path / "run").exists()
    assert convert(file, tmp_path / "run", "--model.num_heads", "2", "4") == 0
    assert read_description(tmp_path / "run")["arguments"]["num_heads"] == [2, 4]


def test_positions_are_resampled_where_another_size_is_asked_for(tmp_path, capsys):
    file = save(states.vim(), tmp_path / "vim.pth")
    assert convert(file, tmp_path / "run", "--model.img_size", "48") == 0
    assert "1 resampled (encoder.position.table)" in capsys.readouterr().out
    model = map_vision.load(tmp_path / "run")
    assert model.img_size == (48, 48)
    assert model.encoder.position.table.shape == (6, 6, 32)


def test_positions_of_a_decoder_are_resampled_too(tmp_path, capsys):
    file = save(states.mae(), tmp_path / "mae.pth")
    sizes = ("--model.num_heads", "4", "--decoder_heads", "3", "--model.img_size", "48")
    assert convert(file, tmp_path / "run", *sizes) == 0
    assert "2 resampled (encoder.position.table, decoder.position.table)" in capsys.readouterr().out
    objective = map_vision.load_objective(tmp_path / "run").objective
    source = as_table(states.mae()["decoder_pos_embed"][0, 1:])
    torch.testing.assert_close(objective.decoder.position.table, resize_table(source, (6, 6)), rtol=0, atol=0)
    assert reconstruct(objective, torch.randn(2, 3, 48, 48)).reconstruction.shape == (2, 3, 48, 48)


@pytest.mark.parametrize(
    "state",
    [states.vit(), states.mae(), below("backbone.", states.vit(with_head=False))],
    ids=["ViT", "MAE", "DINO"],
)
def test_the_number_of_heads_is_reported_as_a_guess_unless_given(tmp_path, state):
    file, guess = save(state, tmp_path / "file.pth"), "how many attention heads there are: "
    changes = {"decoder_heads": 3} if "mask_token" in state else {}
    guessed = convert_checkpoint(DOMAIN, file, tmp_path / "guessed", objective=changes)
    assert sum(guess in note for note in guessed.notes) == 1
    configured = convert_checkpoint(
        DOMAIN, file, tmp_path / "configured", model={"num_heads": 4}, objective=changes
    )
    assert not any(guess in note for note in configured.notes)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_preprocessing_is_described_only_for_three_channels(in_chans):
    state = timm.create_model("vit_tiny_patch16_224", depth=1, in_chans=in_chans).state_dict()
    converted = family_of(state, FAMILIES).convert(state)
    assert bool(converted.preprocessing) == (in_chans == 3)
    assert any("normalised as ImageNet's" in note for note in converted.notes) == (in_chans == 3)


def test_heads_and_windows_of_a_pyramid_are_guessed_one_by_one():
    with torch.device("meta"):
        state = timm.create_model("map_mambavision_tiny").state_dict()
    guesses = family_of(state, FAMILIES).convert(state).guessed_settings
    guessed = {name: guess.note(name) for name, guess in guesses.items()}
    assert re.search(
        r"how large windows are .*: 14 7, as published, unless --model.window_size", guessed["window_size"]
    )
    assert "attention heads there are: 8 16, as published, unless --model.num_heads" in guessed["num_heads"]


def test_classes_are_named_by_a_file(tmp_path, capsys):
    file, names = save(states.vim(), tmp_path / "vim.pth"), tmp_path / "names.txt"
    names.write_text("".join(f"class {i}\n" for i in range(10)), encoding="utf-8-sig")
    assert convert(file, tmp_path / "run", "--classes", str(names)) == 0
    assert map_vision.load(tmp_path / "run").classes[::9] == ("class 0", "class 9")
    names.write_text("one\ntwo\n")
    assert convert(file, tmp_path / "other", "--classes", str(names)) == 2
    assert "has 10 classes, but 2 names were given" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_what_would_describe_nothing_of_a_file_is_refused(tmp_path, capsys):
    names, encoder = tmp_path / "names.txt", save(states.mae(), tmp_path / "mae.pth")
    names.write_text("one\ntwo\n")
    assert convert(encoder, tmp_path / "run", "--model.num_heads", "4", "--classes", str(names)) == 2
    assert "has no classes: leave --classes out" in capsys.readouterr().err
    classifier = save(states.vim(), tmp_path / "vim.pth")
    assert convert(classifier, tmp_path / "run", "--decoder_heads", "3") == 2
    assert "has no decoder, which --decoder_heads would describe: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("state", "heads"), [(states.mae(), 3), (states.authors(), 4)], ids=["MAE", "MAP's authors"]
)
def test_a_converted_pretraining_file_reconstructs_and_goes_on(tmp_path, state, heads, image_folder):
    file = save(state, tmp_path / "file.pth")
    changes = ["--model.num_heads", "4", "--decoder_heads", str(heads)]
    assert convert(file, tmp_path / "run", *changes) == 0
    objective = map_vision.load_objective(tmp_path / "run").objective
    assert torch.equal(objective.decoder.mask_token, state["mask_token"].reshape(-1))
    assert objective.decoder.blocks[0].attn.num_heads == heads
    pictures = reconstruct(objective, IMAGES)
    assert torch.equal(pictures.original, IMAGES)
    visible = pictures.masked != 0
    share = {"MAE with decoder": 0.25, "MAP's authors": 0.5}[read_description(tmp_path / "run")["family"]]
    assert visible.float().mean().item() == pytest.approx(share, abs=0.2)
    assert torch.equal(pictures.reconstruction[visible], IMAGES[visible])
    assert (pictures.reconstruction[~visible] != 0).all()
    for init, out in ((tmp_path / "run", "from_run"), (file, "from_file")):
        description = read_description(tmp_path / "run")
        settings = read_description(tmp_path / "run" / "pretraining.safetensors")["objective"]
        arguments = [f"--model.{key}={_text(value)}" for key, value in description["arguments"].items()]
        arguments += [
            f"--objective.{key}={_text(value)}" for key, value in settings.items() if value is not None
        ]
        arguments += [f"--model.name={description['name']}", f"--init={init}", "--init_decoder=true"]
        arguments += [f"--data.root={image_folder}", "--training.max_steps=1", "--training.batch_size=4"]
        arguments += [
            "--training.lr=1e-30",
            "--training.workers=0",
            "--training.device=cpu",
            f"--out={tmp_path / out}",
        ]
        arguments += [
            "--training.tensorboard=false",
            "--training.progress=false",
            "--training.warmup_epochs=0",
        ]
        assert main("map-vision", COMMANDS, DOMAIN.recipes, ["pretrain", *arguments]) == 0
        gone_on = map_vision.load_objective(tmp_path / out).objective.state_dict()
        for key, value in objective.state_dict().items():
            torch.testing.assert_close(gone_on[key], value, rtol=0, atol=1e-20)


def _text(value):
    return (
        str(list(value) if isinstance(value, tuple) else value)
        .replace("True", "true")
        .replace("False", "false")
    )


def test_a_converted_encoder_starts_a_classifier_of_its_own_shape(tmp_path, image_folder):
    """The run that --init names determines the model: no recipe is needed."""
    heads = ("--model.num_heads", "4", "--decoder_heads", "3")
    assert convert(save(states.mae(), tmp_path / "mae.pth"), tmp_path / "run", *heads) == 0
    arguments = [
        "finetune",
        f"--init={tmp_path / 'run'}",
        f"--data.root={image_folder}",
        f"--out={tmp_path / 'ft'}",
    ]
    arguments += ["--training.max_steps=1", "--training.batch_size=4", "--training.workers=0"]
    arguments += ["--training.device=cpu", "--training.tensorboard=false", "--training.progress=false"]
    assert main("map-vision", COMMANDS, DOMAIN.recipes, arguments) == 0
    model = map_vision.load(tmp_path / "ft")
    assert model.classes == ("bright", "dark", "gray")
    assert len(model.encoder.blocks) == 2


def test_a_decoder_must_be_there_to_go_on_with(tmp_path, image_folder, capsys):
    file = save(states.vit(with_head=False), tmp_path / "vit.pth")
    arguments = [f"--init={file}", "--init_decoder=true", "--model.name=map_vit_tiny_patch16_224"]
    arguments += ["--model.embed_dim=32", "--model.layout=Tx2", "--model.num_heads=4", "--model.img_size=32"]
    arguments += ["--model.patch_size=8", "--model.keep_registers=true", f"--data.root={image_folder}"]
    assert (
        main("map-vision", COMMANDS, DOMAIN.recipes, ["pretrain", *arguments, f"--out={tmp_path / 'run'}"])
        == 2
    )
    assert "vit.pth has no decoder to start from; leave --init_decoder out" in capsys.readouterr().err
