"""Errors that a user can cause, told so that the user can cure them."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """A wrong argument, file or environment; its one-sentence message names what, where and the cure.

    Commands print the message without a traceback and exit with ``status``.
    """

    status = 2


class Diverged(UserError):
    """A loss or gradient that is not finite ended a run: in a study that rate has lost, whoever asked for it."""

    status = 3


class RunStopped(Exception):
    """A signal stopped a run early, after its checkpoint was saved.

    Commands exit with ``status``, as a shell numbers an end by signal, so that ``&&`` does not go on.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.status = 128 + number


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return ``'did you mean a, b?'`` for the known names most like ``name``, or the list of all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {visible(', '.join(close), keep='')}?"
    return f"known names: {visible(', '.join(known), keep='')}"


ACTED_ON = ("Cc", "Zl", "Zp")  # Unicode's categories of what a terminal acts on instead of showing it
TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # what follows is shown in another order


def visible(text: str, *, keep: str = "\n") -> str:
    """A text from a file or folder with nothing in it that a terminal acts on, such as escape sequences.

    Args:
        text: Any.
        keep: Control characters that stay as they are; the others are shown as Python writes them.
    """
    return "".join(
        repr(c)[1:-1] if c not in keep and (unicodedata.category(c) in ACTED_ON or c in TURNS) else c
        for c in text
    )


def in_one_line(text: str, most: int = 200) -> str:
    """A text from a file, folded into one line and cut where it is long, with ``?`` for what would not be seen."""
    line = " ".join(text[: 4 * most].split())
    shown = "".join(c if c.isprintable() else "?" for c in line[:most])
    return shown if len(line) <= most else f"{shown}..."


def some_of(names: Sequence[str], most: int = 6, between: str = ", ") -> str:
    """The first of many names, in one line, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return in_one_line(between.join(names[:most]), most=600) + more


def reason(error: BaseException) -> str:
    """What an error of a library says, as one line that a message can quote."""
    return in_one_line(str(error).partition("\n")[0] or type(error).__name__, most=300)
