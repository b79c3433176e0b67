"""Exported point models: clouds of any number and size, centres and neighbours by the same rules.

The command runs in a process of its own, as the shape checker of the test run cannot be exported.
"""

import json

import numpy as np
import onnxruntime
import pytest
import torch
import warm

from map_core.tasks.weights import save_weights
from map_points.factory import MODELS, PointModelConfig

CONFIG = PointModelConfig(
    "hybridnet3d_nano",
    embed_dim=16,
    layout="MT",
    num_heads=2,
    num_patches=8,
    patch_size=4,
    patch_hidden_dim=8,
)  # in the order of a Hilbert curve


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A classifier with random weights as the directory of a run, exported."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("run"), MODELS.create_classifier(CONFIG, 3)
    description = {"task": "finetune", "holds": "classifier", "classes": ["a", "b", "c"], "weights": "raw"}
    save_weights(folder / "model.safetensors", model.state_dict(), MODELS.describe(CONFIG, **description))
    warm.run("-m", "map_points", "export", folder, "--out", folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def session(run):
    return onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])


def clouds_of(kind):
    """Clouds with and without ties of distances, which the lower index wins."""
    if kind == "random":
        return torch.randn(3, 200, 3)
    side = torch.arange(4.0)
    cells = torch.cartesian_prod(side, side, side)  # many neighbours at one distance
    return torch.stack([cells, cells.flip(0)])


@pytest.mark.parametrize("kind", ["random", "grid"])
def test_onnx_runtime_gives_what_the_model_gives(session, run, kind):
    clouds = clouds_of(kind)
    expected = MODELS.load(run)(clouds).detach()
    (output,) = session.run(None, {"clouds": clouds.numpy()})
    assert expected.std() > 1e-3
    np.testing.assert_allclose(output, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_file_leaves_the_number_of_clouds_and_points_free(session):
    (clouds,) = session.get_inputs()
    assert (clouds.name, clouds.shape) == ("clouds", ["batch", "points", 3])
    assert json.loads(session.get_modelmeta().custom_metadata_map["map"])["classes"] == ["a", "b", "c"]


def test_points_of_other_channels_are_refused_by_onnx_runtime(session):
    with pytest.raises(Exception, match="clouds for the following indices\n index: 2 Got: 4 Expected: 3"):
        session.run(None, {"clouds": np.zeros((1, 64, 4), np.float32)})
