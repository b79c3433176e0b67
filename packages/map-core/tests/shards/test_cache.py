"""The cache holds the most recently read shards, keeps to its limit, and touches no other files."""

import errno
import fcntl
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from faulty_store import faulty_store
from toy_shards import CONTENT

from map_core import UserError
from map_core.shards import ShardRoot, ShardSettings, fetching, read_index
from map_core.shards.cache import Cache
from map_core.shards.stores import store_at


@pytest.fixture
def store(shards):
    with faulty_store(shards) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def cached_bytes(folder):
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def test_shards_that_were_opened_longest_ago_make_room(store, folder, shards, monkeypatch):
    index = read_index(shards)
    cache = Cache(store_at(store.address), folder, 100_000)  # two of 41 kB

    def read(number):
        os.close(cache.open(index.shards[number]))
        path = folder / f"{index.shards[number].sha256}.tar"
        os.utime(path, (len(store.requests), read.clock))
        read.clock += 1

    read.clock = 1000
    for number in (0, 1, 0, 2, 0, 1):
        read(number)
        assert cached_bytes(folder) <= 100_000
    assert [name for name, _ in store.requests] == [f"00000{number}.tar" for number in (0, 1, 2, 1)]


def test_files_of_somebody_else_are_left_alone(store, folder, shards):
    folder.mkdir()
    (folder / "holidays.tar").write_bytes(bytes(10**6))
    index = read_index(shards)
    cache = Cache(store_at(store.address), folder, 1)
    for shard in index.shards:
        os.close(cache.open(shard))
    assert (folder / "holidays.tar").stat().st_size == 10**6
    assert len(list(folder.glob("*.tar"))) == 2


def test_a_shard_that_came_after_a_process_had_looked_is_not_fetched_again(store, folder, shards):
    shard = read_index(shards).shards[0]
    cache = Cache(store_at(store.address), folder, 10**9)
    os.close(cache.open(shard))
    cache._fetch(shard, folder / f"{shard.sha256}.tar")
    assert len(store.requested(".tar")) == 1
    assert [path.name for path in folder.iterdir()] == [f"{shard.sha256}.tar"]


def test_a_cached_shard_that_was_cut_off_is_fetched_again(store, folder, shards):
    shard = read_index(shards).shards[0]
    cache = Cache(store_at(store.address), folder, 10**9)
    os.close(cache.open(shard))
    os.truncate(folder / f"{shard.sha256}.tar", 5)
    descriptor = cache.open(shard)
    assert os.fstat(descriptor).st_size == shard.bytes
    os.close(descriptor)


def test_a_download_that_was_killed_is_continued(store, folder, shards):
    shard = read_index(shards).shards[0]
    folder.mkdir()
    (folder / f".unfinished_{shard.sha256}.tar").write_bytes((shards / shard.name).read_bytes()[:1000])
    os.close(Cache(store_at(store.address), folder, 10**9).open(shard))
    assert store.requests == [(shard.name, 1000)]
    assert [path.name for path in folder.iterdir()] == [f"{shard.sha256}.tar"]


def test_many_that_want_a_shard_at_once_fetch_it_once(store, folder):
    readers = [ShardRoot(store.address, ShardSettings(folder, 10**9)).open("") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda reader: [reader.read(number) for number in range(40)], readers))
    assert read == [CONTENT] * 4
    assert len(store.requested(".tar")) == 4


@pytest.mark.parametrize("limit", [41_000, 60_000, 90_000])
def test_a_cache_that_is_smaller_than_the_set_reads_right_and_holds_no_removed_shard_open(
    store, folder, limit
):
    reader = ShardRoot(store.address, ShardSettings(folder, 10**9)).open("")
    reader.source.limit = limit
    numbers = [number * 7 % 40 for number in range(60)]
    for number in numbers:
        assert reader.read(number) == CONTENT[number]
        assert cached_bytes(folder) <= limit
        assert sum(shard.is_removed for shard in reader._open.values()) == 0


def test_a_cache_that_would_drop_what_is_read_next_is_refused(store, folder):
    root = ShardRoot(store.address, ShardSettings(folder, 100_000))
    assert root.open("", at_once=1).read(3) == CONTENT[3]
    with pytest.raises(
        UserError,
        match=r"123 KB of the shards of http.* are read at a time, and data.shard_cache_size is 100 KB: raise it, or "
        r"lower data.shuffle_shards \(2\)$",
    ):
        root.open("", at_once=2)
    with pytest.raises(UserError, match=r"1\d\d KB of the shards .* is 100 KB: raise it$"):
        root.open("")


@pytest.mark.parametrize(
    ("number", "cure"),
    [(errno.ENOSPC, "lower data.shard_cache_size, or free some space"), (errno.EROFS, "choose another")],
)
def test_a_failing_disk_is_reported_in_one_sentence(store, folder, shards, monkeypatch, number, cure):
    def refuse(source, target):
        raise OSError(number, os.strerror(number))

    cache = Cache(store_at(store.address), folder, 10**9)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(
            UserError,
            match=rf"cannot keep shards in {folder} \(.*\): {cure}.* then continue with --resume auto",
        ):
            cache.open(read_index(shards).shards[0])


def test_a_cached_shard_that_decayed_is_fetched_again(store, folder, shards):
    reader = ShardRoot(store.address, ShardSettings(folder, 10**9)).open("")
    assert [reader.read(number) for number in range(40)] == CONTENT
    for path in folder.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    assert [reader.read(number) for number in range(40)] == CONTENT
    assert sorted(store.requested(".tar")) == sorted(2 * [(shard.name, 0) for shard in reader.index.shards])


def test_a_cached_shard_that_is_as_the_store_has_it_is_not_fetched_for_ever(store, folder, shards):
    index = read_index(shards)
    reader = ShardRoot(store.address, ShardSettings(folder, 10**9)).open("")
    samples = index.samples.copy()
    samples["crc32"][3] ^= 1
    reader.index = replace(reader.index, samples=samples)
    with pytest.raises(UserError, match=r"of http.* has another checksum than the index says"):
        reader.read(3)
    assert len(store.requested(".tar")) == 1


def test_a_pipe_in_the_cache_is_not_waited_for(store, folder, shards):
    shard = read_index(shards).shards[0]
    folder.mkdir()
    os.mkfifo(folder / f"{shard.sha256}.tar")
    with pytest.raises(UserError, match=r"cannot keep shards in .* \(it is a pipe, socket or device"):
        Cache(store_at(store.address), folder, 10**9).open(shard)


def test_an_index_that_would_fill_the_disk_is_not_fetched(store, folder, shards):
    manifest = json.loads((shards / "index.json").read_text())
    manifest["files"]["names.txt"]["bytes"] = 10**15
    (shards / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(
        UserError, match=r"names.txt has 1e\+03 TB, says index.json, and data.shard_cache_size is 1 GB: raise"
    ):
        ShardRoot(store.address, ShardSettings(folder, 10**9)).open("")
    assert not store.requested("names.txt")


def test_a_decayed_shard_that_another_process_has_fetched_again_is_opened_again(store, folder):
    one, two = (ShardRoot(store.address, ShardSettings(folder, 10**9)).open("") for _ in range(2))
    assert [reader.read(number) for reader in (one, two) for number in range(40)] == CONTENT * 2
    for path in folder.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    assert [reader.read(number) for number in range(40) for reader in (one, two)] == [
        content for content in CONTENT for _ in range(2)
    ]


def test_a_thread_that_read_a_decayed_shard_does_not_discard_the_new_one(store, folder):
    reader = ShardRoot(store.address, ShardSettings(folder, 10**9)).open("")
    number = int(reader.index.samples["shard"][0])
    old = reader._open_shard(number)
    (path,) = folder.glob("*.tar")
    path.write_bytes(bytes(path.stat().st_size))
    assert reader.read(0) == CONTENT[0]
    new = reader._open_shard(number)
    assert reader._can_retry(number, old)
    assert reader._open_shard(number) is new


def test_a_download_that_starts_over_stays_locked(store, folder, shards, monkeypatch):
    shard = read_index(shards).shards[0]
    partial = folder / f".unfinished_{shard.sha256}.tar"
    folder.mkdir()
    partial.write_bytes(bytes(1000))  # as a power cut leaves it
    store_of_cache = store_at(store.address)

    class Watched:
        address = store_of_cache.address

        def open(self, name, start):
            with partial.open("r+b") as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return store_of_cache.open(name, start)

    os.close(Cache(Watched(), folder, 10**9).open(shard))
    assert store.requests == [(shard.name, 1000), (shard.name, 0)]
    assert [path.name for path in folder.iterdir()] == [f"{shard.sha256}.tar"]


@pytest.mark.parametrize("fault", [None, "no length"])
def test_an_index_that_is_too_large_is_not_fetched(store, folder, monkeypatch, fault):
    monkeypatch.setattr(fetching, "MAX_INDEX_BYTES", 100)
    store.faults = iter([fault])
    with pytest.raises(
        UserError,
        match=rf"{store.address}/index.json is longer than 100 B: it is not a file of this set; correct",
    ):
        ShardRoot(store.address, ShardSettings(folder, 10**9)).open("")
    assert list(folder.iterdir()) == []


def test_a_file_that_is_no_index_leaves_nothing(store, folder, shards):
    (shards / "index.json").write_text("{}")
    with pytest.raises(UserError, match=r"index.json is not a valid index of shards"):
        ShardRoot(store.address, ShardSettings(folder, 10**9)).open("")
    assert list(folder.iterdir()) == []
