"""Errors that a user can cause, worded so that the user can fix them."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

FEW = 6  # names that a message lists whole


class UserError(ValueError):
    """A wrong argument, file or environment; the one-sentence message says what is wrong, where, and the cure.

    Commands print the message without a traceback and exit with ``status``.
    """

    status = 2


class Diverged(UserError):
    """A loss or gradient that is not finite ended a run; a study then counts that learning rate as lost."""

    status = 3


class RunStopped(Exception):
    """A signal stopped a run early, after its checkpoint was saved.

    Commands exit with ``status``, the shell's number for a death by signal, so that ``&&`` does not go on.

    Args:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.status = 128 + number


def near_matches(name: str, known: Iterable[str]) -> str:
    """``did you mean a, b?`` for the known names most like ``name``, and all if they are few or none is like it."""
    known = sorted(known)
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    nearest = f"did you mean {visible(', '.join(matches), keep='')}?"
    everything = f"known names: {visible(', '.join(known), keep='')}"
    if not matches or len(matches) == len(known):
        return everything
    return f"{nearest} {everything}" if len(known) <= FEW else nearest


def unknown_name(what: str, name: object, known: Iterable[str]) -> UserError:
    """An error for a ``name`` that is not ``known``: ``scan order 'hilbrt' is unknown; did you mean hilbert?``"""
    return UserError(f"{what} {name!r} is unknown; {near_matches(str(name), known)}")


CONTROL_CATEGORIES = ("Cc", "Zl", "Zp")  # Unicode categories that a terminal acts on instead of showing
# Unicode characters that change the direction in which the text after them is shown
DIRECTION_MARKS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def visible(text: str, *, keep: str = "\n") -> str:
    """Escape in a text from a file or folder what a terminal acts on, such as escape sequences.

    Args:
        text: Any text.
        keep: Control characters that stay as they are; the others are escaped as in Python's ``repr``.
    """
    return "".join(repr(c)[1:-1] if _is_control(c) and c not in keep else c for c in text)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in CONTROL_CATEGORIES or character in DIRECTION_MARKS


def in_one_line(text: str, limit: int = 200) -> str:
    """A text from a file, joined into one line and cut after ``limit`` characters, with ``?`` for unprintable ones."""
    line = " ".join(text[: 4 * limit].split())
    printable = "".join(c if c.isprintable() else "?" for c in line[:limit])
    return printable if len(line) <= limit else f"{printable}..."


def abbreviate(names: Sequence[str], limit: int = 6, separator: str = ", ") -> str:
    """The first ``limit`` of many names, in one line, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return in_one_line(separator.join(names[:limit]), limit=600) + more


def reason(error: BaseException) -> str:
    """The first line of a library's error, fit to be quoted in a message."""
    return in_one_line(str(error).partition("\n")[0] or type(error).__name__, limit=300)
