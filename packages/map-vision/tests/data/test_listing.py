"""The contents of a folder, whatever its links, permissions and odd entries."""

import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from map_core.errors import UserError
from map_core.tasks.domain import Purpose
from map_vision.data import DataConfig, ImageData, load_image_data, load_images
from map_vision.data.listing import count_by_kind, list_folder

MakeFolder = Callable[..., Path]


def load(root: Path, purpose: Purpose = "finetune", **settings: object) -> ImageData:
    config = DataConfig(root=str(root), **settings)  # type: ignore[arg-type]
    return load_image_data(config, img_size=(8, 8), in_chans=3, purpose=purpose)


def test_links_to_ancestors_multiply_nothing(labelled: Path) -> None:
    for number, target in enumerate((labelled, labelled / "train", labelled / "train" / "cat")):
        (labelled / "train" / "cat" / f"link{number}").symlink_to(target)
    assert len(load(labelled).train) == 20
    assert len(load(labelled, "pretrain", train_split=".").train) == 25


def test_a_folder_goes_by_its_name_and_not_by_a_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "z" / "x.png")
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "b").symlink_to("z")
    listing = list_folder(tmp_path)
    assert (listing.images, listing.repeated) == (("z/x.png",), ("a", "b"))


@pytest.mark.parametrize("beside", ["a-b", "a.b", "a b", "ab", "A", "é"])
def test_images_are_in_the_order_of_folders_not_of_texts(tmp_path: Path, beside: str) -> None:
    for folder in ("a", beside):
        (tmp_path / folder).mkdir()
        for name in ("x.png", "c-.png"):
            Image.new("L", (4, 4)).save(tmp_path / folder / name)
    images = list_folder(tmp_path).images
    assert images == tuple(sorted(images, key=lambda path: path.split("/")))
    assert len(images) == 4


def test_class_folders_may_be_links_to_elsewhere(
    labelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = tmp_path_factory.mktemp("store") / "n01"
    (labelled / "train" / "cat").rename(store)
    (labelled / "train" / "cat").symlink_to(store)
    data = load(labelled)
    assert (data.classes, data.train.labels.tolist()) == (("cat", "dog"), [0] * 12 + [1] * 8)
    assert data.train.names[0] == str(labelled / "train" / "cat" / "000.png")


def test_two_classes_that_are_one_folder_are_refused(labelled: Path) -> None:
    (labelled / "train" / "kitty").symlink_to("cat")
    with pytest.raises(
        UserError, match=r"without images in .*train: kitty \(kitty: linked to a folder that is"
    ):
        load(labelled)


@pytest.mark.parametrize("purpose", ["finetune", "pretrain", "features"])
def test_a_class_folder_that_cannot_be_followed_is_named(labelled: Path, purpose: Purpose) -> None:
    (labelled / "train" / "eel").symlink_to("eel")  # a loop
    with pytest.raises(UserError, match=r"cannot follow .*train/eel \(Too many levels of symbolic links\)"):
        load(labelled, purpose)
    (labelled / "train" / "eel").unlink()
    (labelled / "train" / "eel").symlink_to("/nowhere/eel")
    with pytest.raises(
        UserError, match=r"cannot follow .*train/eel \(No such file or directory\): is it a folder"
    ):
        load(labelled, purpose)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    """Deeper than the longest path, so that not even the superuser can list it."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=descriptor)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"cannot (read folder|follow) .*dddd.* \(File name too long\)"):
        load(tmp_path, "pretrain")


def test_a_folder_without_permission_is_named_or_read(labelled: Path) -> None:
    """A user who may list it nevertheless, such as the superuser, gets all of its images."""
    locked = labelled / "train" / "cat"
    locked.chmod(0)
    try:
        if os.access(locked, os.R_OK):
            assert len(load(labelled).train) == 20
        else:
            with pytest.raises(
                UserError, match=r"cannot read folder .*cat \(Permission denied\): make it readable"
            ):
                load(labelled)
    finally:
        locked.chmod(0o755)


def test_an_image_whose_link_is_broken_is_an_unreadable_image(labelled: Path) -> None:
    (labelled / "train" / "cat" / "gone.png").symlink_to("nowhere.png")
    (labelled / "train" / "cat" / "loop.png").symlink_to("loop.png")
    assert len(load(labelled).train) == 22
    assert len(load(labelled, "features", on_error="skip").train) == 20


def test_what_is_left_out_is_counted(labelled: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.svg", "b.SVG", "notes.txt", "README", ".hidden"):
        (labelled / "train" / "dog" / name).write_text("x")
    (labelled / "val" / "cat" / "x.eps").write_text("x")
    for place in (labelled / "train", labelled):
        Image.new("L", (4, 4)).save(place / "loose.png")
    with caplog.at_level(logging.WARNING):
        data = load(labelled)
    expected = (
        f"{labelled}: 20 training images, 5 evaluation images (val) (ignored: 2 .svg, 1 .eps, 1 .txt, "
        "1 images beside the class folders, 1 images beside train/, 1 of other kinds)"
    )
    assert data.description == expected
    assert not caplog.records  # training reports its data at the start
    load(labelled, "features")
    assert [record.message for record in caplog.records] == [expected]
    assert "1 images beside train/" in load(labelled, "pretrain").description
    assert len(load(labelled, "pretrain").train) == 21  # the loose one of train needs no label


def test_nothing_is_logged_when_nothing_is_left_out(labelled: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(labelled).description.endswith("20 training images, 5 evaluation images (val)")
    assert not caplog.records


def test_the_package_that_would_read_them_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("map_vision.data.formats.readable_extensions", lambda: frozenset({".png"}))
    assert count_by_kind([(".heic", 1), (".avif", 2)]) == (
        "ignored: 2 .avif, 1 .heic; pip install pillow-heif to read .heic"
    )
    assert count_by_kind([(".avif", 2)]) == "ignored: 2 .avif; pip install -U pillow to read .avif"


def test_a_folder_of_other_files_says_which(tmp_path: Path) -> None:
    for name in ("a.psd", "b.psd"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"no images in .*: looked in .* for .*\.jpg.*; ignored: 2 .psd"):
        load(tmp_path, "pretrain")


def test_named_images_may_be_lists_files_folders_and_patterns(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(labelled)

    def names(*paths: str | Path) -> list[str]:
        return load_images(paths, DataConfig(), img_size=(8, 8), in_chans=3).names

    dogs = [f"val/dog/{number:03}.png" for number in range(2)]
    cats = [f"val/cat/{number:03}.png" for number in range(3)]
    assert names("val/dog/*.png") == dogs
    assert names("val/d*") == dogs
    assert names("val/**/*.png") == names("val/**") == names("val") == cats + dogs
    assert names(dogs[1], Path("val/cat"), "val/dog/00[0-0].png") == [dogs[1], *cats, dogs[0]]
    (labelled / "val" / "dog" / "[1].png").write_bytes((labelled / dogs[0]).read_bytes())
    assert names("val/dog/[1].png") == ["val/dog/[1].png"]  # its name, not a pattern
    (labelled / "val" / "cat" / "list.txt").write_text("x")
    assert names("val/cat/*") == cats
    assert caplog.records[-1].message == "3 images to read (ignored: 1 .txt)"
    assert load_images("val/dog/*1.png", DataConfig(), img_size=(8, 8), in_chans=3).names == dogs[1:]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "images is an empty list: name at least one"),
        ("", "images has an empty path"),
        (["val", ""], "images has an empty path"),
        ("val/*.jpg", r"no image matches val/\*.jpg \(0 other files or folders do\): correct the pattern"),
        ("*.txt", r"no image matches \*.txt \(1 other files or folders do\)"),
        (["val", "gone.png"], "image or folder gone.png does not exist: correct the path"),
        ("a" * 300, r"cannot read a+ \(File name too long\)"),
    ],
)
def test_named_images_that_are_none(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, paths: str | list[str], message: str
) -> None:
    monkeypatch.chdir(labelled)
    (labelled / "a.txt").write_text("x")
    with pytest.raises(UserError, match=message):
        load_images(paths, DataConfig(), img_size=(8, 8), in_chans=3)


@pytest.mark.parametrize("seed", range(40))
def test_any_tree_is_listed_as_it_was_made(tmp_path: Path, seed: int) -> None:
    """Random trees with links, pipes, hidden and odd names: every image once, every other file counted."""
    draw = random.Random(seed)
    folders, images, others = [tmp_path], set[str](), 0
    for number in range(60):
        parent = draw.choice(folders)
        stem = draw.choice(["a", "é", "x y", "[b]", "line\nbreak", "*", "-"]) + str(number)
        kind = draw.choice(
            ["folder", "image", "image", "text", "link", "pipe", "hidden", "broken", "file link"]
        )
        if kind == "folder":
            folders.append(parent / (stem + draw.choice(["", ".png"])))
            folders[-1].mkdir()
        elif kind == "image":
            path = parent / (stem + draw.choice([".png", ".JPG", ".tiff"]))
            path.touch()
            images.add(os.path.relpath(path, tmp_path))
        elif kind == "text":
            (parent / f"{stem}.txt").touch()
            others += 1
        elif kind == "pipe":
            os.mkfifo(parent / f"{stem}.png")
            others += 1
        elif kind == "hidden":
            (parent / f".{stem}.png").touch()
        elif kind == "link":
            (parent / stem).symlink_to(draw.choice(folders))  # to itself, an ancestor, a child or aside
        elif kind == "broken":
            (parent / f"{stem}.png").symlink_to(draw.choice(["nowhere", f"{stem}.png"]))
            images.add(os.path.relpath(parent / f"{stem}.png", tmp_path))
        elif images:
            target = tmp_path / draw.choice(sorted(images))
            (parent / f"{stem}.png").symlink_to(target)
            images.add(os.path.relpath(parent / f"{stem}.png", tmp_path))
    listing = list_folder(tmp_path)
    assert len(listing.images) == len(images)
    assert set(listing.images) == images
    assert sum(listing.ignored.values()) == others
