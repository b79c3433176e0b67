"""Mutation fuzzing of file readers: thousands of mutants of small valid files, each to be read or refused cleanly.

A test file lists its cases and checks a fixed number of mutants of each; run as a program, it continues for the given
time: ``python tests/.../test_fuzz.py --seconds 600``.
"""

import argparse
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from map_core.errors import UserError

MAX_SECONDS = 5.0  # seconds that a reader may take for one small file
# bugs in our code; a reader that turns them into a UserError hides them
OUR_ERRORS = (AssertionError, AttributeError, NameError, ImportError)
EDGES = tuple(edge for bits in (7, 8, 15, 16, 31, 32, 40, 63, 64) for edge in (2**bits - 1, 2**bits))
WORDS = (
    b"", b"\0", b"-1", b"0", b"nan", b"inf", b"1e999", b"1_0", b"9" * 5000, b"[" * 2000, b"{" * 2000, b"(" * 2000,
    b"../../../../etc/passwd", b"/dev/zero", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe9", b"<html>", b",", b";", b"#", b"\n",
    b"'", b'"', b"&a [*a,*a]", b"1000000000000", b"x1000000000",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A valid file and its reader.

    Attributes:
        name: Name of the case.
        file: Name of the file in the folder that ``write`` fills.
        write: Fills a folder with the file and the others that belong to it.
        read: Reads the file, given the folder, and checks that the result is well-formed.
        lists: Whether the file names others, so that an error may name the folder instead.
        complete: Whether the reader knows the file's size, so that it must notice any truncation.
    """

    name: str
    file: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    lists: bool = False
    complete: bool = False

    def __str__(self) -> str:
        return self.name


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return ``data`` with one to eight changes: bits, bytes, edge numbers, words, cuts, repeats and swaps."""
    mutant = bytearray(data)
    # most of what readers check is at the beginning
    reach = len(data) if rng.random() < 0.5 else min(len(data), 256)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        _change(mutant, rng.randrange(reach + 1), rng)
    return bytes(mutant)


def _change(data: bytearray, start: int, rng: random.Random) -> None:
    start = min(start, len(data))
    length = rng.choice((1, 2, 4, 8, 16, 64))
    match rng.randrange(8):
        case 0 if start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        case 1 if start < len(data):
            data[start] = rng.choice((0, 1, 9, 10, 32, 127, 128, 255))
        case 2:
            data[start:] = b""
        case 3:
            del data[start : start + length]
        case 4:
            data[start:start] = data[start : start + length]
        case 5:
            size = rng.choice((1, 2, 4, 8))
            edge = rng.choice(EDGES) % 2 ** (8 * size)
            data[start : start + size] = edge.to_bytes(size, rng.choice(("little", "big")))
        case 6:
            data[start : start + rng.choice((0, length))] = rng.choice(WORDS)
        case 7:  # a number in decimal digits becomes another
            numbers = list(re.finditer(rb"\d+", data[start : start + 64]))
            if numbers:
                begin, end = rng.choice(numbers).span()
                data[start + begin : start + end] = str(rng.choice(EDGES)).encode()


def check_mutants(case: Case, folder: Path, *, seed: int, count: int) -> Counter[str]:
    """Read mutants of a case's file and count how many were read and refused.

    If the reader knows the file's size, the first mutant is the file without its last byte.

    Raises:
        AssertionError: naming the mutant on which the reader failed; it is left in ``folder``.
    """
    case.write(folder)
    case.read(folder)
    path = folder / case.file
    data = path.read_bytes()
    rng = random.Random(f"{case.name} {seed}")
    outcomes: Counter[str] = Counter()
    for number in range(count):
        cut = case.complete and number % 16 == 0
        end = len(data) - 1 if number == 0 else rng.randrange(len(data))
        path.write_bytes(data[:end] if cut else mutate(data, rng))
        outcome = _outcome(case, folder, f"mutant {number} of {case.name} (seed {seed})")
        if cut and outcome == "read":
            raise AssertionError(
                f"{path}: the first {end} of {len(data)} bytes were read as if they were all"
            )
        outcomes[outcome] += 1
    return outcomes


def _outcome(case: Case, folder: Path, name: str) -> str:
    path = folder / case.file
    try:
        with time_limit(MAX_SECONDS):
            case.read(folder)
    except UserError as error:
        message, cause = str(error), error.__cause__
        if _is_our_fault(cause):
            raise AssertionError(
                f"{name}: a fault of the reader passes for a broken file: {cause!r}"
            ) from error
        named = path.name in message or (case.lists and str(folder) in message)
        if not named or not message.isprintable() or len(message) > 1000:
            raise AssertionError(
                f"{name}: the message must name {path.name} in one line: {message!r}"
            ) from error
        return "refused"
    except Exception as error:
        raise AssertionError(
            f"{name}: {type(error).__name__} instead of a UserError: {error}; see {path}"
        ) from error
    return "read"


def _is_our_fault(error: BaseException | None) -> bool:
    """Whether an error is a bug of ours rather than of PyTorch's reader, which trusts files."""
    if not isinstance(error, OUR_ERRORS):
        return type(error).__name__ == "TypeCheckError"
    innermost = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return not innermost.f_globals["__name__"].startswith("torch.")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt a block that takes longer; only in the main thread of a POSIX system.

    Raises:
        AssertionError: the block took longer.
    """

    def stop(*_: Any) -> None:
        raise AssertionError(f"not done after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def run(cases: Sequence[Case], arguments: Sequence[str] | None = None) -> None:
    """Check mutants of all cases in turn until the time is up, and print how many were read and refused."""
    parser = argparse.ArgumentParser(description="Read mutants of valid files.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    end, seed = time.monotonic() + options.seconds, options.seed
    totals: dict[str, Counter[str]] = {case.name: Counter() for case in cases}
    while time.monotonic() < end:
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    totals[case.name] += check_mutants(case, Path(folder), seed=seed, count=200)
                except AssertionError as error:
                    copy = Path(f"mutant_{case.name}_{seed}_{case.file.replace('/', '_')}")
                    copy.write_bytes((Path(folder) / case.file).read_bytes())
                    sys.exit(f"{error}\nkept as {copy}")
        seed += 1
    for name, outcomes in totals.items():
        print(f"{name:24} {outcomes['read']:>8} read {outcomes['refused']:>8} refused")
    print(f"seeds {options.seed} to {seed - 1}")
