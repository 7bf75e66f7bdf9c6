"""Where `run` takes its prompt from: arguments, files, pipes, in any encoding that is text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli.processes import COMMAND, Result, Terminal, invoke
from hypothesis import given
from hypothesis import strategies as st

import mistral_portable as mp
from mistral_portable.cli.text import decode, text

GREEDY = ("-n", "4", "--temperature", "0")


def prompt_of(*arguments: str, stdin: bytes = b"") -> str:
    """The prompt that `run` shows before what it adds."""
    result = invoke("run", *arguments, *GREEDY, stdin=stdin)
    assert (result.status, result.err) == (0, "")
    report = json.loads(invoke("run", *arguments, *GREEDY, "--json", stdin=stdin).out)
    return result.out.removesuffix("\n").removesuffix(report["text"])


def test_pipe_file_and_argument_are_joined(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("from a file\n")
    file = ("--file", str(tmp_path / "p.txt"))
    assert prompt_of(stdin=b"One\nday\n\n") == "One\nday\n"  # without one newline at the end, of `echo`
    assert prompt_of("Once", stdin=b"A pipe\n") == "A pipe\nOnce"
    assert prompt_of("Once", *file, stdin=b"A pipe\n") == "A pipe\nfrom a file\nOnce"
    assert prompt_of(*file) == "from a file"
    assert prompt_of("-p", "Once", "-f", str(tmp_path / "p.txt")) == "from a file\nOnce"


def test_a_dash_is_standard_input() -> None:
    assert prompt_of("-", stdin=b"Hello\n") == "Hello"
    assert prompt_of("-p", "-", stdin=b"Hello") == "Hello"
    assert prompt_of("Once", "--file", "-", stdin=b"Hello") == "Hello\nOnce"
    refused = invoke("run", "-", "--json-schema", "-", stdin=b"{}")
    assert (refused.status, refused.out) == (2, "")
    assert "--json-schema reads standard input" in refused.err


def test_a_schema_from_the_pipe_is_not_the_prompt() -> None:
    result = invoke("run", "Once", "--json-schema", "-", *GREEDY, stdin=b'{"type": "integer"}')
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("Once")


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (("x",), b"ab\xff", "standard input is not UTF-8 text: byte 0xff at index 2"),
        (
            (),
            b"\xff\xfeH\0i\0",
            "standard input is not UTF-8 text: byte 0xff at index 0, it looks like UTF-16",
        ),
        (("-f", "/no/such/file"), b"", "/no/such/file: cannot be read: No such file"),
        (("-f", "/"), b"", "/: cannot be read: Is a directory"),
        (("x", "-p", "y"), b"", "'x' beside --prompt: give one of them"),
        (("x", "--system", "y", "--raw"), b"", "'--system': a text that is continued has none"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], stdin: bytes, words: str) -> None:
    result = invoke("run", *arguments, stdin=stdin)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert words in result.err


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    marked = "\ufeffOnce \ufeff".encode()
    (tmp_path / "p.txt").write_bytes(marked)
    assert prompt_of(stdin=marked) == prompt_of("--file", str(tmp_path / "p.txt")) == "Once \ufeff"


@given(st.text())
def test_text_in_utf_8_is_what_it_was(content: str) -> None:
    clean = content.encode("utf-8", "ignore").decode().removeprefix("\ufeff")
    assert decode(clean.encode(), "it") == decode(b"\xef\xbb\xbf" + clean.encode(), "it") == clean


@pytest.mark.skipif(sys.platform == "win32", reason="arguments of POSIX are bytes")
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_bytes_of_an_argument_are_utf_8(word: str) -> None:
    """Python gives arguments so under a locale of ASCII."""
    assert text(word.encode().decode("ascii", "surrogateescape")) == word == text(word)


@pytest.mark.skipif(sys.platform == "win32", reason="locales of POSIX")
def test_an_argument_under_a_c_locale() -> None:
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "utf-8"}
    command = [*COMMAND, "run", "Café é", *GREEDY]
    done = subprocess.run(command, env=plain, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == invoke("run", "Café é", *GREEDY).out


def test_system_is_the_beginning_of_a_chat() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    answer = mp.load("tiny").chat(messages, max_tokens=4, temperature=0).text
    assert invoke("run", "Hello", "--system", "Be brief.", *GREEDY) == Result(0, answer + "\n", "")
    assert invoke("run", "Hello", "--system", "Be brief.", "--chat", *GREEDY).out == answer + "\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_dash_on_a_terminal_reads_what_is_typed() -> None:
    with Terminal("run", "-", *GREEDY) as terminal:
        terminal.press("Once upon\n\x04")
        terminal.expect("Once upon(?s:.*)Once upon")
        assert terminal.wait() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
def test_a_silent_pipe_is_waited_for_with_a_note() -> None:
    with subprocess.Popen(
        [*COMMAND, "run", "Once", *GREEDY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stderr.readline() == b"note: waiting for standard input to end (none: < /dev/null)\n"
        process.stdin.close()
        assert process.wait(60) == 0
