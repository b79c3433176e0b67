"""Shards from a store equal those of the folder, whatever happens on the way; a failure is one sentence."""

import itertools

import fsspec
import pytest
from faulty_store import faulty_store
from toy_shards import CONTENT, files

from map_core import UserError
from map_core.shards import ShardRoot, ShardSettings, fetching, stores, write_shards


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Retry as often as usual, with shorter waits."""
    monkeypatch.setattr(stores, "TIMEOUT", 0.3)
    monkeypatch.setattr(fetching, "WAIT", 0.001)


@pytest.fixture
def store(shards):
    with faulty_store(shards) as server:
        yield server


@pytest.fixture
def settings(tmp_path):
    return ShardSettings(tmp_path / "cache", 10**9)


def contents(root, settings, split=""):
    reader = ShardRoot(root, settings).open(split)
    return [reader.read(number) for number in range(len(reader))]


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["drop"] * 8,
        ["silent", "stall"] * 4,
        [503, 429, 500, "drop"],
        ["no length"] * 8,
        ["endless"] * 8,
        ["drop", "no ranges"] * 6,
        [None] * 3 + ["changed"],
        [None] * 3 + [408] * 5 + ["drop", None, *["silent"] * 5],
    ],
    ids=lambda faults: "+".join(map(str, dict.fromkeys(faults))) or "no fault",
)
def test_samples_are_those_of_the_folder_whatever_happens_on_the_way(store, settings, faults):
    store.faults = iter(faults)
    assert contents(store.address, settings) == CONTENT


def test_a_lost_connection_is_continued_where_it_broke_off(store, settings, shards):
    store.faults = iter([None, None, None, "drop", "drop"])
    assert contents(store.address, settings) == CONTENT
    name = store.requested(".tar")[0][0]
    size = (shards / name).stat().st_size
    assert store.requested(".tar")[:3] == [(name, 0), (name, size // 2), (name, size * 3 // 4)]


def test_a_shard_is_fetched_once(store, settings):
    assert contents(store.address, settings) == contents(store.address + "/", settings) == CONTENT
    assert sorted(store.requested(".tar")) == [(f"00000{number}.tar", 0) for number in range(4)]
    assert store.requested("samples.table") == [("samples.table", 0)]
    assert len(store.requested("index.json")) == 2, "the index may be another one by now"


def test_the_address_of_the_index_is_that_of_the_set(store, settings):
    assert contents(f"{store.address}/index.json", settings) == CONTENT


def test_splits_lie_below_the_address(tmp_path, settings):
    write_shards({"train": files(), "late summer": files()}, tmp_path / "set", size=41_000)
    with faulty_store(tmp_path) as server:
        root = ShardRoot(f"{server.address}/set", settings)
        assert root.splits == ("train", "late summer")
        assert contents(f"{server.address}/set", settings, "late summer") == CONTENT


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("silent", "nothing came for 0.3 seconds"),
        (503, "it answers 503 Service Unavailable"),
        ("stall", "nothing came for 0.3 seconds"),
        ("drop", r"the connection ended after 40959 of 40960 bytes"),
    ],
)
def test_a_store_that_does_not_recover_is_reported_in_one_sentence_with_cure(store, settings, fault, reason):
    reader = ShardRoot(store.address, settings).open("")
    store.faults = itertools.repeat(fault)
    with pytest.raises(
        UserError,
        match=rf"^cannot fetch {store.address}/00000\d.tar \({reason}, 6 times in a row\): look at the network and the "
        "store, then continue with --resume auto$",
    ):
        reader.read(0)
    store.faults = iter(())
    assert [reader.read(number) for number in range(40)] == CONTENT


def test_a_server_that_is_gone_is_reported_in_one_sentence(shards, settings):
    with faulty_store(shards) as server:
        address = server.address
    with pytest.raises(UserError, match=rf"cannot fetch {address}/index.json \(Connection refused, 6 times"):
        ShardRoot(address, settings).open("")


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([404], r"/index.json does not exist: correct data.root, or copy the set there again"),
        ([403], r"/index.json may not be read: give this machine the right to, or correct data.root"),
        ([418], r"/index.json cannot be fetched \(the server answers 418 .*\): correct data.root"),
        (["cut"] * 2, r"/index.json is not a valid index of shards \(not valid JSON\)"),
        (
            [None, "cut"],
            r"/samples.table has \d+ bytes, of \d+ in the index: it was changed or cut off",
        ),
        ([None, "changed", "changed"], r"/samples.table has another checksum than the index says"),
        ([None] * 4 + [410], r"\d.tar does not exist: correct data.root"),
        ([None] * 4 + ["cut"], r"\d.tar has \d+ bytes, of \d+ in the index: it was changed or cut off; copy"),
        ([None] * 4 + ["changed"] * 2, r"\d.tar has another checksum than the index says: it was changed or"),
        ([None] * 4 + ["drop", "another range"], r"\d.tar is sent from another byte than was asked for"),
        ([None] * 4 + ["drop", "endless"], r"\d.tar is sent from another byte than was asked for"),
    ],
    ids=str,
)
def test_missing_and_changed_files_of_a_store_are_reported_at_once(store, settings, faults, message):
    store.faults = iter(faults)
    with pytest.raises(UserError, match=message):
        contents(store.address, settings)


def test_a_set_that_changes_while_its_index_is_read_is_not_mixed(store, settings, shards, tmp_path):
    assert contents(store.address, settings) == CONTENT
    write_shards({"": files(read=CONTENT[::-1].__getitem__)}, tmp_path / "new", size=41_000)
    for path in (tmp_path / "new").iterdir():
        path.replace(shards / path.name)
    assert contents(store.address, settings) == CONTENT[::-1]


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("s4://bucket/set", r"data.root s4://bucket/set cannot be opened \(Protocol not known: s4\): correct it"),
        ("absent://bucket/set", r"data.root absent://bucket/set needs a package that is not installed \(.*\): pip"),
        ("memory://nothing", r"memory://nothing/index.json does not exist: correct data.root"),
        ("http://[x/set", r"http://\[x/set/index.json is not a valid address \(.*\): correct data.root"),
        ("http://host:port/set", r"http://host:port/set/index.json is not a valid address \(.*\): correct data.root"),
    ],
)  # fmt: skip
def test_an_address_that_leads_nowhere_is_reported(settings, root, message):
    fsspec.register_implementation("absent", "no_package_of_this_name.Files", clobber=True)
    with pytest.raises(UserError, match=message):
        ShardRoot(root, settings).open("")


def test_what_fsspec_reaches_is_read_as_well(shards, settings):
    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe(f"/set/{path.name}", path.read_bytes())
    try:
        assert contents("memory://set", settings) == CONTENT
    finally:
        memory.rm("/set", recursive=True)
