"""Nothing that a model or a file holds reaches a terminal as a control sequence."""

import io
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.cli.output import one_line, printable, show, size
from mistral_portable.cli.table import print_table


@given(st.text())
def test_printable_replaces_control_characters_only(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    for before, after in zip(text, shown, strict=True):
        controls = unicodedata.category(before) == "Cc" and before not in "\n\t"
        assert after == ("\ufffd" if controls else before)


@given(st.text())
def test_one_line_is_one(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1


@pytest.mark.parametrize("terminal", [True, False])
def test_answers_are_changed_on_a_terminal_only(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", out)
    show("[bold]\x1b[31mred")
    assert out.getvalue() == ("[bold]\ufffd[31mred" if terminal else "[bold]\x1b[31mred")


def test_a_table_takes_cells_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "size"], [["[bold]:smile: \x1b[31m" + "x" * 300, "1"], ["b", "22"]], right=["size"])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    assert rows[1].startswith("[bold]:smile: \ufffd[31mxxx")
    assert rows[1].split()[-1] == "1"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (2**29, "512.0 MiB"), (2**50, "1024.0 TiB")],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text
