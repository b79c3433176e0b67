"""Scripts of these toys in separate processes, for tests that signal or kill them or run several together."""

import json
import socket
import time
from pathlib import Path

from warm import Program

TOYS = Path(__file__).parent


def start(script, *arguments):
    """Start a script of this folder as the leader of a process group, as a shell or a scheduler does."""
    return Program(TOYS / script, *arguments)


def start_training(out, training, task, resume=""):
    """Train the toy task, with settings other than its defaults."""
    return start("toy_task.py", out, resume, json.dumps(training), json.dumps(task))


def wait_for(condition, process, seconds=120):
    """Wait until ``condition()`` holds, while ``process`` runs."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        assert process.poll() is None, process.read("err")
        time.sleep(0.02)
    raise TimeoutError


def run_several(script, *arguments, processes=2):
    """Run a script in several processes that find each other as under torchrun; return what they printed.

    torchrun itself starts those of tests/test_runs.py.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    programs = [
        Program(script, *arguments, environment=group | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(processes))
    ]
    outputs = [program.communicate(timeout=180) for program in programs]
    errors = "".join(error for _, error in outputs)
    assert [program.returncode for program in programs] == [0] * processes, errors[-3000:]
    return "".join(printed for printed, _ in outputs)
