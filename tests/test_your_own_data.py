"""Every command of docs/your_own_data.md, on small files in the layouts that the page describes."""

import re
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty_store import FaultyStore, faulty_store
from PIL import Image

import map_core.commands.program
import map_points.cli
import map_vision.cli

PAGE = Path(__file__).parents[1] / "docs" / "your_own_data.md"
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for line in block.splitlines()
]
PROGRAMS = {"map-vision": map_vision.cli.COMMANDS, "map-points": map_points.cli.COMMANDS}
TRAINING = (
    "--training.max_steps 2 --training.batch_size 4 --training.workers 0 --training.device cpu "
    "--training.progress false --training.tensorboard false"
)
EVALUATION = "--evaluation.workers 0 --evaluation.device cpu --evaluation.progress false"
DECODER = "--objective.decoder_dim 16 --objective.decoder_depth 1 --objective.decoder_heads 2"
SMALLER = {
    "map-vision": "--model.img_size 16 --model.patch_size 4 --model.embed_dim 16 --model.layout MT --model.num_heads 2",
    "map-points": "--model.embed_dim 16 --model.patch_hidden_dim 8 --model.layout MT --model.num_heads 2 "
    "--model.num_patches 8 --model.patch_size 4 --data.num_points 32",
}
SHORT_RUN = {
    "pretrain": f"{TRAINING} {DECODER}",
    "finetune": TRAINING,
    "evaluate": EVALUATION,
    "features": EVALUATION,
    "predict": EVALUATION,
    "reconstruct": "",
    "statistics": "--progress false",
    "shard": "--progress false",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every layout: photos, a tar of them, scans with labels.csv, scenes, clouds with clouds.csv, ..."""
    root, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = {"labels.csv": ["path,label,split"], "clouds.csv": ["path,label,split"]}
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for number in range(12):
        name, split = "ab"[number % 2], "train" if number < 8 else "test"
        for kind in ("photos", "scenes", "clouds", "scanned", "columns", "listed"):
            (root / kind / name).mkdir(parents=True, exist_ok=True)
        (root / "scans").mkdir(exist_ok=True)
        picture = generator.integers(0, 256, (20, 22, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "photos" / name / f"{number}.png")
        Image.fromarray(picture).save(root / "scans" / f"{number}.png")
        rows["labels.csv"].append(f"{number}.png,{name},{split}")
        np.save(root / "scenes" / name / f"{number}.npy", generator.normal(1e3, 50, (20, 18, 4)).astype("f4"))
        cloud = generator.normal(size=(40, 7)).astype(np.float32)
        np.save(root / "clouds" / name / f"{number}.npy", cloud[:, :3])
        rows["clouds.csv"].append(f"{name}/{number}.npy,{name},{split}")
        np.save(root / "listed" / name / f"{number}.npy", cloud[:, :3])
        lists[split].append(f"{name}/{number}.npy")
        points = {"points": cloud[:, :3], "normal": cloud[:, 3:6], "intensity": cloud[:, 6]}
        np.savez(root / "scanned" / name / f"{number}.npz", **points)  # type: ignore[arg-type]
        np.save(root / "columns" / name / f"{number}.npy", cloud[:, :4])
    for file, lines in rows.items():
        (root / file).write_text("\n".join(lines) + "\n")
    for split, lines in lists.items():
        (root / "listed" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    (root / "tars").mkdir()
    with tarfile.open(root / "tars" / "000.tar", "w") as archive:
        for path in sorted((root / "photos").glob("*/*.png")):
            label = root / f"{path.stem}.cls"
            label.write_text(str("ab".index(path.parent.name)))
            archive.add(path, f"{path.stem}.png")
            archive.add(label, label.name)
    return root


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[FaultyStore]:
    """The folder behind an HTTP address."""
    with faulty_store(folder) as server:
        yield server


@pytest.mark.parametrize("command", COMMANDS, ids=[re.sub(r" --(config|init) \S+", "", c) for c in COMMANDS])
def test_every_command_does_what_the_page_says(
    command: str,
    folder: Path,
    store: FaultyStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The commands continue from each other's runs, in the order of the page."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "caches"))
    command = command.replace("https://data.example.org", store.address).replace(
        "s3://bucket", f"file://{folder}"
    )
    program, *arguments = shlex.split(command)
    if (program, arguments[0]) == ("map-vision", "statistics"):
        arguments += ["--workers", "0"]
    smaller = SMALLER[program] if arguments[0] in ("pretrain", "finetune") else ""
    arguments += shlex.split(f"{SHORT_RUN[arguments[0]]} {smaller}")
    status = map_core.commands.program.main(
        program, PROGRAMS[program], f"{program.replace('-', '_')}.recipes", arguments
    )
    assert status == 0, capsys.readouterr().err
    out = Path(arguments[arguments.index("--index" if "--index" in arguments else "--out") + 1])
    assert out.stat().st_size > 0
    if arguments[0] == "shard":
        assert (out / "index.json").is_file()
    if arguments[0] in ("evaluate", "finetune"):
        assert "test_accuracy" in (out / "summary.json").read_text()
    if arguments[0] == "predict":
        assert len(out.read_text().splitlines()) == 1 + 12


def test_the_page_speaks_of_every_layout() -> None:
    words = {word for command in COMMANDS for word in shlex.split(command)}
    layouts = {"photos", "tars", "scans", "scenes", "clouds", "listed", "scanned", "columns"}
    assert layouts | {"labels.csv", "clouds.csv"} <= words
