"""The processes that load samples: what each one reads, how they end, and what is said of one that does not go on."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Any

from torch.utils.data import DataLoader, get_worker_info

from map_core.errors import UserError

STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOK_SECONDS = 5.0  # how often somebody looks whether the processes are alive while a batch is awaited
PATIENCE_SECONDS = 600.0  # a batch that takes longer hangs
END_SECONDS = 1.0  # for a killed process to be gone; one that waits for a dead disk takes longer
NOTHING = -1
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class Reading:
    """Which sample each loading process is at; the processes write it, their parent reads it.

    Args:
        workers: How many there are.
    """

    def __init__(self, workers: int) -> None:
        self._samples = RawArray("q", [NOTHING] * max(workers, 1))
        self._processes = RawArray("q", [NOTHING] * max(workers, 1))

    @contextlib.contextmanager
    def of(self, sample: int) -> Iterator[None]:
        """Note that this process reads ``sample`` while the block runs."""
        worker = get_worker_info()
        slot = 0 if worker is None else worker.id
        self._processes[slot], self._samples[slot] = os.getpid(), sample
        try:
            yield
        finally:
            self._samples[slot] = NOTHING

    def samples(self) -> dict[int, int]:
        """The samples that are being read, by the number of the process."""
        return {
            process: sample
            for process, sample in zip(self._processes, self._samples, strict=True)
            if sample != NOTHING
        }


def watched(
    loader: "DataLoader[Any]",
    reading: Reading,
    names: Callable[[], Sequence[str] | None],
    *,
    patience: float = PATIENCE_SECONDS,
    look: float = LOOK_SECONDS,
) -> Iterator[Any]:
    """Yield the batches of ``loader``; whatever ends the iteration, its processes end with it.

    Args:
        loader: With ``timeout=look`` where it has processes, which :func:`begin_loading` began.
        reading: Written by its data set.
        names: Asked for the samples' names where a message needs one: of millions, they take seconds to list.
        patience: Seconds that a batch may be awaited.
        look: Seconds between two looks at the processes.

    Raises:
        UserError: a process died, or a batch did not come in time; what was being read is named.
    """
    iterator, processes = begin(loader)
    try:
        while True:
            since = time.monotonic()
            while True:
                try:
                    batch = next(iterator)
                    break
                except StopIteration:
                    return
                except (RuntimeError, EOFError, OSError) as error:
                    if str(error).startswith("Caught "):
                        raise  # raised by the data set
                    waiting = str(error).startswith("DataLoader ")
                    if not waiting:  # a batch's memory is handed over by the process that made it
                        await_death(processes, LOOK_SECONDS)
                    for process in processes:
                        if not process.is_alive():
                            raise UserError(death(process, reading, names())) from None
                    if not waiting:
                        raise
                    if time.monotonic() - since > patience - look:
                        raise UserError(hang(patience, reading, names())) from None
            yield batch
    finally:
        for process in processes:  # one that hangs would not hear of the end
            process.kill()
        for process in processes:
            process.join(END_SECONDS)


def begin(loader: "DataLoader[Any]") -> tuple[Iterator[Any], list[BaseProcess]]:
    """Start a loader's processes, such that no signal meets one before :func:`begin_loading` has run in it."""
    before, handler = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING_SIGNALS)
    try:
        iterator = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # PyTorch would raise an error of its own for a dead process, in the midst of whatever its parent does
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    return iterator, [process for process in multiprocessing.active_children() if process not in before]


def begin_loading(worker: int) -> None:
    """Prepare a loading process: its parent decides when it ends, and it does not outlive its parent.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group; the run goes on to the end of its step.
    """
    for number in STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING_SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def await_death(processes: Sequence[BaseProcess], seconds: float) -> None:
    """Wait until one of the processes is dead, or until ``seconds`` have passed.

    A dying process closes its files, and with them its sentinel, before it counts as dead.
    """
    ended = wait([process.sentinel for process in processes], seconds)
    for process in processes:
        if process.sentinel in ended:
            process.join(END_SECONDS)


def death(process: BaseProcess, reading: Reading, names: Sequence[str] | None) -> str:
    """Say how a loading process ended, and at which sample."""
    code = process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
    sample = reading.samples().get(process.pid or NOTHING)
    where = "between two samples" if sample is None else f"while it read {sample_name(sample, names)}"
    cures = {
        -signal.SIGKILL: "if memory ran out, lower --training.workers or the batch size",
        -signal.SIGBUS: "if shared memory ran out, enlarge /dev/shm or lower --training.workers",
    }
    cure = cures.get(code, "look at that sample, or load with workers 0 to see the error itself")
    return f"loading process {process.pid} {how} {where}; {cure}"


def hang(patience: float, reading: Reading, names: Sequence[str] | None) -> str:
    """Say which samples do not come."""
    at = [sample_name(sample, names) for sample in reading.samples().values()]
    what = f"still being read: {', '.join(at[:4])}" if at else "no sample is being read"
    return (
        f"no batch came within {patience:g} seconds; {what}; look whether that file and its file system can be "
        "read, then continue with --resume auto"
    )


def sample_name(sample: int, names: Sequence[str] | None) -> str:
    """A sample's number, and its name where it has one."""
    return f"sample {sample}" if names is None else f"sample {sample} ({names[sample]})"
