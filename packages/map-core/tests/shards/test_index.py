"""Everything in an index is verified: it may have come from a store, or been damaged on the way."""

import json
import os

import numpy as np
import pytest
from toy_shards import files

from map_core import UserError
from map_core.shards import ShardReader, ShardRoot, ShardSettings, has_index, index, read_index, write_shards
from map_core.shards.index import SAMPLE, TABLE, checksum_of
from map_core.shards.reader import Folder

HUGE = {"name": "x", "bytes": 2**63, "samples": 1, "sha256": "0" * 64}
OUTSIDE_NAMES = ["../000000.tar", "/etc/passwd", "a/b.tar", "..", "", "a\\b", "x\0", 5, None, "C:x"]


CLAIM = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,)}\n"


def change(folder, /, **changes):
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_samples(shards, column, row, value):
    samples = np.load(shards / TABLE)
    samples[column][row] = value
    save_samples(shards, samples)


def save_samples(shards, samples):
    with (shards / TABLE).open("wb") as file:
        np.save(file, samples)
    recorded = json.loads((shards / "index.json").read_text())["files"]
    change(shards, files=recorded | {TABLE: checksum_of(shards / TABLE)})


@pytest.mark.parametrize("name", OUTSIDE_NAMES, ids=repr)
def test_a_shard_that_lies_elsewhere_is_refused(shards, name):
    entries = json.loads((shards / "index.json").read_text())["shards"]
    entries[2]["name"] = name
    change(shards, shards=entries)
    with pytest.raises(
        UserError,
        match=r"is not a valid index of shards \(shard 2 (is called .*not a file in the folder|has)",
    ):
        read_index(shards)


@pytest.mark.parametrize("name", OUTSIDE_NAMES, ids=repr)
def test_a_split_that_lies_elsewhere_is_refused(tmp_path, name):
    write_shards({"train": files(), "val": files()}, tmp_path / "out", size=41_000)
    change(tmp_path / "out", splits=["train", name])
    root = ShardRoot(str(tmp_path / "out"), ShardSettings(tmp_path / "cache", 10**9))
    with pytest.raises(UserError, match=r"its splits are not names of folders"):
        _ = root.splits


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("shard", 4, "row 5 of samples.table has shard 4"),
        ("shard", -1, "row 5 of samples.table has shard -1"),
        ("offset", -512, "row 5 of samples.table has offset -512"),
        ("offset", 2**62, "row 5 of samples.table has bytes"),
        ("bytes", 2**40, "row 5 of samples.table has bytes 1099511627776"),
        ("bytes", -1, "row 5 of samples.table has offset"),
        ("label", 2, "row 5 of samples.table has label 2"),
        ("label", -1, "row 5 of samples.table has label -1"),
        ("name", 0, "row 4 of samples.table has name"),
        ("name", 2**60, "row 5 of samples.table has name"),
    ],
)
def test_a_row_that_points_at_nothing_is_refused(shards, column, value, message):
    change_samples(shards, column, 5, value)
    with pytest.raises(UserError, match=message):
        read_index(shards)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format is not 'map shards 1'"),
        ({"classes": "ab"}, "classes are not names"),
        ({"classes": ["a", 1]}, "classes are not names"),
        ({"classes": ["a", "a"]}, "two classes have one name"),
        ({"shards": None}, "shards is not a list"),
        ({"shards": [{"name": "x"}]}, "shard 0 lacks a valid name, bytes, samples or sha256"),
        ({"shards": [HUGE]}, "shard 0 lacks a valid name, bytes, samples or sha256"),
        ({"samples": 41}, "samples is 41, and samples.table has 40 rows"),
        ({"files": {}}, "files is not size and sha256 of samples.table and names.txt"),
        ({"splits": []}, None),
    ],
    ids=str,
)
def test_an_index_of_another_form_is_refused(shards, changes, message):
    change(shards, **changes)
    if message is None:  # the index of a folder of splits, which is not read here
        assert len(read_index(shards)) == 40
        return
    with pytest.raises(UserError, match=f"shards/index.json is not a valid index of shards \\({message}"):
        read_index(shards)


def test_other_columns_are_refused(shards):
    save_samples(shards, np.zeros(40, dtype=SAMPLE.descr[:3]))
    with pytest.raises(UserError, match=r"samples.table does not have the columns shard, offset, bytes"):
        read_index(shards)


def test_objects_in_the_table_are_not_unpickled(shards, tmp_path):
    class Malice:
        def __reduce__(self):
            return (tmp_path / "executed").mkdir, ()

    with (shards / TABLE).open("wb") as file:
        np.save(file, np.array([Malice()], dtype=object), allow_pickle=True)
    recorded = json.loads((shards / "index.json").read_text())["files"]
    change(shards, files=recorded | {TABLE: checksum_of(shards / TABLE)})
    with pytest.raises(UserError, match=r"is not a valid index of shards \(samples.table: "):
        read_index(shards)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4 an archive",
        b"\x93NUMPY\1\0\2\0{}",
        np.lib.format.magic(1, 0) + b"\x46\0" + CLAIM,
        b"\x93NUMPY\1\0\6\0((((((",
        b"\x93NUMPY\1\0\12\0{'descr': ['",
    ],
    ids=["empty", "zip", "no header", "more rows than bytes", "brackets", "quote"],
)
def test_a_table_that_is_no_array_is_reported_in_one_sentence(shards, content):
    (shards / TABLE).write_bytes(content)
    recorded = json.loads((shards / "index.json").read_text())["files"]
    change(shards, files=recorded | {TABLE: checksum_of(shards / TABLE)})
    with pytest.raises(UserError, match=r"is not a valid index of shards \(samples.table: "):
        read_index(shards)


@pytest.mark.parametrize("name", [TABLE, "names.txt"])
def test_a_damaged_file_of_the_index_is_named(shards, name):
    content = bytearray((shards / name).read_bytes())
    content[-1] ^= 1
    (shards / name).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"shards/{name} is not the file that index.json was written with: copy"
    ):
        read_index(shards)
    (shards / name).unlink()
    with pytest.raises(UserError, match=rf"has an index.json but no {name}: copy the whole folder again"):
        read_index(shards)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000], ids=range(5))
def test_a_broken_index_json_is_reported_in_one_sentence(shards, content):
    (shards / "index.json").write_bytes(content)
    with pytest.raises(
        UserError,
        match=r"^.*index.json is not a valid index of shards \(.*\): write it with the command shard",
    ):
        read_index(shards)


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "zeros"]
)
def test_an_endless_index_json_is_reported_in_one_sentence(shards, make):
    (shards / "index.json").unlink()
    make(shards / "index.json")
    assert not has_index(str(shards))
    with pytest.raises(UserError, match=r"cannot read .*index.json \(it is a pipe, socket or device"):
        read_index(shards)


def test_a_folder_without_index_says_how_to_get_one(tmp_path):
    with pytest.raises(
        UserError, match=r"has no index.json, which shards need: .* or, for tar files .* shard --index"
    ):
        read_index(tmp_path)
    assert not has_index(str(tmp_path))


def test_an_index_json_of_something_else_makes_no_shards(tmp_path):
    (tmp_path / "index.json").write_text('{"photos": []}')
    assert not has_index(str(tmp_path))


@pytest.mark.parametrize("address", ["https://host/set", "s3://bucket/set", "HF://datasets/a/b"])
def test_an_address_is_one_of_shards(address):
    assert has_index(address)


def test_two_shards_of_one_name_are_refused(shards):
    entries = json.loads((shards / "index.json").read_text())["shards"]
    change(shards, shards=[entries[0], *entries[:3]])
    with pytest.raises(UserError, match="two shards have one name"):
        read_index(shards)


def test_the_digest_tells_sets_apart(shards, tmp_path):
    write_shards({"": files()}, tmp_path / "same", size=41_000)
    write_shards({"": files(names=[f"{n}.bin" for n in range(40)])}, tmp_path / "other", size=41_000)
    same, other = read_index(tmp_path / "same").digest, read_index(tmp_path / "other").digest
    assert read_index(shards).digest == same != other
    assert (
        ShardReader(read_index(shards), Folder(shards)).where(3)
        == f"b/03.bin of {shards}/" + read_index(shards).shard_of(3).name
    )


def test_an_index_that_is_too_large_is_none(shards, monkeypatch):
    monkeypatch.setattr(index, "MAX_INDEX_BYTES", 100)
    with pytest.raises(
        UserError, match=r"index.json is not a valid index of shards \(it has more than 100 bytes\): write it"
    ):
        read_index(shards)
