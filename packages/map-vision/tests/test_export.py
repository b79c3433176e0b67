"""Exported programs give the models' outputs, run without this project, and refuse what they do not take.

Commands run in a process of their own, as the shape checker of the test run cannot be exported.
"""

import json
import textwrap

import numpy as np
import onnxruntime
import pytest
import torch
import warm

from map_core.commands.program import main
from map_core.tasks.weights import save_weights
from map_vision.cli import COMMANDS
from map_vision.factory import MODELS, ModelConfig

SMALL = {"embed_dim": 16, "img_size": 16, "layout": "MT", "num_heads": 2, "num_registers": 2}
PYRAMID = {
    "embed_dim": 32,
    "img_size": 64,
    "stem_dim": 4,
    "depths": (1, 1, 1, 2),
    "num_heads": (2, 2),
    "window_size": (3, 2),
}
CONFIGS = {
    "hybridnet": ModelConfig("hybridnet_nano_patch4_32", **SMALL),
    "mambavision": ModelConfig("map_mambavision_tiny", **PYRAMID),
}
CLASSES = ["cat", "dog", "owl"]
ONNX = {  # model and options
    "encoder": ("hybridnet", ["--encoder", "--any_size"]),
    "classifier": ("hybridnet", []),
    "pyramid": ("mambavision", ["--any_size"]),
}
SIZES = {
    "encoder": [(16, 16), (20, 32)],
    "classifier": [(16, 16)],
    "pyramid": [(64, 64), (33, 70), (128, 160)],
}
ARCHIVES = {"model": ["--model.img_size", "32"], "sizes": ["--any_size"]}
REFUSED = "refused.pt2"
EXPORT = """
    import json, sys
    from map_core.commands.program import main
    from map_vision.cli import COMMANDS

    sys.stderr = sys.stdout
    for out, arguments in json.loads(sys.argv[1]).items():
        arguments = ["export", *arguments, "--out", out]
        status = main("map-vision", COMMANDS, "map_vision.recipes", arguments)
        assert status == (2 if out.endswith(sys.argv[2]) else 0), out
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def runs(folder):
    """Run directories of classifiers and a pretrained encoder with random weights."""
    torch.manual_seed(0)
    classifier = {"task": "finetune", "holds": "classifier", "classes": CLASSES, "weights": "raw"}
    encoder = {"task": "pretrain", "holds": "encoder", "weights": "raw"}
    for kind, info in {"hybridnet": classifier, "mambavision": classifier, "pretrained": encoder}.items():
        config = CONFIGS["hybridnet" if kind == "pretrained" else kind]
        is_classifier = info is classifier
        model = (
            MODELS.create_classifier(config, len(CLASSES))
            if is_classifier
            else MODELS.create_backbone(config)
        )
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand_like(value))  # no parameter is 0, nor any mean
        (folder / kind).mkdir()
        save_weights(folder / kind / "model.safetensors", model.state_dict(), MODELS.describe(config, **info))
    return folder


@pytest.fixture(scope="module")
def printed(runs):
    """What exporting printed, in one process, as imports and the first export take long."""
    archive = ["--format", "torch-export"]
    commands = {f"{name}.onnx": [kind, *options] for name, (kind, options) in ONNX.items()}
    commands |= {f"{name}.pt2": ["pretrained", *archive, *options] for name, options in ARCHIVES.items()}
    commands[REFUSED] = ["mambavision", *archive, "--any_size"]
    arguments = {str(runs / out): [str(runs / kind), *options] for out, (kind, *options) in commands.items()}
    return warm.run("-c", textwrap.dedent(EXPORT), json.dumps(arguments), REFUSED)


@pytest.fixture(scope="module")
def exported(runs, printed):
    """Every exported program that this file tests."""
    assert printed.count("differs from the model by at most") == len(ONNX) + len(ARCHIVES)
    return runs


@pytest.fixture(params=ONNX)
def program(request, exported):
    """An exported program, its name and the model."""
    name = request.param
    session = onnxruntime.InferenceSession(exported / f"{name}.onnx", providers=["CPUExecutionProvider"])
    return session, name, MODELS.load(exported / ONNX[name][0])


def results_of(model, images, name):
    with torch.no_grad():
        if name != "encoder":
            return [model(images)]
        tokens = model.forward_features(images)
        return [model.forward_head(tokens, pre_logits=True), tokens]


@pytest.mark.parametrize("batch", [1, 4])
def test_onnx_runtime_gives_what_the_model_gives(program, batch):
    session, name, model = program
    for size in SIZES[name]:
        images = torch.randn(batch, 3, *size)
        results = session.run(None, {"images": images.numpy()})
        for result, expected in zip(results, results_of(model, images, name), strict=True):
            assert expected.std() > 1e-3
            np.testing.assert_allclose(result, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_file_says_what_it_is(program):
    session, name, model = program
    (images,) = session.get_inputs()
    size = list(model.img_size) if name == "classifier" else ["height", "width"]
    assert (images.name, images.shape) == ("images", ["batch", 3, *size])
    outputs = [output.name for output in session.get_outputs()]
    assert outputs == (["features", "tokens"] if name == "encoder" else ["logits"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["map"])
    assert (metadata["inputs"], metadata["outputs"]) == ({"images": images.shape}, outputs)
    assert metadata["classes"] == CLASSES
    assert metadata["arguments"]["embed_dim"] == model.embed_dim


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("encoder", (1, 4, 16, 16), "images for the following indices\n index: 1 Got: 4 Expected: 3"),
        ("classifier", (1, 3, 16, 32), "images for the following indices\n index: 3 Got: 32 Expected: 16"),
    ],
)
def test_onnx_runtime_refuses_images_of_another_size(exported, name, shape, message):
    session = onnxruntime.InferenceSession(exported / f"{name}.onnx", providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match=message):
        session.run(None, {"images": np.zeros(shape, np.float32)})


ELSEWHERE = """
    import sys
    for name in ("map_core", "map_vision", "map_points"):
        assert name not in sys.modules
        sys.modules[name] = None  # importing it is an error
    import json, torch

    folder = sys.argv[1]
    for name, results in torch.load(f"{folder}/expected.pt").items():
        metadata = {"map.json": ""}
        program = torch.export.load(f"{folder}/{name}.pt2", extra_files=metadata).module()
        assert json.loads(metadata["map.json"])["outputs"] == ["features", "tokens"]
        for images, expected in results:
            torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)
    program = torch.export.load(f"{folder}/model.pt2").module()
    try:
        program(torch.zeros(1, 3, 48, 32))
    except AssertionError as error:
        print(error)
"""


def test_a_program_of_torch_export_runs_where_this_project_is_not(exported):
    model = MODELS.load(exported / "pretrained")
    samples = {
        "sizes": [(1, 3, 16, 16), (2, 3, 20, 32), (2, 3, 48, 8)],
        "model": [(1, 3, 32, 32), (5, 3, 32, 32)],
    }
    expected = {}
    for name, shapes in samples.items():
        if name == "model":
            model.set_input_size(32)
        images = [torch.randn(shape) for shape in shapes]
        expected[name] = [(image, tuple(results_of(model, image, "encoder"))) for image in images]
    torch.save(expected, exported / "expected.pt")
    printed = warm.run("-c", textwrap.dedent(ELSEWHERE), exported)
    assert "Guard failed: inputs.size()[2] == 32" in printed


def test_windows_that_torch_export_fixes_are_refused_for_any_size(runs, printed):
    assert "cannot be written as torch-export for any size" in printed
    assert "set --any_size false, try another --format" in printed
    assert not (runs / REFUSED).exists()


def test_a_run_of_something_else_is_refused(tmp_path, capsys):
    save_weights(
        tmp_path / "pretraining.safetensors",
        {"mask": torch.zeros(1)},
        {"name": "hybridnet_tiny_patch16_224", "holds": "decoder"},
    )
    arguments = ["export", str(tmp_path / "pretraining.safetensors")]
    assert main("map-vision", COMMANDS, "map_vision.recipes", arguments) == 2
    assert (
        "describes neither an encoder nor a classifier (its .json says: decoder)" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            ["num_heads", "4"],
            "even where its weights fit, they would mean something else; leave out model.num_heads",
        ),
        (["in_chans", "1"], "which its first layer does not fit; leave out model.in_chans"),
        (
            ["img_size", "30"],
            "makes no model with model.img_size 30: image size 30x30 does not fit patch size",
        ),
    ],
)
def test_settings_that_do_not_fit_a_run_are_to_be_left_out(option, message, tmp_path, capsys):
    config = CONFIGS["hybridnet"]
    weights = MODELS.create_classifier(config, len(CLASSES)).state_dict()
    description = {"name": config.name, "arguments": SMALL, "holds": "classifier", "classes": CLASSES}
    save_weights(tmp_path / "model.safetensors", weights, description)
    name, value = option
    arguments = ["export", str(tmp_path), f"--model.{name}", value]
    assert main("map-vision", COMMANDS, "map_vision.recipes", arguments) == 2
    assert message in capsys.readouterr().err
