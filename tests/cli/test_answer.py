"""Answers on a terminal: reasoning is dim and beside the answer, in a pipe there is none."""

import io
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest

import mistral_portable as mp
from mistral_portable.answers import CallArguments, CallBegin, Content, Delta, Reasoning, ToolCall
from mistral_portable.cli.answer import end_answer, show_answer


class Made:
    """A streamer of given deltas."""

    def __init__(self, *deltas: Delta) -> None:
        self._deltas = deltas

    def deltas(self) -> Iterator[Delta]:
        return iter(self._deltas)


ANSWER = Made(
    Reasoning("Hm"), Reasoning("\x1b."), Content("Yo"), CallBegin(0, "abcdefgh1", "f"), CallArguments(0, "{}")
)


@pytest.mark.parametrize("terminal", [False, True])
def test_reasoning_is_shown_on_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(err, "isatty", lambda: terminal)
    show_answer(cast(mp.TextStreamer, ANSWER))
    assert out.getvalue() == "Yo"
    shown = err.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert shown == ("Hm\ufffd.\n" if terminal else "")


def test_each_call_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    timings: Any = None
    calls = (ToolCall("abcdefgh1", "f", '{\n"a": 1}'), ToolCall("abcdefgh2", "g", "{}"))
    found = mp.Generation("Yo", (), "stop", None, timings, tool_calls=calls, call_error="call 2: it has no arguments")
    end_answer("Yo", found)
    shown = capsys.readouterr()
    assert shown.out == '\nf({ "a": 1})\ng({})\n'
    assert shown.err == "note: no tool call: call 2: it has no arguments\n"
