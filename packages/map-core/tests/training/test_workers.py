"""A loading process that dies or hangs is named, with the sample that it reads; none outlives its parent."""

import multiprocessing
import os
import signal
import time
from multiprocessing import resource_sharer

import pytest
import torch
from processes import start, wait_for

from map_core import UserError
from map_core.training import workers
from map_core.training.loading import load_batches
from map_core.training.plan import SampleKey
from map_core.training.workers import await_death


class Faulty:
    """Ten samples; reading the sixth calls ``fault``."""

    names = tuple(f"picture_{index}.png" for index in range(10))

    def __init__(self, fault):
        self.fault = fault

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index == 5:
            self.fault()
        return torch.tensor(index)


def batches(fault, **changes):
    settings = {"workers": 2, "device": torch.device("cpu"), "collate": torch.stack, "patience": 1.5}
    settings["sampler"] = [SampleKey(0, index, 0) for index in range(10)]
    return load_batches(Faulty(fault), 0, **(settings | changes), batch_size=2)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(3600)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            kill,
            r"loading process \d+ was killed by SIGKILL while it read sample 5 \(picture_5.png\); if memory",
        ),
        (
            lambda: os._exit(3),
            r"process \d+ exited with status 3 while it read sample 5 .*; look at that sample",
        ),
        (
            hang,
            r"no batch came within 1.5 seconds; still being read: sample 5 \(picture_5.png\); check that these",
        ),
    ],
    ids=["killed", "exits", "hangs"],
)
def test_a_process_that_does_not_go_on_is_named_with_its_sample(fault, message):
    start_time = time.monotonic()
    with pytest.raises(UserError, match=message):
        list(batches(fault))
    assert time.monotonic() - start_time < 30
    assert multiprocessing.active_children() == []


def test_a_process_that_dies_while_its_batch_is_taken_is_named_with_its_sample():
    """The process that made a batch hands over its memory, and may be half dead by then."""
    half_dead = multiprocessing.Event()

    def die_slowly():
        time.sleep(0.5)  # its earlier batch is in the queue by then
        resource_sharer.stop()  # nothing is handed over any more
        half_dead.set()
        time.sleep(0.5)
        kill()

    keys = [SampleKey(0, index, 0) for index in (0, 1, 2, 3, 4, 6, 7, 8, 5, 9)]
    iterator = batches(die_slowly, sampler=keys)
    next(iterator)
    assert half_dead.wait(30)
    with pytest.raises(UserError, match=r"killed by SIGKILL while it read sample 5 \(picture_5.png\)"):
        list(iterator)


def test_a_process_that_has_closed_its_files_is_waited_for_until_it_is_dead():
    def die_slowly():
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # as the kernel does for a process that was killed
        time.sleep(0.3)
        kill()

    process = multiprocessing.get_context("fork").Process(target=die_slowly)
    process.start()
    await_death([process], 30.0)
    assert not process.is_alive()


@pytest.mark.parametrize("kind", [RuntimeError, EOFError, OSError])
def test_an_error_of_the_data_set_is_passed_on(kind):
    def fail():
        raise kind("DataLoader is no excuse")

    with pytest.raises(kind, match=f"Caught {kind.__name__} in DataLoader worker process 0"):
        list(batches(fail))


@pytest.mark.parametrize("kind", [RuntimeError, EOFError, OSError])
def test_without_processes_an_error_of_the_data_set_comes_at_once(kind, monkeypatch):
    def fail():
        raise kind("a broken disk")

    monkeypatch.setattr(workers, "await_death", lambda *arguments: pytest.fail("nobody's death was awaited"))
    with pytest.raises(kind, match=r"^a broken disk$"):
        list(batches(fail, workers=0))


def test_processes_that_hang_end_with_an_iteration_that_is_left():
    iterator = batches(hang, patience=600.0)
    assert next(iterator).tolist() == [0, 1]
    iterator.close()
    assert multiprocessing.active_children() == []


def test_processes_obey_nobody_but_their_parent():
    """Ctrl-C and SIGTERM reach the whole group; the parent decides."""

    def signal_itself():
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)

    assert torch.cat(list(batches(signal_itself))).tolist() == list(range(10))


def test_what_pytorch_would_do_about_a_dead_child_is_as_before():
    handler = signal.getsignal(signal.SIGCHLD)
    list(batches(lambda: None))
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_processes_that_hang_die_with_a_parent_that_is_killed(tmp_path):
    process = start("orphans.py", tmp_path / "children")
    wait_for((tmp_path / "children").exists, process)
    children = [int(number) for number in (tmp_path / "children").read_text().split()]
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=30)
    for _ in range(100):
        if not any(is_alive(child) for child in children):
            return
        time.sleep(0.1)
    raise AssertionError(f"left behind: {[child for child in children if is_alive(child)]}")


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
