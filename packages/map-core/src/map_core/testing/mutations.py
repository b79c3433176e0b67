"""Broken files by the thousand: mutants of small valid files, and what a reader must make of them.

A test file lists its cases and checks a fixed number of mutants of each; run as a program, it goes on for as long as
asked: ``python tests/.../test_fuzz.py --seconds 600``.
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

LONGEST = 5.0  # seconds that a reader may take for one small file
# faults of our own; a reader that turns them into a user's error hides them
FAULTS = (AssertionError, AttributeError, NameError, ImportError)
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
        name: What the case is called.
        file: Name of the file in the folder that ``write`` fills.
        write: Fills a folder with the file and whatever belongs to it.
        read: Reads it, given the folder, and checks that what it returns is well-formed.
        lists: The file names others, one of which may be at fault in its place.
        complete: The file's size is known to the reader: whatever is cut off its end must be noticed.
    """

    name: str
    file: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    lists: bool = False
    complete: bool = False

    def __str__(self) -> str:
        return self.name


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Return ``data`` with one to eight changes: bits, bytes, edge numbers, words, cuts, repeats and swaps."""
    changed = bytearray(data)
    # beginnings hold most of what readers decide on
    reach = len(data) if draw.random() < 0.5 else min(len(data), 256)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        _change(changed, draw.randrange(reach + 1), draw)
    return bytes(changed)


def _change(data: bytearray, place: int, draw: random.Random) -> None:
    place = min(place, len(data))
    length = draw.choice((1, 2, 4, 8, 16, 64))
    match draw.randrange(8):
        case 0 if place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        case 1 if place < len(data):
            data[place] = draw.choice((0, 1, 9, 10, 32, 127, 128, 255))
        case 2:
            data[place:] = b""
        case 3:
            del data[place : place + length]
        case 4:
            data[place:place] = data[place : place + length]
        case 5:
            size = draw.choice((1, 2, 4, 8))
            edge = draw.choice(EDGES) % 2 ** (8 * size)
            data[place : place + size] = edge.to_bytes(size, draw.choice(("little", "big")))
        case 6:
            data[place : place + draw.choice((0, length))] = draw.choice(WORDS)
        case 7:  # another number in place of one that is written out
            numbers = list(re.finditer(rb"\d+", data[place : place + 64]))
            if numbers:
                start, end = draw.choice(numbers).span()
                data[place + start : place + end] = str(draw.choice(EDGES)).encode()


def check_mutants(case: Case, folder: Path, *, seed: int, count: int) -> Counter[str]:
    """Read mutants of a case's file and count how many were read and refused.

    The first mutant of a case whose reader knows the size is its file without the last byte.

    Raises:
        AssertionError: naming the mutant that was read to no good end; it is left in ``folder``.
    """
    case.write(folder)
    case.read(folder)
    path = folder / case.file
    data = path.read_bytes()
    draw = random.Random(f"{case.name} {seed}")
    outcomes: Counter[str] = Counter()
    for number in range(count):
        cut = case.complete and number % 16 == 0
        end = len(data) - 1 if number == 0 else draw.randrange(len(data))
        path.write_bytes(data[:end] if cut else mutate(data, draw))
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
        with time_limit(LONGEST):
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
    """Whether an error is a fault of ours, and not of PyTorch's reader, which takes a file at its word."""
    if not isinstance(error, FAULTS):
        return type(error).__name__ == "TypeCheckError"
    innermost = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
    return not innermost.f_globals["__name__"].startswith("torch.")


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stop what takes longer, where the main thread of a POSIX system does it.

    Raises:
        AssertionError: it took longer.
    """

    def stop(*_: Any) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(cases: Sequence[Case], arguments: Sequence[str] | None = None) -> None:
    """Check mutants of all cases in turn until the time is up, and print what became of them."""
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
                    kept = Path(f"mutant_{case.name}_{seed}_{case.file.replace('/', '_')}")
                    kept.write_bytes((Path(folder) / case.file).read_bytes())
                    sys.exit(f"{error}\nkept as {kept}")
        seed += 1
    for name, outcomes in totals.items():
        print(f"{name:24} {outcomes['read']:>8} read {outcomes['refused']:>8} refused")
    print(f"seeds {options.seed} to {seed - 1}")
