"""Samples are read in any order by any number of processes and threads; errors name a damaged shard."""

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from toy_shards import CONTENT

from map_core import UserError
from map_core.shards import ShardReader, ShardRoot, ShardSettings, read_index
from map_core.shards import reader as reading
from map_core.shards.reader import Folder
from map_core.training.loading import batches_in_order


def open_reader(shards):
    return ShardReader(read_index(shards), Folder(shards))


def open_root(shards):
    return ShardRoot(str(shards), ShardSettings(shards / "unused", 10**9)).open("")


class Bytes:
    def __init__(self, reader):
        self.reader = reader

    def __len__(self):
        return len(self.reader)

    def __getitem__(self, index):
        return torch.tensor(len(self.reader.read(index))), torch.tensor(os.getpid())


@pytest.mark.parametrize("open_shards", [1, 2, 64])
def test_threads_that_close_each_others_shards_read_right(shards, monkeypatch, open_shards):
    monkeypatch.setattr(reading, "OPEN_SHARDS", open_shards)
    reader = open_reader(shards)
    numbers = [number * 7 % 40 for number in range(2000)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(reader.read, numbers)) == [CONTENT[number] for number in numbers]
    assert len(reader._open) <= open_shards


def test_no_descriptor_is_left_open(shards):
    reader = open_reader(shards)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(40):
        reader.read(number)
    assert len(os.listdir("/proc/self/fd")) == before + 4
    reader.source = reader._open = None
    assert len(os.listdir("/proc/self/fd")) == before


def test_loading_processes_read_what_their_parent_has_open(shards):
    data = Bytes(open_reader(shards))
    assert [int(data[number][0]) for number in range(40)] == list(map(len, CONTENT))
    batches = list(batches_in_order(data, batch_size=4, workers=2, device=torch.device("cpu")))
    assert torch.cat([sizes for sizes, _ in batches]).tolist() == list(map(len, CONTENT))
    assert os.getpid() not in torch.cat([processes for _, processes in batches]).tolist()


def test_a_reader_can_be_sent_to_a_process_that_was_not_forked(shards):
    reader = open_reader(shards)
    reader.read(0)
    assert pickle.loads(pickle.dumps(reader)).read(11) == CONTENT[11]


def last_sample_of(reader, shard):
    samples = reader.index.samples
    return max((n for n in range(40) if samples["shard"][n] == shard), key=lambda n: samples["offset"][n])


def test_a_shard_that_is_cut_off_is_named_before_anything_is_read(shards):
    with (shards / "000002.tar").open("r+b") as file:
        file.truncate(20_000)
    message = r"shard .*/000002.tar has 20000 bytes, of 40960 in the index \(it was cut off\): copy it again"
    with pytest.raises(UserError, match=message.replace("40960", r"\d+")):
        open_root(shards)


def test_a_shard_that_grew_is_another(shards):
    with (shards / "000001.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(
        UserError, match=r"shard .*/000001.tar has .* in the index \(it is another\): copy it again"
    ):
        open_root(shards)


def test_a_missing_shard_is_named_before_anything_is_read(shards):
    (shards / "000003.tar").unlink()
    with pytest.raises(
        UserError, match=r"shard .*/000003.tar is missing, which the index names: copy it there again"
    ):
        open_root(shards)


def test_a_shard_that_is_cut_off_while_it_is_read_is_reported_in_one_sentence(shards):
    reader = open_root(shards)
    number = last_sample_of(reader, 2)
    reader.read(number)
    with (shards / "000002.tar").open("r+b") as file:
        file.truncate(int(reader.index.samples["offset"][number]) + 3)
    with pytest.raises(
        UserError, match=r"/000002.tar ends \d+ bytes earlier than the index says, so the shard was"
    ):
        reader.read(number)


def test_a_changed_byte_is_found_when_its_sample_is_read(shards):
    reader = open_root(shards)
    first, other = (
        next(n for n in range(40) if reader.index.samples["shard"][n] == shard) for shard in (1, 0)
    )
    with (shards / "000001.tar").open("r+b") as file:
        file.seek(int(reader.index.samples["offset"][first]))
        file.write(b"S")
    name = reader.index.name(first)
    with pytest.raises(
        UserError,
        match=rf"{name} of .*/000001.tar has another checksum than the index says, .* --resume auto, or write",
    ):
        reader.read(first)
    assert reader.read(other) == CONTENT[other]


def test_a_shard_without_read_permission_is_reported_in_one_sentence(shards, tmp_path):
    reader = open_reader(shards)
    shutil.move(shards / "000000.tar", tmp_path / "away.tar")
    (shards / "000000.tar").mkdir()
    number = last_sample_of(reader, 0)
    with pytest.raises(UserError, match=r"/000000.tar .*(has \d+ bytes|Is a directory)"):
        reader.read(number)


def test_a_pipe_in_the_place_of_a_shard_is_not_waited_for(shards):
    index = read_index(shards)
    (shards / index.shards[0].name).unlink()
    os.mkfifo(shards / index.shards[0].name)
    with pytest.raises(UserError, match=r"cannot read shard .*000000.tar \(it is a pipe, socket or device"):
        Folder(shards).check(index)
