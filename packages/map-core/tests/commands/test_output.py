"""Output that nobody reads any longer."""

import os
import subprocess
import sys

import pytest

TALKS = """
import sys
from dataclasses import dataclass
from map_core.commands.command import Command
from map_core.commands.program import main

@dataclass
class Config:
    words: int = 3

def talk(config):
    for _ in range(config.words):
        print("a word")

sys.exit(main("map-toy", [Command("talk", "Talk", Config, talk)], "map_core"))
"""


RUNS = """
import sys
from map_core.commands.output import while_somebody_reads

def run():
    exec(sys.argv[-1])
    return 0

sys.exit(while_somebody_reads(run))
"""
QUIET = {**os.environ, "MAP_DEBUG": "", "PYTHONUNBUFFERED": ""}


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        (["talk"], ""),  # told when main flushes
        (["talk", "--words=9999"], "1"),  # told in the middle of the command
        (["talk", "--help"], ""),  # told after the parser's exit
    ],
)
def test_ends_without_a_word_when_nobody_reads_on(arguments, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-c", TALKS, *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**QUIET, "PYTHONUNBUFFERED": unbuffered},
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_other_broken_pipes_and_errors_keep_their_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    dead = "import os, sys\nreading, writing = os.pipe()\nos.close(reading)\nos.write(writing, b'x')"
    bug = "print('a word')\nraise RuntimeError('a bug')"
    for body, stdout, expected in ((dead, subprocess.PIPE, b"BrokenPipeError"), (bug, writing, b"a bug")):
        ended = subprocess.run(
            [sys.executable, "-c", RUNS, body], stdout=stdout, stderr=subprocess.PIPE, env=QUIET, check=False
        )
        assert ended.returncode != 0
        assert expected in ended.stderr
    os.close(writing)


@pytest.mark.parametrize("closing", ["2>&-", ">&- 2>&-"])
def test_a_progress_bar_without_an_output_harms_no_command(tmp_path, closing):
    """Nor does what is written to a stream that is not there reach a file that was opened later."""
    program = TALKS.replace(
        'print("a word")',
        f"""
        import os
        from tqdm import tqdm
        with open({str(tmp_path / "file")!r}, "w") as file:
            for _ in tqdm(range(3)):
                os.write(2, b"a library's warning")
            file.write("whole")
""",
    )
    closed = ["sh", "-c", f'"$0" -c "$1" talk {closing}', sys.executable, program]
    assert subprocess.run(closed, env=QUIET, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "whole"


def test_works_without_an_output():
    closed = ["sh", "-c", '"$0" -c "$1" pass >&-', sys.executable, RUNS]
    assert subprocess.run(closed, env=QUIET, check=False).returncode == 0
