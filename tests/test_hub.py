"""Sharing through the Hub: upload, download, offline, refusals; no token in any file. A stand-in answers requests."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch

from map_core.errors import UserError
from map_core.tasks.hub import from_pretrained, push_to_hub
from map_core.tasks.weights import save_weights
from map_points import create_point_model
from map_points.domain import DOMAIN as POINTS
from map_vision.domain import DOMAIN as IMAGES

sys.path.insert(0, str(Path(__file__).parent))
from hub_stand_in import REFUSING, TOKEN_OWNER, stand_in

TOKEN = "hf_onlyForThisTest0123456789"
REPO, POINT_REPO = "someone/nano", "someone/points"
MODEL = {"embed_dim": 32, "layout": "MT", "num_heads": 4}
WHEN = ("online", "offline")
CLASSES = ["cat", "dog", "owl"]
UPLOAD_STATUSES = (401, 403, 404, 500)
DOWNLOAD_STATUSES = (401, 403, 404, 501)  # after 500 the client would retry for half a minute


def run_python(code, home, endpoint, **environment):
    """Run code with huggingface_hub's ``endpoint`` and its cache below ``home``; return the output."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **environment,
    }
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def write_folder(folder, domain, model, name, arguments, **extra):
    """Write the files of a card."""
    folder.mkdir()
    description = {"name": name, "arguments": arguments, "holds": "classifier", "classes": CLASSES, **extra}
    save_weights(folder / "model.safetensors", model.state_dict(), description)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    if domain.timm_config is not None:
        config = domain.timm_config(domain.models.read_model_config(folder), description)
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "secrets.txt").write_text("of no card")


READ = f"""
import json, sys, timm, torch, map_vision, map_points
from functools import partial
torch.manual_seed(0)
x, clouds = torch.randn(2, 3, 32, 32), torch.randn(2, 128, 3)
def refusal(act):
    try:
        act()
    except ValueError as error:
        return str(error)
with torch.no_grad():
    torch.save({{
        "ours": map_vision.from_pretrained("{REPO}")(x),
        "by the prefix": map_vision.from_pretrained("hf-hub:{REPO}")(x),
        "timm": timm.create_model("hf-hub:{REPO}", pretrained=True).eval()(x),
        "timm, another head": timm.create_model("hf-hub:{REPO}", pretrained=True, num_classes=5)
            .eval().forward_features(x),
        "clouds": map_points.from_pretrained("{POINT_REPO}")(clouds),
        "another order": refusal(lambda: timm.create_model("hf-hub:{REPO}", pretrained=True, order="column")),
        "cfg": timm.create_model("hf-hub:{REPO}").pretrained_cfg,
        "our cfg": map_vision.from_pretrained("{REPO}").pretrained_cfg,
        "classes": map_vision.from_pretrained("{REPO}").classes,
    }}, sys.argv[1])
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Two models that were uploaded, read, and read again without the Hub; refusals; and all that was written."""
    root = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    arguments = {**MODEL, "img_size": 32, "patch_size": 8, "num_registers": 0, "global_pool": "avg"}
    image = timm.create_model("hybridnet_tiny_patch16_224", num_classes=3, **arguments).eval()
    sizes = {**MODEL, "num_patches": 16, "patch_size": 8}
    point = create_point_model("hybridnet3d", 3, **sizes).eval()
    preprocessing = {"channels": 3, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    preprocessing |= {"interpolation": "bilinear", "crop_pct": 0.9, "crop_pct_small": 1.0}
    write_folder(root / "card", IMAGES, image, "hybridnet_tiny_patch16_224", arguments, **preprocessing)
    write_folder(root / "points", POINTS, point, "hybridnet3d", sizes)
    (root / "bare").mkdir()
    for name in ("model.safetensors", "model.json", "README.md"):
        (root / "bare" / name).write_text("no front matter")
    push = f"""
import sys, map_points
from map_vision.cli import main
sys.argv[1:] = ["push-to-hub", {str(root / "card")!r}, "--repo", {REPO!r}]
assert main() == 0
print(map_points.push_to_hub({str(root / "points")!r}, {POINT_REPO!r}, private=True))
print(map_points.push_to_hub({str(root / "points")!r}, "points"))  # in the name of whoever has the token
"""
    refused = f"""
card = {str(root / "card")!r}
acts = {{
    "anonymous": lambda: map_vision.push_to_hub(card, "someone/new", token=False),
    "no metadata": lambda: map_vision.push_to_hub({str(root / "bare")!r}, "someone/bare"),
    "absent": lambda: map_vision.from_pretrained("someone/absent"),
}}
for status in {UPLOAD_STATUSES}:
    acts[f"up {{status}}"] = partial(map_vision.push_to_hub, card, f"{REFUSING}/{{status}}")
for status in {DOWNLOAD_STATUSES}:
    acts[f"down {{status}}"] = partial(map_vision.from_pretrained, f"{REFUSING}/{{status}}")
print(json.dumps({{name: refusal(act) for name, act in acts.items()}}))
"""
    home, scripts = (
        root / "home",
        {name: READ.replace("sys.argv[1]", repr(str(root / f"{name}.pt"))) for name in WHEN},
    )
    with stand_in(TOKEN) as hub:
        output = run_python(push + scripts["online"] + refused, home, hub.endpoint, HF_TOKEN=TOKEN)
    run_python(scripts["offline"], home, hub.endpoint, HF_TOKEN=TOKEN)
    return root, hub, image, point, output


def test_all_of_a_card_and_nothing_else_is_uploaded(shared):
    root, hub, *_, output = shared
    _, files = hub.files(REPO, "main")
    assert files == {
        name: (root / "card" / name).read_bytes()
        for name in ("model.safetensors", "model.json", "config.json", "README.md")
    }
    assert hub.private == {POINT_REPO}
    for repo in (POINT_REPO, f"{TOKEN_OWNER}/points"):
        assert f"{hub.endpoint}/{repo}/commit/" in output


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("how", ["ours", "by the prefix", "timm", "timm, another head", "clouds"])
def test_the_download_equals_the_upload(shared, when, how):
    root, _, image, point, _ = shared
    torch.manual_seed(0)
    x, clouds = torch.randn(2, 3, 32, 32), torch.randn(2, 128, 3)
    with torch.no_grad():
        expected = {"timm, another head": image.forward_features(x), "clouds": point(clouds)}.get(
            how, image(x)
        )
    torch.testing.assert_close(torch.load(root / f"{when}.pt")[how], expected)


@pytest.mark.parametrize("how", ["cfg", "our cfg"])
def test_timm_knows_the_preprocessing_and_the_classes(shared, how):
    values = torch.load(shared[0] / "online.pt")
    cfg = {key: list(value) if isinstance(value, tuple) else value for key, value in values[how].items()}
    assert (cfg["mean"], cfg["std"], cfg["crop_pct"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 1.0)
    assert (cfg["input_size"], cfg["num_classes"], cfg["label_names"]) == ([3, 32, 32], 3, CLASSES)
    assert values["classes"] == tuple(CLASSES)
    assert "were trained with order='row'; with 'column' they would fit" in values["another order"]


def test_the_token_is_in_no_file(shared):
    root = shared[0]
    files = [path for path in root.rglob("*") if path.is_file()]
    assert any("snapshots" in path.parts for path in files)  # the cache is among them
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []


@pytest.fixture(scope="module")
def refusals(shared):
    """The error message for each status, uploading and downloading, and for faulty requests."""
    return json.loads(shared[-1].splitlines()[-1])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("up 401", "refuses/401 was not uploaded: the Hub answers 401: it asks who you are: log in"),
        ("up 403", "refuses/403 was not uploaded: the Hub answers 403: it refuses this token"),
        ("up 404", "refuses/404 was not uploaded: the Hub answers 404: it has no such repository"),
        ("up 500", "refuses/500 was not uploaded: the Hub answers 500: try again later"),
        (
            "down 401",
            "refuses/401 is not a file or folder here, and was not loaded: the Hub answers 401: it asks who you are",
        ),
        (
            "down 403",
            "refuses/403 is not a file or folder here, and was not loaded: the Hub answers 403: it refuses this token",
        ),
        (
            "down 404",
            "refuses/404 is not a file or folder here, and was not loaded: the Hub answers 404: it has no such",
        ),
        (
            "down 501",
            "refuses/501 is not a file or folder here, and was not loaded: the Hub answers 501: try again later",
        ),
        ("anonymous", "someone/new was not uploaded: the Hub answers 401: it asks who you are"),
        (
            "no metadata",
            "someone/bare was not uploaded: the Hub answers 400: it does not take the front matter",
        ),
        (
            "absent",
            "someone/absent is not a file or folder here, and was not loaded: the Hub answers 404: it has no",
        ),
    ],
)
def test_a_refusal_is_one_sentence(refusals, what, message):
    assert refusals[what].startswith(message)
    assert "\n" not in refusals[what]
    assert TOKEN not in refusals[what]


def test_an_unreachable_hub_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_OFFLINE", True
    )  # as the environment variable does, which is read at import
    with pytest.raises(
        UserError,
        match=r"^a/b is not a file or folder here, and was not loaded: the Hub cannot be reached, nor is it in the",
    ):
        from_pretrained(IMAGES.models, "a/b", cache_dir=tmp_path)


@pytest.mark.parametrize("absent", ["model.safetensors", "model.json", "README.md"])
def test_a_folder_that_is_no_card_is_not_uploaded(tmp_path, absent):
    for name in {"model.safetensors", "model.json", "README.md"} - {absent}:
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=f"has no {absent}: write the folder with the command card"):
        push_to_hub(tmp_path, REPO)


@pytest.mark.parametrize("act", [partial(push_to_hub, repo=REPO), partial(from_pretrained, IMAGES.models)])
def test_a_path_that_cannot_be_reached_is_named(act):
    with pytest.raises(
        UserError, match=r"cannot read a+.* \(File name too long\): make it readable, or give another"
    ):
        act("a" * 300)


@pytest.mark.parametrize("name", ["a/b/c", "who?/what"])
def test_an_invalid_name_is_reported(name):
    with pytest.raises(UserError, match=r"a model on the Hub is called USER/NAME or USER/NAME@REVISION"):
        from_pretrained(IMAGES.models, name)


def test_a_folder_that_is_not_there_is_no_name(tmp_path):
    with pytest.raises(UserError, match=r"^./runs/finetune: there is no such file or folder"):
        from_pretrained(IMAGES.models, "./runs/finetune")
    with pytest.raises(UserError, match=r"there is no such file or folder"):
        from_pretrained(IMAGES.models, tmp_path / "run")
    with pytest.raises(UserError, match=r"^runs/finetune.safetensors: there is no such file or folder"):
        from_pretrained(IMAGES.models, "runs/finetune.safetensors")
    with pytest.raises(
        UserError, match=r"^finetune: there is no such .* a model on the Hub is called USER/NAME"
    ):
        from_pretrained(IMAGES.models, "finetune")


def test_a_folder_is_read_without_a_hub(shared):
    root, _, image, *_ = shared
    loaded = from_pretrained(IMAGES.models, root / "card")
    assert all(torch.equal(value, image.state_dict()[key]) for key, value in loaded.state_dict().items())


RUN_PAGE = """
import re, shlex, sys
from map_core.commands.program import main
from map_vision.cli import COMMANDS
names = {}
for language, code in re.findall(r"^```(python|sh)\\n(.*?)^```", open(sys.argv[1]).read(), re.DOTALL | re.MULTILINE):
    if language == "python":
        exec(code, names)
    else:
        program, *arguments = shlex.split(code)
        assert main(program, COMMANDS, "map_vision.recipes", arguments) == 0, code
print(names["url"], names["small"].num_classes)
"""


def test_the_page_on_sharing_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs" / "sharing.md"
    with stand_in(TOKEN) as hub:
        code = RUN_PAGE.replace("sys.argv[1]", repr(str(page)))
        output = run_python(code, tmp_path / "home", hub.endpoint, HF_TOKEN=TOKEN).splitlines()[-1]
        assert output == f"{hub.endpoint}/USER/NAME/commit/{hub.files('USER/NAME', 'main')[0]} 3"
        assert len(hub.repositories["USER/NAME"]) == 2
        assert hub.private == {"USER/NAME"}
