"""Shards hold the content of the files, are the same whoever writes them, and are written completely or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from toy_shards import CONTENT, NAMES, files

from map_core import UserError
from map_core.shards import ShardReader, parse_size, read_index, write_shards
from map_core.shards.reader import Folder


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_sample_i_of_the_shards_is_file_i(shards):
    index = read_index(shards)
    reader = ShardReader(index, Folder(shards))
    assert [reader.read(number) for number in range(len(reader))] == CONTENT
    assert [index.name(number) for number in range(len(index))] == NAMES
    assert index.labels.tolist() == [0, 1] * 20
    assert index.classes == ("a", "b")


def test_any_tar_reads_them_as_webdataset_names_them(shards):
    entries = {}
    for path in sorted(shards.glob("*.tar")):
        assert path.stat().st_size <= 41_000
        with tarfile.open(path) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                entries[member.name] = archive.extractfile(member).read()
    keys = sorted({name.split(".")[0] for name in entries})
    assert keys == [f"{number:09}" for number in range(40)]
    for key in keys:
        origin = json.loads(entries[f"{key}.json"])
        number = NAMES.index(origin["path"])
        assert entries[f"{key}.bin"] == CONTENT[number]
        assert (entries[f"{key}.cls"], origin["class"]) == (str(number % 2).encode(), "ab"[number % 2])


def test_each_shard_is_a_sample_of_the_whole(shards):
    samples = read_index(shards).samples
    assert len(read_index(shards).shards) == 4
    for shard in range(3):
        numbers = np.flatnonzero(samples["shard"] == shard)
        assert len(numbers) == 13
        assert 10 < numbers.mean() < 30
        assert (np.diff(numbers) > 1).any(), "neighbours lie together"


def test_index_json_counts_and_sums_up(shards):
    manifest = json.loads((shards / "index.json").read_text())
    assert manifest["samples"] == 40
    assert manifest["samples_of_class"] == {"a": 20, "b": 20}
    for shard in manifest["shards"]:
        content = (shards / shard["name"]).read_bytes()
        assert shard["bytes"] == len(content)
        assert shard["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_same_samples_give_the_same_bytes_and_another_seed_others(shards, tmp_path):
    write_shards({"": files()}, tmp_path / "again", size=41_000)
    assert tree(tmp_path / "again") == tree(shards)
    write_shards({"": files()}, tmp_path / "other", size=41_000, seed=1)
    assert (tmp_path / "other/000000.tar").read_bytes() != (shards / "000000.tar").read_bytes()


def test_samples_without_labels_have_none(tmp_path):
    write_shards({"": files(classes=(), labels=np.zeros(40, int))}, tmp_path / "out", size=41_000)
    index = read_index(tmp_path / "out")
    assert (index.classes, index.labels.tolist()) == ((), [0] * 40)
    with tarfile.open(tmp_path / "out/000000.tar") as archive:
        assert not any(name.endswith(".cls") for name in archive.getnames())


def test_a_sample_larger_than_a_shard_has_one_of_its_own(tmp_path):
    write_shards({"": files()}, tmp_path / "out", size=1)
    assert [shard.samples for shard in read_index(tmp_path / "out").shards] == [1] * 40


@pytest.mark.parametrize("name", ["späte Blüte/a\nb.bin", "x" * 300 + ".bin", "\udcff.bin", "a:b.bin", "42"])
def test_any_name_of_a_file_survives(tmp_path, name):
    names = [*NAMES[:-1], name]
    write_shards({"": files(names=names)}, tmp_path / "out", size=41_000)
    index = read_index(tmp_path / "out")
    assert [index.name(number) for number in range(40)] == names
    assert ShardReader(index, Folder(tmp_path / "out")).read(39) == CONTENT[39]


def test_a_folder_that_holds_something_is_not_written_into(shards):
    before = tree(shards)
    with pytest.raises(UserError, match="shards is not empty: remove it, or choose another --out"):
        write_shards({"": files()}, shards, size=41_000)
    assert tree(shards) == before


def test_a_split_that_no_index_could_name_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"split 'a:b' has a name that no index takes: rename its folder"):
        write_shards({"train": files(), "a:b": files()}, tmp_path / "out", size=41_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [UserError("image 7 cannot be read"), KeyboardInterrupt()], ids=type)
def test_a_write_that_fails_leaves_nothing(tmp_path, error):
    def read(number):
        if number == 7:
            raise error
        return CONTENT[number]

    with pytest.raises(type(error)):
        write_shards({"": replace(files(), read=read)}, tmp_path / "out", size=4000)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_reported_in_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write shards to .*out \(No space left.*free some space"):
            write_shards({"": files()}, tmp_path / "out", size=4000)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_command_do_no_harm(tmp_path, shards):
    (tmp_path / ".unfinished_out").mkdir()
    (tmp_path / ".unfinished_out/000099.tar").write_text("half")
    write_shards({"": files()}, tmp_path / "out", size=41_000)
    assert tree(tmp_path / "out") == tree(shards)
    assert not (tmp_path / ".unfinished_out").exists()


def test_a_moved_set_is_the_same_set(shards, tmp_path):
    shutil.move(shards, tmp_path / "elsewhere")
    assert (
        ShardReader(read_index(tmp_path / "elsewhere"), Folder(tmp_path / "elsewhere")).read(3) == CONTENT[3]
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("2 gb", 2_000_000_000),
        ("1.5KB", 1500),
        ("12", 12),
        ("12B", 12),
        ("1TB", 10**12),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text, "size") == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "0.1B", "5 apples", "1e3MB", "5MiB", "9" * 400])
def test_other_sizes_are_refused(text):
    with pytest.raises(UserError, match=r"size must be a size such as 500MB or 2GB; got .*; change --size"):
        parse_size(text, "size")


def test_the_folder_that_one_is_in_is_no_new_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^\. is where this runs or the root of a disk: name a new folder"):
        write_shards({"": files()}, type(tmp_path)(), size=41_000)
    assert tree(tmp_path) == {}


def test_a_second_command_at_the_same_place_is_refused_and_the_first_goes_on(tmp_path, shards):
    program = """
import sys, numpy
from pathlib import Path
from map_core.shards import Files, write_shards
write_shards({"": Files(["a.bin"], lambda number: b"x", numpy.zeros(1, int))}, Path(sys.argv[1]), size=1000)
"""
    out, messages = tmp_path / "out", []

    def read(number):
        if number == 20:
            command = [sys.executable, "-c", program, str(out)]
            messages.append(subprocess.run(command, capture_output=True, text=True, check=False).stderr)
        return CONTENT[number]

    write_shards({"": replace(files(), read=read)}, out, size=41_000)
    assert re.search(r"UserError: .*unfinished_out is in use by process .*choose another --out", messages[0])
    assert tree(out) == tree(shards)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shards"]
