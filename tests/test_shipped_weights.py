"""Weights that the repository ships: a clone reads them offline, an installation tells where to get them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml

import map_points.domain
import map_vision.domain
from map_core import UserError
from map_core.tasks.weights import read_description, save_weights
from map_points import create_point_model

ROOT = Path(__file__).parents[1]
PACKAGES = ("map-core", "map-vision", "map-points")
IMAGE_MODEL, POINT_MODEL = "hybridnet_nano_patch4_32", "hybridnet3d_nano"
CLASSES = [f"class {number}" for number in range(10)]
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
INPUTS = (
    "import torch; torch.manual_seed(0); x = torch.randn(2, 3, 32, 32); clouds = torch.randn(2, 128, 3)\n"
)
IMPORTS = """
import timm, map_vision
from map_points import create_point_model
def refusal(create):
    try:
        create()
    except ValueError as error:
        return str(error)
"""
CREATE = f"timm.create_model({IMAGE_MODEL!r}, pretrained=True"


def copy_packages(root, layout):
    """Copy the packages' sources below another root, laid out as a clone or an installation; return sys.path."""
    places = []
    for package in PACKAGES:
        place = root / layout.format(package)
        shutil.copytree(
            ROOT / "packages" / package / "src",
            place,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
        places.append(place)
    return list(dict.fromkeys(places))


def run_python(places, code):
    """Run code with only these copies of our packages; return its output and its error output."""
    path = os.pathsep.join(map(str, places))
    env = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS + INPUTS + code], capture_output=True, text=True, env=env, check=False
    )
    return result.stdout.strip(), result.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone that ships a classifier of images and one of clouds."""
    root = tmp_path_factory.mktemp("clone")
    places = copy_packages(root, "packages/{}/src")
    torch.manual_seed(0)
    image, point = timm.create_model(IMAGE_MODEL), create_point_model(POINT_MODEL, 10)
    preprocessing = {
        "channels": 3,
        "mean": MEAN,
        "std": STD,
        "interpolation": "bilinear",
        "crop_pct": 0.5,
        "crop_pct_small": 1.0,
    }
    common = {"arguments": {}, "holds": "classifier", "task": "finetune", "classes": CLASSES}
    for model, name, extra in ((image, IMAGE_MODEL, preprocessing), (point, POINT_MODEL, {})):
        folder = root / "weights" / name
        folder.mkdir(parents=True)
        save_weights(folder / "model.safetensors", model.state_dict(), {"name": name, **common, **extra})
    return places, image.eval(), point.eval()


def inputs():
    torch.manual_seed(0)
    return torch.randn(2, 3, 32, 32), torch.randn(2, 128, 3)


READ = {
    "images": f"{CREATE}).eval()(x)",
    "features": f"{CREATE}, num_classes=3).eval().forward_features(x)",
    "another head": f"{CREATE}, num_classes=3)(x).shape",
    "gray": f"{CREATE}, in_chans=1).patch_embed.proj.weight",
    "another size": f"{CREATE}, img_size=48).encoder.position.table.shape",
    "clouds": f"create_point_model({POINT_MODEL!r}, pretrained=True).eval()(clouds)",
    "another head for clouds": f"create_point_model({POINT_MODEL!r}, 4, pretrained=True).eval()(clouds).shape",
    "listed": f"{IMAGE_MODEL!r} in timm.list_models(pretrained=True)",
    "cfg": f"{CREATE}).pretrained_cfg",
    "another order": f"refusal(lambda: {CREATE}, order='column'))",
    "another order of a card": "refusal(lambda: timm.create_model(card, pretrained=True, order='column'))",
    "more layers": f"refusal(lambda: {CREATE}, num_classes=3, layout='(MMMT)x3'))",
    "registers": f"refusal(lambda: {CREATE}, num_classes=3, num_registers=4, global_pool='register'))",
    "another width": f"refusal(lambda: {CREATE}, num_classes=3, embed_dim=64))",
    "larger patches": f"refusal(lambda: {CREATE}, num_classes=3, patch_size=8))",
    "one way": f"refusal(lambda: {CREATE}, num_classes=3, bidirectional=False))",
    "the same order": f"{CREATE}, order='row').order",
}
EXPECTED = {
    "images": lambda image, point: image(inputs()[0]),
    "features": lambda image, point: image.forward_features(inputs()[0]),
    "another head": lambda image, point: torch.Size([2, 3]),
    "gray": lambda image, point: image.patch_embed.proj.weight.sum(1, keepdim=True),
    "another size": lambda image, point: torch.Size([12, 12, 128]),
    "clouds": lambda image, point: point(inputs()[1]),
    "another head for clouds": lambda image, point: torch.Size([2, 4]),
}


@pytest.fixture(scope="module")
def read(clone, tmp_path_factory):
    """The value of each expression of ``READ`` in a process that runs from the clone."""
    out = tmp_path_factory.mktemp("read") / "values.pt"
    values = ", ".join(f"{name!r}: {code}" for name, code in READ.items())
    folder = clone[0][0].parents[2] / "weights" / IMAGE_MODEL
    domain = map_vision.domain.DOMAIN
    config = domain.timm_config(domain.models.read_model_config(folder), read_description(folder))
    card = tmp_path_factory.mktemp("cards") / "card"
    shutil.copytree(folder, card)
    (card / "config.json").write_text(json.dumps(config))
    code = f"card = {f'local-dir:{card}'!r}\nwith torch.no_grad(): torch.save({{{values}}}, {str(out)!r})"
    _, errors = run_python(clone[0], code)
    assert out.exists(), errors
    return torch.load(out)


@pytest.mark.parametrize("what", EXPECTED)
def test_a_clone_reads_its_weights(clone, read, what):
    with torch.no_grad():
        torch.testing.assert_close(read[what], EXPECTED[what](*clone[1:]))


def test_timm_lists_them(read):
    cfg = read["cfg"]
    assert read["listed"]
    assert (cfg["mean"], cfg["std"], cfg["interpolation"], cfg["crop_pct"]) == (
        tuple(MEAN),
        tuple(STD),
        "bilinear",
        1.0,
    )
    assert (cfg["input_size"], cfg["classifier"], cfg["num_classes"]) == ((3, 32, 32), "head", 10)
    assert cfg["label_names"] == CLASSES
    assert Path(cfg["file"]).parts[-3:] == ("weights", IMAGE_MODEL, "model.safetensors")


def test_weights_are_not_made_to_mean_something_else(read):
    for where in ("another order", "another order of a card"):
        assert "were trained with order='row'; with 'column' they would fit" in read[where]
    assert read["the same order"] == "row"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("more layers", "missing: encoder.blocks.8.norm.weight"),
        ("registers", "missing: encoder.registers.token, encoder.registers.position;"),
        ("one way", "not used: encoder.blocks.0.mixer.scan_backward"),
        ("another width", "shapes: patch_embed.proj.weight (128, 3, 4, 4) for (64, 3, 4, 4), "),
        ("larger patches", "shapes: patch_embed.proj.weight (128, 3, 4, 4) for (128, 3, 8, 8); leave out"),
    ],
)
def test_no_layer_but_the_head_is_random_or_left_out(read, what, message):
    assert f"the pretrained weights do not fit this model: {message}" in read[what]


def test_a_broken_description_is_reported_and_timm_still_imports(clone, tmp_path):
    places = copy_packages(tmp_path, "packages/{}/src")
    folder = tmp_path / "weights" / IMAGE_MODEL
    shutil.copytree(clone[0][0].parents[2] / "weights" / IMAGE_MODEL, folder)
    (folder / "model.json").write_text('{"name": ')
    _, errors = run_python(places, f"timm.create_model('resnet10t'); {CREATE})")
    assert f"UserError: {folder / 'model.json'} is not valid JSON" in errors


def test_an_installation_says_where_to_get_them(tmp_path):
    places = copy_packages(tmp_path, "site-packages")
    output, _ = run_python(
        places,
        f"""
for create in (lambda: {CREATE}), lambda: create_point_model({POINT_MODEL!r}, pretrained=True)):
    print(refusal(create))
print(timm.list_models(pretrained=True, filter="hybridnet*"))
""",
    )
    *errors, model_list = output.splitlines()
    for name, error in zip((IMAGE_MODEL, POINT_MODEL), errors, strict=True):
        assert (
            f"no pretrained weights of {name} are here (this package was installed without the repository)"
            in error
        )
        assert "hf-hub:USER/NAME" in error
    assert model_list == "[]"


def sharing_page_matches(folder):
    """Whether the sharing page has the number of parameters and the accuracy of a folder's card."""
    card = (folder / "README.md").read_text()
    parameters = re.search(r"([\d,]+) parameters", card)[1]
    accuracy = re.search(r"^\| test_accuracy \| (\S+) \|", card, re.MULTILINE)[1]
    (row,) = re.findall(rf"^\| `{folder.name}` \|.*", (ROOT / "docs/sharing.md").read_text(), re.MULTILINE)
    return row.endswith(f"| {parameters} | {accuracy} |")


def test_no_program_takes_the_models_of_the_other_for_its_own():
    image, point = map_vision.domain.DOMAIN.models, map_points.domain.DOMAIN.models
    assert not {*image.names} & {*point.names}
    for models, other in ((image, POINT_MODEL), (point, IMAGE_MODEL)):
        with pytest.raises(
            UserError, match=rf"{other} holds {other}, which is no model of this program: use map-"
        ):
            models.load(ROOT / "weights" / other)


def test_shipped_models_match_their_names():
    folders = sorted((ROOT / "weights").glob("*/"))
    assert [folder.name for folder in folders] == sorted((IMAGE_MODEL, POINT_MODEL))
    for folder in folders:
        description, size = read_description(folder), (folder / "model.safetensors").stat().st_size
        assert (description["name"], description["arguments"]) == (folder.name, {})
        assert size <= 6e6, folder
        front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
        assert front["license"] != "unknown"
        assert sharing_page_matches(folder)
        domain = map_vision.domain.DOMAIN if (folder / "config.json").exists() else map_points.domain.DOMAIN
        loaded = domain.models.load(folder)  # complete, or refused
        if domain.timm_config is not None:
            timm_model = timm.create_model(folder.name, pretrained=True)
            state = loaded.state_dict()
            assert all(torch.equal(value, state[key]) for key, value in timm_model.state_dict().items())
            timm_config = domain.timm_config(domain.models.read_model_config(folder), description)
            assert json.loads((folder / "config.json").read_text()) == json.loads(json.dumps(timm_config))
        else:
            state = create_point_model(folder.name, pretrained=True).state_dict()
            assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
