"""Long work shows its progress: a bar on a terminal, lines elsewhere."""

import io

import pytest

from map_core.runs import progress
from map_core.runs.progress import track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_that_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(track("abc", total=3, title="reading", unit="image")) == ["a", "b", "c"]
    assert "reading" in terminal.getvalue()
    assert terminal.getvalue().rpartition("\r")[0].endswith(" ")


def test_other_processes_show_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert list(track("ab", total=2, title="reading", unit="image")) == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_a_log_gets_a_line_now_and_then_and_nothing_of_what_is_quick(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    list(track("abc", total=3, title="reading", unit="image"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    list(track("ab", total=2, title="reading", unit="image"))
    assert capsys.readouterr().err == "reading: image 1 of 2\nreading: image 2 of 2\n"
