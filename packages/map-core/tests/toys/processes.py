"""Scripts of these toys in processes of their own, for tests that signal and kill them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

TOYS = Path(__file__).parent


def start(script, *arguments):
    """Start a script of this folder as the leader of a process group, as a shell or a scheduler does."""
    return subprocess.Popen(
        [sys.executable, str(TOYS / script), *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start_training(out, training, task, resume=""):
    """Train the toy task, with settings other than its defaults."""
    return start("toy_task.py", out, resume, json.dumps(training), json.dumps(task))


def wait_for(condition, process, seconds=120):
    """Wait until ``condition()`` holds, while ``process`` runs."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise TimeoutError
