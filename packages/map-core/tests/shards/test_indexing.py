"""An index makes tar files in WebDataset's layout a data set; unsafe or broken files are refused."""

import errno
import os
import tarfile

import pytest

from map_core import UserError
from map_core.shards import ShardReader, ShardRoot, ShardSettings, index_shards, read_index
from map_core.shards.reader import Folder

ENDINGS = frozenset({".jpg", ".png"})


def sample(key, label=None, ending="jpg", **more):
    members = {f"{key}.{ending}": f"picture {key}".encode()}
    if label is not None:
        members[f"{key}.cls"] = f"{label}\n".encode()
    return members | {f"{key}.{name}": content for name, content in more.items()}


def indexed(folder):
    assert index_shards(folder, ENDINGS)
    return ShardReader(read_index(folder), Folder(folder))


def test_samples_of_other_peoples_shards_are_read_by_number(make_tar):
    make_tar("set-0001.tar", sample("a/x", 2, "PNG", txt=b"a caption") | sample("a/y.z", 0))
    folder = make_tar("set-0000.tar", sample("0001", 1, json=b"{}") | sample("0002", 2)).parent
    reader = indexed(folder)
    assert [reader.read(number) for number in range(4)] == [
        b"picture 0001",
        b"picture 0002",
        b"picture a/x",
        b"picture a/y.z",
    ]
    assert reader.index.labels.tolist() == [1, 2, 2, 0]
    assert reader.index.classes == ("0", "1", "2")
    assert [reader.index.name(n) for n in (0, 2)] == ["set-0000.tar/0001.jpg", "set-0001.tar/a/x.PNG"]


def test_labels_may_be_missing_altogether_but_not_here_and_there(make_tar):
    folder = make_tar("0.tar", sample("a") | sample("b")).parent
    assert indexed(folder).index.classes == ()
    (folder / "index.json").unlink()
    make_tar("1.tar", sample("c", 1) | sample("d"))
    with pytest.raises(UserError, match=r"sample 0.tar/a.jpg in .* has no .cls, and others have"):
        index_shards(folder, ENDINGS)


def test_classnames_name_the_classes(make_tar):
    folder = make_tar("0.tar", sample("a", 1) | sample("b", 0)).parent
    (folder / "classnames.txt").write_text("cat\ndog \n\nfox\n\n")
    assert indexed(folder).index.classes == ("cat", "dog", "fox")
    (folder / "index.json").unlink()
    (folder / "classnames.txt").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"classnames.txt must name 2 classes, each once; it has 1 names"):
        index_shards(folder, ENDINGS)


@pytest.mark.parametrize(
    ("members", "chosen"),
    [
        ({"a.depth.png": b"", "a.jpg": b""}, "a.jpg"),
        ({"a.jpg": b"", "a.depth.png": b""}, "a.jpg"),
        ({"a.depth.npy": b"", "a.png": b""}, "a.png"),
        ({"a.npy": b"", "a.png": b""}, "a.png"),
        ({"a.npy": b"", "a.depth.png": b""}, "a.npy"),
        ({"a.depth.png": b"", "a.txt": b""}, "a.depth.png"),
    ],
    ids=str,
)
def test_the_file_of_a_sample_is_its_picture(make_tar, members, chosen):
    folder = make_tar("0.tar", {"a.cls": b"1"} | members | sample("b", 0)).parent
    assert index_shards(folder, ENDINGS, fallback=frozenset({".npy"})) == {"": 2}
    index = read_index(folder)
    assert [index.name(number) for number in range(2)] == [f"0.tar/{chosen}", "0.tar/b.jpg"]
    assert index.labels.tolist() == [1, 0]


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("a.left.png", "a.right.png"), ("a.1.jpg", "a.2.jpg")])
def test_two_files_of_a_sample_that_fit_alike_are_refused(make_tar, names):
    folder = make_tar("0.tar", sample("0") | dict.fromkeys(names, b"")).parent
    with pytest.raises(
        UserError, match=rf"shard .*0.tar holds {names[0]} and {names[1]} of one sample, .*: write one"
    ):
        index_shards(folder, ENDINGS)


def test_classes_are_those_of_all_splits(make_tar, tmp_path):
    make_tar("train/0.tar", sample("a", 3) | sample("b", 1))
    make_tar("val/0.tar", sample("c", 2))
    make_tar("test/0.tar", sample("d"))
    folder = tmp_path / "tars"
    index_shards(folder, ENDINGS)
    classes = {name: read_index(folder / name).classes for name in ("train", "val", "test")}
    assert classes == {"train": tuple("0123"), "val": tuple("0123"), "test": ()}
    (folder / "index.json").unlink()
    (folder / "classnames.txt").write_text("ant\nbee\ncat\ndog\nelk\n")
    (folder / "val/classnames.txt").write_text("x\ny\nz\n")
    index_shards(folder, ENDINGS)
    assert read_index(folder / "train").classes == ("ant", "bee", "cat", "dog", "elk")
    assert read_index(folder / "val").classes == ("x", "y", "z")


def test_subfolders_are_splits(make_tar, tmp_path):
    make_tar("train/0.tar", sample("a", 0) | sample("b", 1))
    make_tar("val/0.tar", sample("c", 1))
    folder = tmp_path / "tars"
    assert index_shards(folder, ENDINGS) == {"train": 2, "val": 1}
    root = ShardRoot(str(folder), ShardSettings(tmp_path / "cache", 10**9))
    assert root.splits == ("train", "val")
    assert root.open("val").read(0) == b"picture c"


def test_hidden_members_and_folders_are_left_out(make_tar):
    members = {"._a.jpg": b"resource fork", "folder": folder_info()} | sample("folder/a")
    reader = indexed(make_tar("0.tar", members).parent)
    assert [reader.index.name(n) for n in range(len(reader))] == ["0.tar/folder/a.jpg"]


def folder_info():
    info = tarfile.TarInfo()
    info.type = tarfile.DIRTYPE
    return info


def with_holes():
    info = tarfile.TarInfo()
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000"}
    return info


def link(kind, target):
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"b.jpg": link(tarfile.SYMTYPE, "/etc/passwd")},
            r"0.tar holds a link \(b.jpg -> /etc/passwd\): write it",
        ),
        ({"b.jpg": link(tarfile.LNKTYPE, "a.jpg")}, r"0.tar holds a link \(b.jpg -> a.jpg\)"),
        ({"b.jpg": link(tarfile.FIFOTYPE, "")}, r"0.tar holds b.jpg, which is neither file nor folder"),
        ({"b.jpg": link(tarfile.CHRTYPE, "")}, r"0.tar holds b.jpg, which is neither file nor folder"),
        ({"b.jpg": with_holes()}, r"0.tar holds b.jpg, which is a file with holes: write it without"),
        ({"../b.jpg": b"x"}, r"0.tar holds ../b.jpg, a path out of its folder: write it with relative paths"),
        ({"/b.jpg": b"x"}, r"0.tar holds /b.jpg, a path out of its folder"),
        ({"c/../../b.jpg": b"x"}, r"holds c/../../b.jpg, a path out of its folder"),
        ({"c\\..\\b.jpg": b"x"}, r"a path out of its folder"),
        ({"\x1b[31mb.jpg": link(tarfile.SYMTYPE, "x")}, r"holds a link \(\\x1b\[31mb.jpg"),
        (
            {"b.jpg": b"x", "b.cls": b"cat"},
            r"label b.cls in shard .*0.tar is b'cat': a label is a whole number",
        ),
        ({"b.jpg": b"x", "b.cls": b"-1"}, r"label b.cls in shard .*0.tar is b'-1'"),
        ({"b.jpg": b"x", "b.cls": b"99999999999"}, r"label b.cls in shard"),
    ],
    ids=range(13),
)
def test_unsafe_and_senseless_members_are_refused(make_tar, members, message):
    folder = make_tar("0.tar", sample("a") | members).parent
    with pytest.raises(UserError, match=message):
        index_shards(folder, ENDINGS)
    assert not (folder / "index.json").exists()


@pytest.mark.parametrize("end", [700, 1100, 2048, 3000, 3072, 4096])
def test_a_shard_that_is_cut_off_anywhere_is_refused(make_tar, end):
    path = make_tar("0.tar", sample("a", 0) | sample("b", 1))
    with path.open("r+b") as file:
        file.truncate(end)
    with pytest.raises(
        UserError, match=r"shard .*0.tar is not a complete tar file \(.*\): copy it again, or remove it"
    ):
        index_shards(path.parent, ENDINGS)


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\x1f\x8b compressed"], ids=range(3))
def test_a_file_that_is_no_tar_is_refused(make_tar, content):
    path = make_tar("0.tar", {})
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"(is not a complete tar file|hold no .jpg .png)"):
        index_shards(path.parent, ENDINGS)


@pytest.mark.parametrize(
    ("number", "cure"), [(errno.ENOSPC, "free some space"), (errno.EIO, "make the folder")]
)
def test_an_index_that_cannot_be_written_is_reported_in_one_sentence(make_tar, monkeypatch, number, cure):
    def fails(source, target):
        raise OSError(number, os.strerror(number))

    folder = make_tar("0.tar", sample("a")).parent
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(UserError, match=rf"cannot index the shards in .*tars \(.*\): {cure}"):
            index_shards(folder, ENDINGS)
    assert [path.name for path in folder.iterdir()] == ["0.tar"]


def test_an_index_is_not_overwritten(make_tar):
    folder = make_tar("0.tar", sample("a")).parent
    index_shards(folder, ENDINGS)
    with pytest.raises(UserError, match=r"has an index.json already: remove it to index its shards anew"):
        index_shards(folder, ENDINGS)


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no .tar files in .* or its subfolders: correct --index"):
        index_shards(tmp_path, ENDINGS)
    with pytest.raises(UserError, match=r"--index .*none is not a folder"):
        index_shards(tmp_path / "none", ENDINGS)


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ({"a.coarse.cls": b"1", "a.cls": b"3"}, 3),
        ({"a.cls": b"3", "a.coarse.cls": b"1"}, 3),
        ({"a.coarse.cls": b"1"}, 1),
    ],
)
def test_the_label_of_a_sample_is_the_one_of_the_plain_ending(make_tar, members, label):
    folder = make_tar("0.tar", {"a.jpg": b""} | members).parent
    assert indexed(folder).index.labels.tolist() == [label]


@pytest.mark.parametrize("names", [("a.cls", "a.cls"), ("a.fine.cls", "a.coarse.cls")])
def test_two_labels_of_a_sample_that_fit_alike_are_refused(tmp_path, names):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a.jpg", *names):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match=rf"holds {names[0]} and {names[1]} of one sample, .*: write one"):
        index_shards(tmp_path, ENDINGS)


def test_a_subfolder_that_no_index_could_name_is_refused(make_tar, tmp_path):
    make_tar("train/0.tar", sample("a"))
    make_tar("we:ird/0.tar", sample("b"))
    with pytest.raises(UserError, match=r"subfolder 'we:ird' has a name that no index takes: rename it"):
        index_shards(tmp_path / "tars", ENDINGS)
    assert not list((tmp_path / "tars").rglob("index.json"))


def test_shards_beside_splits_are_refused(make_tar, tmp_path):
    for name in ("0.tar", "train/0.tar", "val/0.tar"):
        make_tar(name, sample("a"))
    with pytest.raises(
        UserError,
        match=r"tars holds .tar files both itself and in train, val: move one or the other elsewhere",
    ):
        index_shards(tmp_path / "tars", ENDINGS)
