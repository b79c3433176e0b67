"""Exported programs give what their models give, run without this project, and say what they do not take.

The command runs in processes of its own, as the shape checker of the test run cannot be exported.
"""

import json
import textwrap

import numpy as np
import onnxruntime
import pytest
import torch
import warm

from map_core.tasks.weights import save_weights
from map_vision.factory import MODELS, ModelConfig

SMALL = {"embed_dim": 16, "img_size": 16, "layout": "MT", "num_heads": 2, "num_registers": 2}
PYRAMID = {
    "embed_dim": 32,
    "img_size": 64,
    "stem_dim": 4,
    "depths": (1, 1, 2, 2),
    "num_heads": (2, 2),
    "window_size": (3, 2),
}
MODELS_TRIED = {
    "hybridnet": ModelConfig("hybridnet_nano_patch4_32", **SMALL),
    "mambavision": ModelConfig("map_mambavision_tiny", **PYRAMID),
}
CLASSES = ("cat", "dog", "owl")
ONNX = [("hybridnet", "logits"), ("hybridnet", "tokens"), ("mambavision", "logits")]


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """Write a classifier with random weights as the directory of a run."""

    def make(kind):
        torch.manual_seed(0)
        config, run = MODELS_TRIED[kind], tmp_path_factory.mktemp("run")
        model = MODELS.create_classifier(config, len(CLASSES))
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand_like(value))  # no parameter is 0, no mean either
        told = {"task": "finetune", "holds": "classifier", "classes": list(CLASSES), "weights": "raw"}
        save_weights(run / "model.safetensors", model.state_dict(), MODELS.describe(config, **told))
        return run

    return make


def export(run, out, *options):
    return warm.run("-m", "map_vision", "export", run, "--out", out, *options)


@pytest.fixture(scope="module", params=ONNX, ids=" of ".join)
def onnx_file(request, make_run, tmp_path_factory):
    """An exported file, the model and which of its results the file has."""
    kind, output = request.param
    run, file = make_run(kind), tmp_path_factory.mktemp("onnx") / "new" / "model.onnx"
    printed = export(run, file, *(["--encoder"] if output == "tokens" else []))
    assert "differs from the model by at most" in printed
    return file, MODELS.load(run), output


def results_of(model, images, output):
    with torch.no_grad():
        if output == "logits":
            return [model(images)]
        tokens = model.forward_features(images)
        return [model.forward_head(tokens, pre_logits=True), tokens]


@pytest.mark.parametrize("batch", [1, 4])
def test_onnx_runtime_gives_what_the_model_gives(onnx_file, batch):
    file, model, output = onnx_file
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = torch.randn(batch, 3, *model.img_size)
    wanted = results_of(model, images, output)
    got = session.run(None, {"images": images.numpy()})
    for one, other in zip(got, wanted, strict=True):
        assert other.std() > 1e-3
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)


def test_a_file_says_what_it_is(onnx_file):
    file, model, output = onnx_file
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, *model.img_size])
    names = [result.name for result in session.get_outputs()]
    assert names == (["logits"] if output == "logits" else ["features", "tokens"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["map"])
    assert told["outputs"] == names
    assert told["classes"] == list(CLASSES)
    assert told["arguments"]["embed_dim"] == model.embed_dim


def test_images_of_another_size_are_refused_by_onnx_runtime(onnx_file):
    file, model, _ = onnx_file
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    wrong = np.zeros((1, 3, 96, model.img_size[1]), np.float32)
    with pytest.raises(Exception, match=f"images for the following indices\n index: 2 Got: 96 Expected: {model.img_size[0]}"):
        session.run(None, {"images": wrong})


ELSEWHERE = """
    import sys
    for name in ("map_core", "map_vision", "map_points", "timm"):
        assert name not in sys.modules or name == "timm"
        sys.modules[name] = None  # importing it is an error
    import json, torch

    folder, size = sys.argv[1], int(sys.argv[2])
    told = {"map.json": ""}
    program = torch.export.load(f"{folder}/model.pt2", extra_files=told)
    assert json.loads(told["map.json"])["classes"] == ["cat", "dog", "owl"]
    for images, wanted in torch.load(f"{folder}/wanted.pt"):
        torch.testing.assert_close(program.module()(images), wanted, rtol=1e-4, atol=1e-5)
    try:
        program.module()(torch.zeros(1, 3, size + 16, size))
    except AssertionError as error:
        print(error)
"""


def test_a_program_of_torch_export_runs_where_this_project_is_not(make_run, tmp_path):
    run = make_run("hybridnet")
    export(run, tmp_path / "model.pt2", "--format", "torch-export", "--model.img_size", "32")
    model = MODELS.load(run)
    model.set_input_size(32)
    samples = [torch.randn(batch, 3, 32, 32) for batch in (1, 5)]
    torch.save([(images, model(images).detach()) for images in samples], tmp_path / "wanted.pt")
    printed = warm.run("-c", textwrap.dedent(ELSEWHERE), tmp_path, 32)
    assert "Guard failed: x.size()[2] == 32" in printed
