"""Point checkpoints are recognised by their keys, described as what they are, and refused where they do not fit."""

import re
from dataclasses import replace

import point_states as states
import published_points as published
import pytest
import torch
from converted_points import FixedMask
from other_shapes import refused_shapes
from point_states import CUT, OURS, POINTS

import map_points
from map_core import Draw
from map_core.commands.program import main
from map_core.commands.standard import configs
from map_core.errors import UserError
from map_core.tasks.conversion import convert_checkpoint
from map_core.tasks.families import family_of
from map_core.tasks.pretraining import PretrainTask
from map_core.tasks.weights import read_description, read_settings
from map_core.training import train
from map_points.checkpoints import FAMILIES
from map_points.checkpoints.part_segmentation import CATEGORIES, parts_of_categories
from map_points.checkpoints.shared import MODELNET40
from map_points.cli import COMMANDS
from map_points.domain import DOMAIN
from map_points.factory import PointModelConfig, create_backbone, create_classifier, create_probed
from map_points.pretraining import PointObjectiveConfig
from map_points.segmentation.task import SegmentationConfig, build_segmenter, load_segmenter, start_from
from map_points.weights import load_init

FILES = {
    "Point-MAE": states.point_mae,
    "Point-MAE's pretraining": states.point_mae_pretraining,
    "Point-MAE's part segmentation": states.point_mae_parts,
    "Mamba3D": states.mamba3d,
    "PointMamba": states.point_mamba,
    "PointMamba's pretraining": states.point_mamba_pretraining,
}
SIZES = {"embed_dim": 32, "patch_hidden_dim": 16}
MODELS_OF_FILES = {
    "Point-MAE": {"name": "point_mae", **SIZES, "head_dim": 24, "layout": "Tx2", "num_heads": 1},
    "Point-MAE's pretraining": {
        "name": "point_mae", **SIZES, "layout": "Tx2", "num_heads": 1, "patch_size": 4,
    },
    "Point-MAE's part segmentation": {
        "name": "point_mae", **SIZES, "layout": "Tx3", "num_heads": 1, "num_patches": 128,
    },
    "Mamba3D": {"name": "mamba3d_authors", **SIZES, "head_dim": 24, "layout": "Mx2"},
    "PointMamba": {"name": "point_mamba", **SIZES, "head_dim": 24, "layout": "Sx2"},
    "PointMamba's pretraining": {"name": "point_mamba", **SIZES, "layout": "Sx2", "patch_size": 4},
}  # fmt: skip
HIDDEN = torch.rand(2, 8, generator=torch.Generator().manual_seed(2)).argsort(1).argsort(1) < 5
SHAPENETPART = CATEGORIES, tuple(map(tuple, parts_of_categories()))
PARTS = SegmentationConfig(layers=(1, 2, 3), hidden_dim=16, propagate_dim=40, category_slope=0.2)


def save(state, path, wrapper="base_model"):
    torch.save({wrapper: {f"module.{key}": value for key, value in state.items()}}, path)
    return path


def config_of(name, **changes):
    return PointModelConfig(**{**MODELS_OF_FILES[name], **OURS, **changes})


# ---- recognition


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_of_one_family_alone_and_its_shapes_say_which_model_it_is(name):
    state = FILES[name]()
    assert [family.name for family in FAMILIES if family.has(list(state))] == [name]
    assert family_of(state, FAMILIES).convert(state).model == MODELS_OF_FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_other_shapes_are_a_sentence_that_names_the_file(name):
    state = FILES[name]()
    assert refused_shapes(family_of(state, FAMILIES), state)


@pytest.mark.parametrize("create", [create_classifier, create_probed], ids=["classifier", "probed"])
@pytest.mark.parametrize("name", ["point_mae", "point_mamba", "mamba3d_authors", "hybridnet3d"])
def test_a_file_of_ours_is_of_no_family(name, create):
    with torch.device("meta"):
        assert family_of(create(PointModelConfig(name), 40).state_dict(), FAMILIES) is None


def test_forty_outputs_are_modelnet40s_classes():
    state = states.point_mae()
    last = {"cls_head_finetune.8.weight": torch.randn(40, 24), "cls_head_finetune.8.bias": torch.randn(40)}
    classes = family_of(state, FAMILIES).convert(state | last).classes
    assert classes == MODELNET40 == tuple(sorted(MODELNET40))
    assert (len(set(classes)), classes[0], classes[-1]) == (40, "airplane", "xbox")


def test_parts_are_numbered_through_as_shapenetparts():
    parts = parts_of_categories()
    assert [part for labels in parts for part in labels] == list(range(50))
    assert parts[0] == [0, 1, 2, 3]  # of an airplane
    assert parts[15] == [47, 48, 49]  # of a table


@pytest.mark.parametrize(
    ("state", "nearest", "against"),
    [
        (states.point_mae() | {"gamma": torch.ones(1)}, "Point-MAE", "1 of its .* keys are none of that: gamma"),
        (
            {key: value for key, value in states.mamba3d().items() if "mixer" not in key or "_b" not in key},
            "Mamba3D",
            r"it lacks blocks.blocks.#.mixer.A_b_log",
        ),
    ],
    ids=["a scale", "one way"],
)  # fmt: skip
def test_an_unknown_file_names_the_nearest_family_and_what_speaks_against_it(
    tmp_path, state, nearest, against
):
    file = save(state, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=rf"of no family .* nearest: {nearest}, but {against}"):
        load_init(create_classifier(config_of("Point-MAE"), 10), file)


def test_a_part_segmenter_of_other_parts_is_refused():
    state = states.point_mae_parts()
    state |= {"convs3.weight": torch.randn(51, 4, 1), "convs3.bias": torch.randn(51)}
    with pytest.raises(UserError, match="of 16 categories and 51 parts does not say which parts belong to"):
        family_of(state, FAMILIES).convert(state)


# ---- starting a model from a file


@pytest.mark.parametrize(
    ("name", "setting", "value", "has"),
    [
        ("Point-MAE", "pool", "max_plus_mean", "max"),
        ("Point-MAE", "skip_origin", False, True),
        ("Point-MAE", "repeat_position", False, True),
        ("Point-MAE's pretraining", "position_activation", "silu", "gelu"),
        ("Mamba3D", "position_activation", "gelu", "silu"),
        ("Mamba3D", "scan", "both", "channel_flip"),
        ("Mamba3D", "local_spread", "variance", "deviation"),
        ("Mamba3D", "local_class_token", False, True),
        ("Mamba3D", "order", "hilbert", "fps"),
        ("PointMamba", "order", "hilbert", "hilbert_cells"),
        ("PointMamba", "second_order", "hilbert", "hilbert_cells_swapped"),
        ("PointMamba's pretraining", "order", "fps", "hilbert_cells"),
    ],
)
def test_a_model_that_would_compute_something_else_is_refused(tmp_path, name, setting, value, has):
    file, config = save(FILES[name](), tmp_path / "file.pth"), config_of(name, **{setting: value})
    with pytest.raises(UserError, match=rf"of {name}, whose {setting} is {has!r}, and not {value!r}"):
        load_init(create_classifier(config, 10), file)


def test_a_model_of_other_heads_than_published_is_warned_of(tmp_path, caplog):
    file, config = save(states.point_mae(), tmp_path / "file.pth"), config_of("Point-MAE", num_heads=4)
    load_init(create_classifier(config, 10), file)
    assert "heads there are: this model has num_heads 4 and the published one 1, whose weights" in caplog.text
    assert "make the model with num_heads=1 (--model.num_heads 1)" in caplog.text


@pytest.mark.parametrize("name", ["Point-MAE", "Mamba3D", "PointMamba"])
def test_a_classifier_starts_whole_or_with_a_new_head(tmp_path, name):
    file = save(FILES[name](), tmp_path / "file.pth")
    report = load_init(create_classifier(config_of(name), 10), file)
    assert (report.family, report.missing, report.unused) == (name, (), ())
    report = load_init(create_classifier(config_of(name), 7), file)
    assert set(report.missing) == {key for key in report.unused if not key.endswith("num_batches_tracked")}
    assert all(key.startswith("head.") for key in report.missing)


def test_pretraining_starts_from_a_classifier_without_its_head(tmp_path):
    model = create_backbone(config_of("PointMamba"))
    report = load_init(model, save(states.point_mamba(), tmp_path / "file.pth"))
    assert report.missing == ()
    assert {key.split(".")[0] for key in report.unused} == {"head", "order_scale"}
    assert {key for key in report.unused if "order" in key} == {"order_scale.1.scale", "order_scale.1.shift"}


def test_a_classifier_starts_from_a_pretraining_file_and_leaves_its_decoder(tmp_path, caplog):
    for name, missing in (
        ("Point-MAE's pretraining", {"encoder", "head"}),
        ("PointMamba's pretraining", {"head"}),
    ):
        model = create_classifier(config_of(name), 5)
        report = load_init(model, save(FILES[name](), tmp_path / "file.pth"))
        assert {key.split(".")[0] for key in report.missing} == missing
        assert any("mask_token" in key for key in report.unused)
        assert (
            "how many patches a cloud is cut into: 64, as published, unless --model.num_patches"
            in caplog.text
        )


# ---- convert


@pytest.mark.parametrize("name", FILES)
def test_given_settings_are_not_reported_as_guesses(tmp_path, name):
    file = save(FILES[name](), tmp_path / "file.pth")
    guesses = {"num_patches": 8, "patch_size": 4, "num_heads": 4}
    if "pretraining" in name:
        del guesses["patch_size"]  # which the decoder shows
    if name not in ("Point-MAE", "Point-MAE's pretraining", "Point-MAE's part segmentation"):
        del guesses["num_heads"]
    for settings in ({}, *({setting: value} for setting, value in guesses.items())):
        notes = " ".join(convert_checkpoint(DOMAIN, file, tmp_path / "run", model=settings).notes)
        guessed = {setting for setting in guesses if f"unless --model.{setting} says otherwise" in notes}
        assert guessed == guesses.keys() - settings.keys()


@pytest.mark.parametrize(("classes", "patches"), [(10, 64), (15, 128), (40, 64)])
@pytest.mark.parametrize("name", ["Point-MAE", "PointMamba"])
def test_classifiers_of_scanobjectnn_cut_clouds_into_as_many_patches_as_published(
    tmp_path, name, classes, patches
):
    state = FILES[name]()
    for part in ("weight", "bias"):
        state[f"cls_head_finetune.8.{part}"] = torch.randn(
            classes, *state[f"cls_head_finetune.8.{part}"].shape[1:]
        )
    file = save(state, tmp_path / "file.pth")
    report = convert_checkpoint(DOMAIN, file, tmp_path / "run")
    assert map_points.load(tmp_path / "run").num_patches == patches
    assert f"how many patches a cloud is cut into: {patches}, as published" in " ".join(report.notes)
    convert_checkpoint(DOMAIN, file, tmp_path / "run", model={"num_patches": 32})
    assert map_points.load(tmp_path / "run").num_patches == 32


def test_a_head_of_other_points_is_refused_with_the_setting_that_asks_for_it(tmp_path, capsys):
    file = save(states.point_mae_pretraining(), tmp_path / "file.pth")
    assert convert(file, tmp_path / "run", "--model.patch_size", "16") == 2
    message = (
        r"file.pth is of Point-MAE's pretraining, whose patch_size is 4, and not 16: .*--model.patch_size 4\)"
    )
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def convert(file, out, *more):
    changes = ["--model.num_patches", "8", "--model.patch_size", "4", *more]
    return main("map-points", COMMANDS, DOMAIN.recipes, ["convert", str(file), "--out", str(out), *changes])


@pytest.mark.parametrize("name", ["Point-MAE", "PointMamba"])
def test_a_converted_classifier_is_a_run(tmp_path, capsys, name):
    state = FILES[name]()
    assert convert(save(state, tmp_path / "file.pth"), tmp_path / "run") == 0
    assert (
        f"{name}, {len(state)} parameters mapped; none resampled; none left; none new"
        in capsys.readouterr().out
    )
    model = map_points.load(tmp_path / "run")
    assert model.classes == tuple("0123456789")
    heads = {"heads": 1} if name == "Point-MAE" else {}
    expected = getattr(published, FILES[name].__name__)(state, POINTS, **CUT, **heads)["logits"]
    torch.testing.assert_close(model(POINTS), expected, rtol=1e-4, atol=1e-4)
    description = read_description(tmp_path / "run")
    assert (description["holds"], description["family"]) == ("classifier", name)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("Point-MAE's pretraining", ("--model.num_heads", "4", "--decoder_heads", "4")),
        ("PointMamba's pretraining", ()),
    ],
)
def test_a_converted_pretraining_file_reconstructs_and_goes_on(
    tmp_path, two_classes, short_training, name, heads
):
    state = FILES[name]()
    file = save(state, tmp_path / "file.pth")
    assert convert(file, tmp_path / "run", *heads) == 0
    trained = map_points.load_objective(tmp_path / "run")
    objective = trained.objective.eval()
    objective.masking = FixedMask(HIDDEN)
    result = objective(POINTS, Draw.of_batch(2, seed=0))
    with_heads = {"heads": 4} if heads else {}
    expected = getattr(published, FILES[name].__name__)(state, POINTS, HIDDEN, **CUT, **with_heads)
    torch.testing.assert_close(result.loss, expected["loss"], rtol=1e-4, atol=0)
    for init in (tmp_path / "run", file):
        config = configs(DOMAIN).pretrain(
            model=trained.model,
            objective=trained.settings,
            training=short_training,
            init=str(init),
            init_decoder=True,
        )
        task = PretrainTask(DOMAIN, config, two_classes)
        for key, value in trained.objective.state_dict().items():
            assert torch.equal(task.model.state_dict()[key], value)
    decoder_fields = (
        () if trained.settings.decoder == "mamba" else ("decoder_repeat_position", "decoder_heads")
    )
    compared = {
        tmp_path / "run": decoder_fields,
        file: decoder_fields[:1],
    }  # a published file's heads are a guess
    for init, names in compared.items():
        for setting in names:
            trained_value = getattr(config.objective, setting)
            value = not trained_value if isinstance(trained_value, bool) else 1
            objective = replace(config.objective, **{setting: value})
            with pytest.raises(
                UserError, match=rf"was trained with objective.{setting} {trained_value}, this one has"
            ):
                PretrainTask(DOMAIN, replace(config, init=str(init), objective=objective), two_classes)
    before = {key: value.clone() for key, value in task.model.named_parameters()}
    train(task, config.training, tmp_path / "on", run_config=config)
    assert all(not torch.equal(value, before[key]) for key, value in task.model.named_parameters())


def test_point_mamba_pretrains_along_one_curve(tmp_path, two_classes, short_training):
    file = save(states.point_mamba_pretraining(), tmp_path / "file.pth")
    config = configs(DOMAIN).pretrain(
        model=config_of("PointMamba's pretraining"),
        objective=PointObjectiveConfig(decoder_dim=16, decoder_heads=2, decoder_depth=1),
        training=short_training,
        init=str(file),
    )
    task = PretrainTask(DOMAIN, config, two_classes)
    scale = states.point_mamba_pretraining()["MAE_encoder.OrderScale_gamma_1"]
    assert torch.equal(task.model.backbone.order_scale[0].scale, scale)
    before = {key: value.clone() for key, value in task.model.named_parameters()}
    train(task, config.training, tmp_path / "run", run_config=config)
    assert all(not torch.equal(value, before[key]) for key, value in task.model.named_parameters())


# ---- parts


def test_a_converted_part_segmenter_is_a_run_of_segment(tmp_path):
    state, category = states.point_mae_parts(), torch.tensor([3, 11])
    file = save(state, tmp_path / "file.pth", "model_state_dict")
    assert convert(file, tmp_path / "run", "--model.num_heads", "4") == 0
    run = load_segmenter(tmp_path / "run")
    assert (run.classes[0], run.classes[-1], run.parts[3]) == ("Airplane", "Table", (8, 9, 10, 11))
    expected = published.point_mae_parts(state, POINTS, category, **CUT, heads=4)["log_prob"]
    torch.testing.assert_close(run.model(POINTS, category).log_softmax(-1), expected, rtol=1e-4, atol=1e-4)


def test_segmentation_starts_from_a_whole_segmenter_or_a_pretrained_backbone(tmp_path):
    config = config_of("Point-MAE's part segmentation", num_heads=4)
    file = save(states.point_mae_parts(), tmp_path / "parts.pth", "model_state_dict")
    assert convert(file, tmp_path / "run", "--model.num_heads", "4") == 0
    for init in (file, tmp_path / "run"):
        model = build_segmenter(config, PARTS, 16, 50)
        start_from(model, str(init), *SHAPENETPART)
        assert torch.equal(model.head[1].bias, states.point_mae_parts()["convs3.bias"])
        assert torch.equal(model.backbone.encoder.norm.weight, states.point_mae_parts()["norm.weight"])
    pretrained = save(states.point_mae_pretraining(), tmp_path / "pretrained.pth")
    model = build_segmenter(config_of("Point-MAE's pretraining"), SegmentationConfig(), 16, 50)
    start_from(model, str(pretrained), *SHAPENETPART)
    expected = states.point_mae_pretraining()["MAE_encoder.norm.weight"]
    assert torch.equal(model.backbone.encoder.norm.weight, expected)


def test_the_head_of_a_file_is_kept_for_its_own_categories_alone(tmp_path, capsys):
    """As many categories and parts, in another order: the scores would mean something else."""
    file = save(states.point_mae_parts(), tmp_path / "parts.pth", "model_state_dict")
    model = build_segmenter(config_of("Point-MAE's part segmentation", num_heads=4), PARTS, 16, 50)
    start_from(model, str(file), CATEGORIES[::-1], SHAPENETPART[1])
    assert "is for other categories or parts (16 categories, Airplane, " in capsys.readouterr().out
    assert not torch.equal(model.head[1].bias, states.point_mae_parts()["convs3.bias"])
    assert torch.equal(model.backbone.encoder.norm.weight, states.point_mae_parts()["norm.weight"])


@pytest.mark.parametrize("origin", ["Point-MAE's pretraining", "PointMamba's pretraining"])
def test_another_patch_size_than_the_head_of_a_file_shows_is_refused(tmp_path, origin):
    file = save(FILES[origin](), tmp_path / "pretrained.pth")
    with pytest.raises(UserError, match=r"whose patch_size is 4, and not 8: .*--model.patch_size 4"):
        load_init(create_backbone(config_of(origin, patch_size=8)), file)


def test_another_patch_size_than_the_published_one_is_warned_of(tmp_path):
    file = save(FILES["Point-MAE"](), tmp_path / "classifier.pth")
    notes = {}
    for size in (32, 16):
        model = create_classifier(config_of("Point-MAE", patch_size=size), 40)
        notes[size] = " ".join(load_init(model, file).notes)
    warning = (
        "no file says how many points a patch has: this model has patch_size 16 and the published one 32"
    )
    assert warning in notes[16]
    assert warning not in notes[32]


def test_a_segmenter_made_otherwise_refuses_the_file(tmp_path):
    file = save(states.point_mae_parts(), tmp_path / "parts.pth", "model_state_dict")
    settings = read_settings(SegmentationConfig, {**vars(PARTS), "category_slope": 0.0}, "the test")
    model = build_segmenter(config_of("Point-MAE's part segmentation"), settings, 16, 50)
    with pytest.raises(
        UserError, match=r"with objective.category_slope 0.2, this model has 0.0: .*; set --obj"
    ):
        start_from(model, str(file), *SHAPENETPART)


def test_a_part_segmenter_starts_no_classifier(tmp_path):
    file = save(states.point_mae_parts(), tmp_path / "parts.pth", "model_state_dict")
    config = config_of("Point-MAE's part segmentation")
    with pytest.raises(
        UserError, match=r"parts.pth holds a part segmenter: map-points segment starts from it"
    ):
        load_init(create_classifier(config, 10), file)
