"""Programs in separate processes that have already imported PyTorch: importing it takes longer than most tests.

A server imports the heavy packages and nothing of this project, then forks a process for each program. The process
leads its own session, like one that a shell or a scheduler starts; ``Program`` is to it what subprocess.Popen is.
"""

import atexit
import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

LINE = 16  # bytes of an answer: a number padded with blanks
HEAVY = ("torch", "torchvision", "timm", "accelerate", "matplotlib.pyplot")


class Program:
    """Python with these arguments: a script's path, or -m and a module, or -c and code, then its arguments."""

    def __init__(self, *arguments: Any, environment: Mapping[str, str] | None = None) -> None:
        self.output: dict[str, IO[str]] = {name: tempfile.TemporaryFile("w+") for name in ("out", "err")}  # noqa: SIM115
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(server_of(os.getpid()))
        request = {
            "arguments": [str(argument) for argument in arguments],
            "environment": {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            "folder": os.getcwd(),
        }
        descriptors = [stream.fileno() for stream in self.output.values()]
        socket.send_fds(self.connection, [json.dumps(request).encode() + b"\n"], descriptors)
        self.pid = self.answer()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        try:
            return self.wait(timeout=0.001)
        except TimeoutError:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.connection.settimeout(timeout)
            self.returncode = self.answer()
        return self.returncode

    def answer(self) -> int:
        return int(self.connection.recv(LINE, socket.MSG_WAITALL))

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what it printed to standard output and standard error."""
        self.wait(timeout)
        return self.read("out"), self.read("err")

    def read(self, name: str) -> str:
        self.output[name].seek(0)
        return self.output[name].read()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(*arguments: Any, environment: Mapping[str, str] | None = None, timeout: float = 600) -> str:
    """Run a program, which must succeed; return what it printed."""
    program = Program(*arguments, environment=environment)
    printed, errors = program.communicate(timeout)
    assert program.returncode == 0, printed[-6000:] + errors[-4000:]
    return printed


@functools.cache
def server_of(process: int) -> str:
    """Start the server of this process; return the address of its socket."""
    address = str(Path(tempfile.mkdtemp()) / "warm")
    command = [sys.executable, __file__, address]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
    )
    atexit.register(server.wait)
    atexit.register(server.kill)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return address


def serve(address: str) -> None:
    """Fork a process for each connection, until the process that started this one is gone."""
    for name in HEAVY:
        __import__(name)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    parent = os.getppid()
    print("ready", flush=True)
    listening.settimeout(1)
    handlers = 0
    while os.getppid() == parent:
        while handlers and os.waitpid(-1, os.WNOHANG) != (0, 0):
            handlers -= 1
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listening.close()
            handle(connection)
            os._exit(0)
        connection.close()
        handlers += 1


def handle(connection: socket.socket) -> None:
    """Run one program in a child; send its process id, then its exit status."""
    connection.setblocking(True)
    text, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    while not text.endswith(b"\n"):
        text += connection.recv(1 << 20)
    child = os.fork()
    if child == 0:
        connection.close()
        os.setsid()
        for number, descriptor in enumerate(descriptors, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        act_as_python(**json.loads(text))
    connection.sendall(str(child).ljust(LINE).encode())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.sendall(str(status).ljust(LINE).encode())


def act_as_python(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Act as Python with these arguments, and exit as it would."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status: Any = 0
    try:
        kind, *rest = arguments
        sys.path[0] = folder if kind in ("-m", "-c") else str(Path(kind).parent)
        if kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            exec(rest[0], {"__name__": "__main__"})
        else:
            sys.argv = arguments
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as exit_request:
        status = exit_request.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    exit_process(int(status or 0))


def exit_process(status: int) -> None:
    """Run the exit handlers, flush, and exit."""
    import multiprocessing.util
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    multiprocessing.util._exit_function()  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
