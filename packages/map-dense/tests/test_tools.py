"""mmseg's tools on a config from write-config: they see ``data_root``, and augmented testing works."""

import re
import runpy
from pathlib import Path

import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from map_dense.cli import main

SMALL = (
    *("model.backbone.embed_dim=32", "model.backbone.layout=MMMT", "model.backbone.num_heads=4"),
    *("model.backbone.img_size=64", "model.neck.embed_dim=32", "model.decode_head.in_channels=[32,32,32,32]"),
    *(
        "model.decode_head.channels=8",
        "model.auxiliary_head.in_channels=32",
        "model.auxiliary_head.channels=8",
    ),
)
TOOLS = Path(mmseg.__file__).parent / ".mim" / "tools"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A small segmenter's config in one file, a checkpoint beside it, and two scenes per split under its data_root."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (tmp_path / "scenes" / kind / split).mkdir(parents=True)
        for index in range(2):
            pixels = generator.integers(0, 255, (50, 70, 3), dtype=np.uint8)
            labels = generator.integers(0, 12, (50, 70), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "scenes" / "images" / split / f"{index}.jpg")
            Image.fromarray(labels).save(tmp_path / "scenes" / "annotations" / split / f"{index}.png")
    file = tmp_path / "small.py"
    options = (f"data_root={tmp_path / 'scenes'}", f"work_dir={tmp_path / 'work'}", *SMALL)
    assert main(["write-config", "upernet_hybridnet-mini_cpu_camvid", str(file), *options]) == 0
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(file).model)
    torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "small.pth")
    return file


def run(tool: str, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a tool as `mim run` does, in this process."""
    monkeypatch.setattr("sys.argv", [tool, *map(str, arguments)])
    monkeypatch.setenv("LOCAL_RANK", "0")  # which the tool would leave set for the tests that follow
    runpy.run_path(str(TOOLS / f"{tool}.py"), run_name="__main__")


def score(text: str) -> float:
    (number,) = set(re.findall(r"mIoU: ([0-9.]+)", text))
    return float(number)


def test_augmented_testing_uses_the_views_of_the_config(
    config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, scores = config.with_suffix(".pth"), []  # plain, one view, all views
    settings = Config.fromfile(config)
    assert [len(part) for part in settings.tta_pipeline[1].transforms] == [3, 2, 1, 1]
    settings.tta_pipeline[1].transforms = [
        [dict(type="Resize", scale_factor=1.0, keep_ratio=True)],
        *settings.tta_pipeline[1].transforms[2:],
    ]
    settings.dump(config.with_name("one.py"))
    for file, options in ((config, ()), (config.with_name("one.py"), ("--tta",)), (config, ("--tta",))):
        run("test", file, checkpoint, *options, monkeypatch=monkeypatch)
        scores.append(score("".join(capfd.readouterr())))
    assert scores[1] == scores[0]  # one view is plain testing
    assert scores[2] != scores[0]


def test_tools_see_the_data(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(
        "analysis_tools/browse_dataset",
        config,
        "--not-show",
        "--output-dir",
        tmp_path / "pictures",
        monkeypatch=monkeypatch,
    )
    assert len(list((tmp_path / "pictures").rglob("*.jpg"))) == 2

    run(
        "analysis_tools/benchmark",
        config,
        config.with_suffix(".pth"),
        "--work-dir",
        tmp_path,
        monkeypatch=monkeypatch,
    )
    assert len(list(tmp_path.glob("fps_*.json"))) == 1

    predictions = tmp_path / "scenes" / "annotations" / "val"  # as if the model knew all but void
    matrix = runpy.run_path(str(TOOLS / "analysis_tools" / "confusion_matrix.py"))
    dataset = matrix["DATASETS"].build(Config.fromfile(config).test_dataloader.dataset)
    results = [np.asarray(Image.open(path)) for path in sorted(predictions.iterdir())]
    counts = matrix["calculate_confusion_matrix"](dataset, results)
    labels = np.concatenate([result.flatten() for result in results])
    assert (counts == np.diag(np.bincount(labels, minlength=12)[:11])).all()


def test_a_file_that_exists_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("precious")
    assert (
        main(["write-config", "upernet_hybridnet-mini_cpu_camvid", str(file), f"data_root={tmp_path}"]) == 2
    )
    assert f"error: {file} exists already: remove it, or choose another name\n" in capsys.readouterr().err
    assert file.read_text() == "precious"


def test_a_config_is_written_into_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    options = [f"data_root={tmp_path}"]
    assert main(["write-config", "upernet_hybridnet-mini_cpu_camvid", "~/mine.py", *options]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mine.py'}\n"
    assert Config.fromfile(tmp_path / "mine.py").data_root == str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("whole.yaml", "data_root=."), "whole.yaml must end in .py"),
        (("whole.py", "data_root"), "option 'data_root' has no '='; give KEY=VALUE"),
        (("whole.py", "data_root=/nowhere/at/all"), "data_root (/nowhere/at/all) is not a directory"),
        (
            ("/nowhere/at/all/whole.py", "data_root=."),
            "whole.py cannot be written (No such file or directory)",
        ),
    ],
)
def test_a_file_that_cannot_be_written_is_reported(
    arguments: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, option = arguments
    assert main(["write-config", "upernet_hybridnet-mini_cpu_camvid", file, option]) == 2
    assert message in capsys.readouterr().err
