"""Output whose reader has gone away."""

import os
import subprocess
import sys

import pytest

TALKING_PROGRAM = """
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


RUNNER = """
import sys
from map_core.commands.output import while_somebody_reads

def run():
    exec(sys.argv[-1])
    return 0

sys.exit(while_somebody_reads(run))
"""
ENVIRONMENT = {**os.environ, "MAP_DEBUG": "", "PYTHONUNBUFFERED": ""}


@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        (["talk"], ""),  # noticed when main flushes
        (["talk", "--words=9999"], "1"),  # noticed in the middle of the command
        (["talk", "--help"], ""),  # noticed after the parser's exit
    ],
)
def test_ends_without_a_word_when_nobody_reads_on(arguments, unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(
        [sys.executable, "-c", TALKING_PROGRAM, *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered},
        check=False,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (1, b"")


def test_other_broken_pipes_and_errors_keep_their_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    broken_pipe = "import os, sys\nreading, writing = os.pipe()\nos.close(reading)\nos.write(writing, b'x')"
    bug = "print('a word')\nraise RuntimeError('a bug')"
    for body, stdout, expected in (
        (broken_pipe, subprocess.PIPE, b"BrokenPipeError"),
        (bug, writer, b"a bug"),
    ):
        process = subprocess.run(
            [sys.executable, "-c", RUNNER, body],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            check=False,
        )
        assert process.returncode != 0
        assert expected in process.stderr
    os.close(writer)


@pytest.mark.parametrize("closing", ["2>&-", ">&- 2>&-"])
def test_a_progress_bar_without_an_output_harms_no_command(tmp_path, closing):
    """Nor does output to a closed stream end up in a file that was opened later."""
    program = TALKING_PROGRAM.replace(
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
    command = ["sh", "-c", f'"$0" -c "$1" talk {closing}', sys.executable, program]
    assert subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert (tmp_path / "file").read_text() == "whole"


def test_works_without_an_output():
    command = ["sh", "-c", '"$0" -c "$1" pass >&-', sys.executable, RUNNER]
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == 0
