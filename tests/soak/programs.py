"""Commands as processes that can be watched, stopped and killed, one for each rank.

They are forked from a process that has imported everything, so that restarting a run does not import its libraries
again. From the parsing of the command line on, they do the same as a command started by a shell.
"""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import torch

import map_core.commands.standard  # noqa: F401  (imported once, before any child is forked)
import map_points.cli
import map_points.domain
import map_vision.cli
import map_vision.domain

COMMANDS = {"map-vision": map_vision.cli.main, "map-points": map_points.cli.main}


class Running:
    """A running command, in one process or in several that communicate over gloo.

    Args:
        command: The program's name and its arguments.
        log: File that its output is appended to.
        ranks: Number of processes.
    """

    def __init__(self, command: Sequence[str], log: Path, ranks: int = 1) -> None:
        environments: list[dict[str, str]] = [{}]
        if ranks > 1:
            rendezvous = {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(free_port()),
                "WORLD_SIZE": str(ranks),
            }
            environments = [{**rendezvous, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(ranks)]
        self.processes = [psutil.Process(fork(command, log, environment)) for environment in environments]
        self.log = log
        self.statuses: dict[int, int] = {}
        self._children: set[psutil.Process] = set()

    def poll(self) -> bool:
        """Record which processes ended, and return whether all did."""
        for process in self.processes:
            if process.pid in self.statuses:
                continue
            ended, status = os.waitpid(process.pid, os.WNOHANG)
            if ended:
                self.statuses[process.pid] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) == len(self.processes)

    def wait(self, seconds: float) -> bool:
        """Wait for the command to end, at most ``seconds``, and return whether it did."""
        end = time.monotonic() + seconds
        while not (ended := self.poll()) and time.monotonic() < end:
            time.sleep(0.005)
        return ended

    def alive(self) -> list[psutil.Process]:
        """The ranks that have not ended."""
        self.poll()
        return [process for process in self.processes if process.pid not in self.statuses]

    def send(self, number: signal.Signals, ranks: Sequence[psutil.Process] | None = None) -> None:
        """Send a signal to ranks, by default to all that are alive, but not to their loading processes."""
        for process in self.alive() if ranks is None else ranks:
            self._children |= set(process.children(recursive=True))
            os.kill(process.pid, number)

    def left_behind(self, seconds: float) -> list[int]:
        """Loading processes that outlive their parent by more than ``seconds``."""
        end = time.monotonic() + seconds
        while (orphans := [c.pid for c in self._children if is_alive(c)]) and time.monotonic() < end:
            time.sleep(0.02)
        return orphans


def fork(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Run a command in a child that leads its own session, as under a terminal or scheduler; return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        torch.set_num_threads(1)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment)
        sys.argv = list(command)
        status = COMMANDS[command[0]]()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def free_port() -> int:
    """A port of this machine that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_alive(process: psutil.Process) -> bool:
    """Whether a process is neither gone nor a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
