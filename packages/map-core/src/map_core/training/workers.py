"""The processes that load samples: what each one is reading, how they end, and the error when one dies or hangs."""

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
CHECK_SECONDS = 5.0  # between checks that the processes are alive, while a batch is awaited
PATIENCE_SECONDS = 600.0  # a batch that takes longer is taken to hang
JOIN_SECONDS = 1.0  # for a killed process to end; one that waits for a dead disk takes longer
IDLE = -1
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class CurrentSamples:
    """The sample that each loading process is reading; the processes write it, their parent reads it.

    Args:
        workers: Number of loading processes.
    """

    def __init__(self, workers: int) -> None:
        self._samples = RawArray("q", [IDLE] * max(workers, 1))
        self._processes = RawArray("q", [IDLE] * max(workers, 1))

    @contextlib.contextmanager
    def reading(self, sample: int) -> Iterator[None]:
        """Note that this process reads ``sample`` while the block runs."""
        worker = get_worker_info()
        slot = 0 if worker is None else worker.id
        self._processes[slot], self._samples[slot] = os.getpid(), sample
        try:
            yield
        finally:
            self._samples[slot] = IDLE

    def samples(self) -> dict[int, int]:
        """The samples that are being read, by process id."""
        return {
            process: sample
            for process, sample in zip(self._processes, self._samples, strict=True)
            if sample != IDLE
        }


def watch_batches(
    loader: "DataLoader[Any]",
    current_samples: CurrentSamples,
    names: Callable[[], Sequence[str] | None],
    *,
    patience: float = PATIENCE_SECONDS,
    check_every: float = CHECK_SECONDS,
) -> Iterator[Any]:
    """Yield the batches of ``loader``; its processes end with the iteration, whatever ends it.

    Args:
        loader: Where it has processes, with ``timeout=check_every`` and ``worker_init_fn=init_worker``.
        current_samples: Written by its data set.
        names: Returns the samples' names; called only where a message needs one, as listing millions takes seconds.
        patience: Seconds to wait for a batch.
        check_every: Seconds between two checks of the processes.

    Raises:
        UserError: a process died, or a batch did not come in time; the message names what was being read.
    """
    iterator, processes = start_workers(loader)
    try:
        while True:
            wait_start = time.monotonic()
            while True:
                try:
                    batch = next(iterator)
                    break
                except StopIteration:
                    return
                except (RuntimeError, EOFError, OSError) as error:
                    if not processes or str(error).startswith("Caught "):
                        raise  # raised by the data set
                    raised_by_loader = str(error).startswith("DataLoader ")
                    if not raised_by_loader:  # the process that made a batch hands over its memory
                        await_death(processes, CHECK_SECONDS)
                    for process in processes:
                        if not process.is_alive():
                            raise UserError(describe_death(process, current_samples, names())) from None
                    if not raised_by_loader:
                        raise
                    if time.monotonic() - wait_start > patience - check_every:
                        raise UserError(describe_hang(patience, current_samples, names())) from None
            yield batch
    finally:
        for process in processes:  # one that hangs would never notice the end
            process.kill()
        for process in processes:
            process.join(JOIN_SECONDS)


def start_workers(loader: "DataLoader[Any]") -> tuple[Iterator[Any], list[BaseProcess]]:
    """Start a loader's processes so that no signal reaches one before :func:`init_worker` has run in it."""
    earlier_children, handler = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING_SIGNALS)
    try:
        iterator = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    # PyTorch's own handler would raise an error for a dead process in the middle of whatever its parent is doing
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    return iterator, [
        process for process in multiprocessing.active_children() if process not in earlier_children
    ]


def init_worker(worker: int) -> None:
    """Set up a loading process: its parent decides when it ends, and it does not outlive its parent.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group; the run goes on to the end of its step.
    """
    for number in STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING_SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def await_death(processes: Sequence[BaseProcess], seconds: float) -> None:
    """Wait until one of the processes is dead, for at most ``seconds``.

    A dying process closes its files, and with them its sentinel, before it counts as dead.
    """
    ready = wait([process.sentinel for process in processes], seconds)
    for process in processes:
        if process.sentinel in ready:
            process.join(JOIN_SECONDS)


def describe_death(process: BaseProcess, current_samples: CurrentSamples, names: Sequence[str] | None) -> str:
    """Return a message that says how a loading process ended, and at which sample."""
    code = process.exitcode or 0
    ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
    sample = current_samples.samples().get(process.pid or IDLE)
    position = "between two samples" if sample is None else f"while it read {sample_name(sample, names)}"
    cures = {
        -signal.SIGKILL: "if memory ran out, lower --training.workers or the batch size",
        -signal.SIGBUS: "if shared memory ran out, enlarge /dev/shm or lower --training.workers",
    }
    cure = cures.get(code, "look at that sample, or load with workers 0 to see the error itself")
    return f"loading process {process.pid} {ending} {position}; {cure}"


def describe_hang(patience: float, current_samples: CurrentSamples, names: Sequence[str] | None) -> str:
    """Return a message that names the samples that never arrived."""
    samples = [sample_name(sample, names) for sample in current_samples.samples().values()]
    if samples:
        status = f"still being read: {', '.join(samples[:4])}; check that these files and their file system can be read"
    else:
        status = "no sample is being read; check that the loading processes get processor time and memory"
    return f"no batch came within {patience:g} seconds; {status}, then continue with --resume auto"


def sample_name(sample: int, names: Sequence[str] | None) -> str:
    """A sample's number, and its name where it has one."""
    return f"sample {sample}" if names is None else f"sample {sample} ({names[sample]})"
