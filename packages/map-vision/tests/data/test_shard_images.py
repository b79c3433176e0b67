"""A folder and its shards are the same data set: the same images under the same indices, in every split."""

import itertools
import os
import re
import shlex
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_store import faulty_store
from PIL import Image
from safetensors.torch import load_file

import map_core.commands.program
import map_vision.cli
from map_core import UserError
from map_core.shards import fetching, read_index, write_shards
from map_core.tasks.domain import Purpose
from map_vision.data import DataConfig, ImageData, load_image_data, load_images
from map_vision.data.sharding import files_by_split
from map_vision.data.statistics import measure


def load(
    root: Path | str, purpose: Purpose = "finetune", *, channels: int = 3, **settings: object
) -> ImageData:
    config = DataConfig(root=str(root), **settings)  # type: ignore[arg-type]
    return load_image_data(config, img_size=(16, 16), in_chans=channels, purpose=purpose)


def shard(root: Path, out: Path, **settings: object) -> Path:
    write_shards(files_by_split(DataConfig(root=str(root), **settings)), out, size=12_000)  # type: ignore[arg-type]
    return out


@pytest.fixture
def in_shards(labelled: Path, tmp_path: Path) -> Path:
    """The shards of ``labelled``."""
    return shard(labelled, tmp_path / "in_shards")


def run(*arguments: str) -> int:
    return map_core.commands.program.main(
        "map-vision", map_vision.cli.COMMANDS, "map_vision.recipes", list(arguments)
    )


@pytest.mark.parametrize("settings", [{}, {"holdout": 0.25}, {"subset": 7}, {"eval_split": "val"}], ids=str)
@pytest.mark.parametrize("purpose", ["pretrain", "finetune", "evaluate", "features"])
def test_shards_are_the_folder(
    labelled: Path, in_shards: Path, purpose: Purpose, settings: dict[str, object]
) -> None:
    files, shards = load(labelled, purpose, **settings), load(in_shards, purpose, **settings)
    assert shards.classes == files.classes
    assert shards.evaluated_on == files.evaluated_on
    for ours, theirs in ((shards.training, files.training), (shards.evaluation, files.evaluation)):
        assert (ours is None) == (theirs is None)
        if ours is None or theirs is None:
            continue
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert [str(labelled / "train" / name) for name in ours.names] == theirs.names or [
            str(labelled / "val" / name) for name in ours.names
        ] == theirs.names
        for number in range(len(ours)):
            torch.manual_seed(number)
            mine = ours[number][0]
            torch.manual_seed(number)
            assert torch.equal(mine, theirs[number][0])


def test_a_folder_of_one_split_and_one_without_classes(make_folder: object, tmp_path: Path) -> None:
    make_folder("flat", {"": 9})  # type: ignore[operator]
    flat = shard(tmp_path / "flat", tmp_path / "flat_shards")
    assert load(flat, "pretrain").classes == ()
    assert load(flat, "pretrain").train.names == [f"{number:03}.png" for number in range(9)]
    with pytest.raises(
        UserError, match=r"the shards of .*flat_shards have no labels, which this needs: write them"
    ):
        load(flat, "finetune", holdout=0.3)
    with pytest.raises(UserError, match=r"no evaluation split in the shards of .*, found no splits; name it"):
        load(flat, "evaluate")


def test_an_image_beside_class_folders_is_reported_when_shards_are_written(
    make_folder: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder("set", {"cat": 5, "dog": 3, "": 1}) / "set"  # type: ignore[operator]
    shards = shard(root, tmp_path / "out")
    assert f"1 of 9 images in {root} lie beside its subfolders, which then are not classes" in (
        capsys.readouterr().err
    )
    assert load(shards, "pretrain").train.names == ["000.png", *load(shards, "pretrain").train.names[1:]]
    assert len(load(shards, "pretrain").train) == len(load(root, "pretrain").train) == 9
    with pytest.raises(UserError, match=r"write them from a folder with .* and no image beside them"):
        load(shards, "finetune", holdout=0.3)
    (root / "000.png").unlink()
    shards = shard(root, tmp_path / "again")
    assert capsys.readouterr().err == ""
    assert load(shards, holdout=0.3).train.labels.tolist() == load(root, holdout=0.3).train.labels.tolist()


def test_a_test_split_without_classes_is_in_the_shards(
    make_folder: object, labelled: Path, tmp_path: Path
) -> None:
    make_folder("test", {"": 4})  # type: ignore[operator]
    shards = shard(labelled, tmp_path / "out")
    assert load(shards).train.labels.tolist() == load(labelled).train.labels.tolist()
    assert load(shards).evaluated_on == load(labelled).evaluated_on == "val"
    assert len(load(shards, "pretrain", train_split="test").train) == 4
    for root in (labelled, shards):
        with pytest.raises(UserError, match=r"(no class subfolders|have no labels)"):
            load(root, "evaluate", eval_split="test")


def test_shards_are_no_images_by_name(in_shards: Path) -> None:
    for folder in (in_shards, in_shards / "val"):
        with pytest.raises(
            UserError,
            match=rf"{folder} is a folder of shards: features and evaluate read it with --data.root",
        ):
            load_images(folder, DataConfig(), img_size=(8, 8), in_chans=3)


def test_an_address_has_no_csv_file_of_labels() -> None:
    with pytest.raises(UserError, match=r"lists the files of a folder: .*shards have their labels in them"):
        load("https://data.example.org/photos_shards", labels="labels.csv")


def test_labels_of_a_csv_file_are_in_the_shards(tmp_path: Path, labelled: Path) -> None:
    rows = ["path,label,split"]
    rows += [f"train/cat/{number:03}.png,{number % 3},train" for number in range(7)]
    rows += [f"train/dog/{number:03}.png,{number},test" for number in range(3)]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    settings = {"labels": str(tmp_path / "labels.csv")}
    files = load(labelled, **settings)
    shards = load(shard(labelled, tmp_path / "out", **settings))
    assert shards.classes == files.classes == ("0", "1", "2")
    assert shards.train.labels.tolist() == files.train.labels.tolist()
    assert shards.evaluation is not None
    assert files.evaluation is not None
    assert shards.evaluation.labels.tolist() == files.evaluation.labels.tolist()
    assert torch.equal(shards.evaluation[1][0], files.evaluation[1][0])


@pytest.mark.parametrize(("channels", "ending"), [(4, ".npy"), (4, ".tiff"), (3, ".npy")])
def test_stored_values_are_those_of_the_files(tmp_path: Path, channels: int, ending: str) -> None:
    generator = np.random.default_rng(0)
    folder = tmp_path / "scenes"
    folder.mkdir()
    for number in range(5):
        values = generator.integers(0, 60_000, (12, 10, channels), dtype=np.uint16)
        if ending == ".npy":
            np.save(folder / f"{number}.npy", values)
        else:
            pytest.importorskip("tifffile").imwrite(
                folder / f"{number}.tiff", values, photometric="minisblack", planarconfig="contig"
            )
    shards = shard(folder, tmp_path / "out")
    stored = {"pixels": "stored", "mean": (3e4,), "std": (1e4,), "augmentation": "none"}
    files, ours = (load(root, "pretrain", channels=channels, **stored).train for root in (folder, shards))
    assert all(torch.equal(ours[number][0], files[number][0]) for number in range(5))
    config = DataConfig(root=str(folder), pixels="stored")
    assert measure(replace(config, root=str(shards))) == measure(config)


def test_an_image_that_cannot_be_decoded_is_skipped_but_a_damaged_shard_is_not(
    labelled: Path, tmp_path: Path, break_images: object
) -> None:
    break_images([labelled / "train/cat/003.png"])  # type: ignore[operator]
    out = shard(labelled, tmp_path / "out")
    with pytest.raises(
        UserError, match=r"cannot read image cat/003.png of .*out/train/\d+.tar \(.*on_error skip"
    ):
        list(load(out).train)
    data = load(out, on_error="skip")
    assert len(list(data.train)) == 20
    assert data.skipped().names == ("cat/003.png",)
    index = data.train.source.reader.index  # type: ignore[attr-defined]
    with (out / "train" / index.shard_of(5).name).open("r+b") as file:
        file.seek(int(index.samples["offset"][5]) + 30)
        file.write(b"\0\1\2")
    with pytest.raises(UserError, match=r"cat/005.png of .* has another checksum than the index says"):
        list(data.train)


def test_shards_in_memory_keep_their_order_and_identity(in_shards: Path) -> None:
    plain, cached = (
        load(in_shards, shuffle="shards", shuffle_shards=2, cache=cache).train for cache in ("none", "memory")
    )
    assert plain.source.identity == cached.source.identity
    orders = [samples.shuffled(torch.Generator().manual_seed(3)) for samples in (plain, cached)]  # type: ignore[misc]
    assert torch.equal(*orders)


def test_the_order_of_shards_is_of_the_chosen_samples(in_shards: Path) -> None:
    samples = load(in_shards, holdout=0.25, shuffle="shards", shuffle_shards=1).train
    assert samples.shuffled is not None
    order = samples.shuffled(torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(15))
    shards = samples.source.reader.index.samples["shard"][samples.indices][order]  # type: ignore[attr-defined]
    changes = np.flatnonzero(np.diff(shards))
    assert len(changes) <= len(np.unique(shards)), "an epoch went back and forth between shards"
    assert load(in_shards).train.shuffled is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_split": "trani"},
            r"train_split 'trani' is not a split of the shards in .*: did you mean train\?",
        ),
        ({"eval_split": "tset"}, r"eval_split 'tset' is not a split of the shards in .*"),
        ({"source": "shards", "root": None}, r"source 'shards' needs the folder or address of the shards"),
        ({"shuffle": "some"}, r"data.shuffle 'some' is unknown"),
        ({"shuffle_shards": 0}, r"data.shuffle_shards must be at least 1"),
        (
            {"shard_cache_size": "much"},
            r"data.shard_cache_size must be a size such as 500MB or 2GB; got 'much'",
        ),
        ({"shard_cache": " "}, r"data.shard_cache must not be empty"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_reported(
    unchecked: None, in_shards: Path, settings: dict[str, object], message: str
) -> None:
    config = DataConfig(**({"root": str(in_shards)} | settings))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        load_image_data(config, img_size=(16, 16), in_chans=3, purpose="finetune")


def test_a_folder_has_no_shards_to_shuffle(labelled: Path) -> None:
    with pytest.raises(
        UserError, match=r"data.shuffle 'shards' is for images in shards, and .* has none: leave it"
    ):
        load(labelled, shuffle="shards")


def test_shards_without_an_index_say_how_to_get_one(labelled: Path, in_shards: Path) -> None:
    (in_shards / "index.json").unlink()
    with pytest.raises(UserError, match=r"has no index.json, which shards need: .* shard --index"):
        load(in_shards, source="shards")
    with pytest.raises(UserError, match=r"no images in .*; ignored: .* .tar.*map-vision shard --index"):
        load(in_shards, "pretrain")


def test_splits_of_other_classes_are_refused(labelled: Path, in_shards: Path, tmp_path: Path) -> None:
    shutil.rmtree(labelled / "train/dog")
    shutil.rmtree(labelled / "val/dog")
    other = shard(labelled, tmp_path / "other")
    shutil.rmtree(in_shards / "val")
    shutil.copytree(other / "val", in_shards / "val")
    with pytest.raises(
        UserError,
        match=r"split 'val' in .* have other classes \(1\) than those of 'train' \(2\): .*classnames.txt, remove",
    ):
        load(in_shards)


def test_the_command_writes_shards_and_says_what_to_do(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made"
    assert run("shard", "--data.root", str(labelled), "--out", str(out), "--size", "12KB") == 0
    printed = capsys.readouterr().out
    assert re.search(rf"{out}/train: 20 images of 2 classes in \d+ shards, [\d.]+ KB", printed)
    assert f"{out}/val: 5 images of 2 classes" in printed
    assert f"read them with --data.root {out}" in printed
    assert len(load(out).train) == 20
    assert run("shard", "--data.root", str(labelled), "--out", str(out)) == 2
    assert f"{out} is not empty: remove it, or choose another --out" in capsys.readouterr().err


def test_the_command_indexes_tar_files(
    in_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = tmp_path / "tars"
    for path in in_shards.glob("*/*.tar"):
        (tars / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tars / path.parent.name)
    assert run("shard", "--index", str(tars)) == 0
    assert f"{tars}/train: 20 images of 2 classes" in capsys.readouterr().out
    data = load(tars)
    assert data.classes == ("0", "1")
    pictures = sorted(np.asarray(data.train.image(number)).tobytes() for number in range(20))
    theirs = load(in_shards).train
    assert pictures == sorted(np.asarray(theirs.image(number)).tobytes() for number in range(20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--index=tars", "--size=1MB"), "size 1MB has no effect with --index: leave it at 250MB"),
        (("--index=tars", "--seed=7"), "seed 7 has no effect with --index"),
        (("--index=tars", "--out=elsewhere"), "out elsewhere has no effect with --index"),
        (("--index=tars", "--data.root=images"), "data.root images has no effect with --index: leave it out"),
        (("--index=tars", "--data.eval_split=val"), "data.eval_split val has no effect with --index"),
        (
            ("--data.root=images", "--data.on_error=skip"),
            "data.on_error skip has no effect with shards, which hold files as they are: leave it at raise",
        ),
        (
            ("--data.root=images", "--data.augmentation=timm"),
            "data.augmentation timm has no effect with shards",
        ),
        (("--data.root=images", "--data.shuffle=shards"), "data.shuffle shards has no effect with shards"),
    ],
)
def test_settings_without_effect_on_shards_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run("shard", *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_command_indexes_a_picture_and_not_the_array_before_it(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    np.save(tmp_path / "a.npy", np.zeros((3, 3)))
    with tarfile.open(tmp_path / "tars/0.tar", "w") as archive:
        for key in "ab":
            archive.add(tmp_path / "a.npy", f"{key}.npy")
            if key == "b":
                archive.add(labelled / "train/cat/000.png", "b.png")
    assert run("shard", "--index", str(tmp_path / "tars")) == 0
    index = read_index(tmp_path / "tars")
    assert [index.name(number) for number in range(2)] == ["0.tar/a.npy", "0.tar/b.png"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"source": "digits", "root": None},
            r"shards are written from a folder, not from data.source 'digits'",
        ),
        (
            {"holdout": 0.1},
            r"shards hold whole splits, of which runs take their parts: leave data.holdout out",
        ),
        ({"subset": 5}, r"leave data.subset out"),
        ({"train_split": "none"}, r"train_split 'none' is not a folder in"),
        (
            {"train_split": "other/val", "eval_split": "val"},
            r"two splits are called 'val': rename the folder of one",
        ),
    ],
    ids=str,
)
def test_shards_that_cannot_be_written_are_refused(
    labelled: Path, settings: dict[str, object], message: str
) -> None:
    shutil.copytree(labelled / "val", labelled / "other/val")
    with pytest.raises(UserError, match=message):
        files_by_split(DataConfig(**({"root": str(labelled)} | settings)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["empty", "fifo", "broken link"])
def test_a_file_that_cannot_be_read_leaves_no_shards(labelled: Path, tmp_path: Path, kind: str) -> None:
    path = labelled / "train/cat/004.png"
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "fifo":
        path.symlink_to(tmp_path / "fifo.png")
        os.mkfifo(tmp_path / "fifo.png")
    else:
        path.symlink_to(tmp_path / "nothing.png")
    if kind == "fifo":  # no image at all to a folder, shards or not
        assert len(read_index(shard(labelled, tmp_path / "out") / "train")) == 19
        return
    with pytest.raises(
        UserError, match=r"cannot read image .*train/cat/004.png \(.*\): replace or remove it"
    ):
        shard(labelled, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_of_every_format_survives(tmp_path: Path) -> None:
    folder = tmp_path / "formats"
    folder.mkdir()
    for ending in ("png", "jpg", "bmp", "gif", "tiff", "webp", "ppm"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(
            folder / f"{ending}.{ending}"
        )
    files, ours = (load(root, "pretrain").train for root in (folder, shard(folder, tmp_path / "out")))
    for number in range(7):
        assert np.array_equal(np.asarray(ours.image(number)), np.asarray(files.image(number)))


PRETRAIN = shlex.split(
    "pretrain --config pretrain_digits --data.shuffle shards --data.shuffle_shards 1 --model.in_chans 3 "
    "--model.embed_dim 16 --model.layout MT --model.num_heads 2 --objective.decoder_dim 16 "
    "--objective.decoder_depth 1 --objective.decoder_heads 2 --training.batch_size 4 --training.epochs 4 "
    "--training.warmup_epochs 1 --training.checkpoint_steps 3 --training.tensorboard false "
    "--training.progress false --training.device cpu --data.source shards"
)


def test_a_store_that_fails_in_mid_epoch_stops_the_run_with_one_sentence_and_resume_is_exact(
    in_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fetching, "WAIT", 0.001)
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    assert (
        run(*PRETRAIN, "--data.root", str(in_shards), "--training.workers", "0", "--out", str(undisturbed))
        == 0
    )
    cache = ["--data.shard_cache", str(tmp_path / "cache"), "--data.shard_cache_size", "25KB"]
    with faulty_store(in_shards) as server:
        command = [
            *PRETRAIN,
            "--data.root",
            server.address,
            *cache,
            "--training.workers",
            "1",
            "--out",
            str(out),
        ]
        server.faults = itertools.chain([None] * 22, itertools.repeat(503))
        assert run(*command) == 2
        assert re.search(
            rf"^map-vision: error: cannot fetch {server.address}/train/00000\d.tar \(it answers 503 Service "
            r"Unavailable, 6 times in a row\): look at the network and the store, then continue with --resume auto$",
            capsys.readouterr().err,
            re.MULTILINE,
        )
        assert list(out.glob("checkpoints/step_*"))
        assert not (out / "model.safetensors").exists()
        server.faults = iter(())
        assert run(*command, "--resume", "auto") == 0
    weights, expected = (load_file(place / "model.safetensors") for place in (out, undisturbed))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_run_on_a_folder_goes_on_on_its_shards_as_if_it_had_stayed(
    labelled: Path, in_shards: Path, tmp_path: Path
) -> None:
    command = [*PRETRAIN, "--data.source", "folder", "--data.shuffle", "all", "--training.workers", "0"]
    stayed, moved = tmp_path / "stayed", tmp_path / "moved"
    on_folder, on_shards = (["--data.root", str(root)] for root in (labelled, in_shards))
    assert run(*command, *on_folder, "--out", str(stayed)) == 0
    assert run(*command, *on_folder, "--training.max_steps", "6", "--out", str(moved)) == 0
    assert run(*command, *on_shards, "--resume", "auto", "--out", str(moved)) == 0
    weights, expected = (load_file(place / "model.safetensors") for place in (moved, stayed))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("purpose", "settings"),
    [("features", {}), ("finetune", {"holdout": 0.25}), ("evaluate", {"eval_split": "train"})],
)
def test_what_is_read_by_number_must_fit_into_the_cache(
    in_shards: Path, tmp_path: Path, purpose: Purpose, settings: dict[str, object]
) -> None:
    shutil.rmtree(in_shards / "val")
    (in_shards / "index.json").write_text((in_shards / "index.json").read_text().replace(',\n  "val"', ""))
    cache = {"shuffle_shards": 1, "shard_cache": str(tmp_path / "cache"), "shard_cache_size": "25KB"}
    with faulty_store(in_shards) as server:
        assert len(load(server.address, "pretrain", **cache).train) == 20
        with pytest.raises(
            UserError, match=r"KB of the shards of http.* data.shard_cache_size is 25 KB: raise it$"
        ):
            load(server.address, purpose, **cache, **settings)
        assert load(server.address, purpose, **cache | settings | {"shard_cache_size": "1MB"})
