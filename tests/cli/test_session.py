"""`--session`: `run` and `chat` go on from a file, and replace it only if it is a session."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cli.interrupts import interrupt_after
from cli.processes import Result, Terminal, invoke
from safetensors.numpy import save_file

import mistral_portable as mp
from mistral_portable.engine.session import read_messages

SHORT = ("--max-tokens", "5", "--temperature", "0")
PROMPT = "Once upon a time there was a little dog. He liked to run, and to sleep in the sun."


def run(file: Path, *options: str, prompt: str = PROMPT) -> Result:
    return invoke("run", prompt, "--json", *SHORT, "--session", str(file), *options)


def chat(file: Path, *lines: str, options: tuple[str, ...] = ()) -> Result:
    stdin = "".join(f"{line}\n" for line in lines).encode()
    return invoke("chat", *SHORT, "--session", str(file), *options, stdin=stdin)


def cached(result: Result) -> int:
    assert (result.status, result.err) == (0, "")
    tokens: int = json.loads(result.out)["timings"]["cached_tokens"]
    return tokens


def test_run_goes_on_from_what_was_read(tmp_path: Path) -> None:
    file = tmp_path / "one"
    first = run(file)
    assert cached(first) == 0
    tokens = json.loads(first.out)["timings"]["prefill_tokens"]
    again = run(file)
    assert cached(again) == tokens - 1
    assert json.loads(again.out)["tokens"] == json.loads(first.out)["tokens"]
    longer = run(file, prompt=PROMPT + " One day")
    assert cached(longer) >= tokens
    assert (
        json.loads(longer.out)["text"] == json.loads(invoke("run", PROMPT + " One day", "--json", *SHORT).out)["text"]
    )
    assert cached(run(file, prompt=PROMPT + " One day he")) > tokens
    plain = invoke("run", PROMPT, *SHORT, "--session", str(file))
    assert (plain.status, plain.err) == (0, "")
    assert plain.out == invoke("run", PROMPT, *SHORT).out


def test_chat_goes_on_where_it_was(tmp_path: Path) -> None:
    """Also in another process; the answers are those of one conversation."""
    file = tmp_path / "one"
    whole = invoke("chat", *SHORT, stdin=b"Hello\nAnd then?\n/save " + str(tmp_path / "chat.json").encode() + b"\n")
    first, second = chat(file, "Hello"), chat(file, "And then?", f"/save {tmp_path / 'again.json'}")
    assert (first.status, first.err, second.status) == (0, "", 0)
    assert first.out + second.out == whole.out
    messages = json.loads((tmp_path / "chat.json").read_text())
    assert json.loads((tmp_path / "again.json").read_text()) == messages == read_messages(file)
    with mp.load("tiny") as model:
        known = model.load_session(file)
        assert known > len(model.tokenizer.chat(messages[:3])) - 1


def test_a_chat_that_says_nothing_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "one"
    assert chat(file, "/exit") == Result(0, "", "")
    assert not file.exists()
    chat(file, "Hello")
    before = file.read_bytes()
    assert chat(file, "/clear", "/help").status == 0
    assert file.read_bytes() == before


def test_system_and_clear(tmp_path: Path) -> None:
    file = tmp_path / "one"
    assert chat(file, "Hello", options=("--system", "Be brief.")).err == ""
    assert chat(file, "More", options=("--system", "Be brief.")).err == ""
    assert chat(file, "More").err == ""
    messages = read_messages(file)
    assert messages is not None
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 3]
    result = chat(file, "/clear", "Anew", options=("--system", "Be long."))
    assert result.err == (
        f"note: {file} has its own instructions; /clear starts a conversation with --system\na new conversation\n"
    )
    messages = read_messages(file)
    assert messages is not None
    assert [message["content"] for message in messages[:2]] == ["Be long.", "Anew"]


def test_chat_goes_on_from_a_run_and_run_from_a_chat(tmp_path: Path) -> None:
    file = tmp_path / "one"
    run(file)
    assert chat(file, "Hello").err == ""
    again = run(file, "--chat", prompt="Hello")
    assert cached(again) == json.loads(again.out)["timings"]["prefill_tokens"] - 1


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_session_that_cannot_be_used_is_ignored_and_written_anew(command: str, tmp_path: Path) -> None:
    def call(*options: str) -> Result:
        return run(file, *options) if command == "run" else chat(file, "Hello", options=options)

    file = tmp_path / "one"
    expected = call().out
    window = call("--window", "7")
    assert window.err == (
        f"note: {file}: it is of other weights, or of another window; load the model that it was saved with, or name "
        f"another file (it is ignored, and written anew)\n"
    )
    assert call("--window", "7").err == ""
    backend = call("--backend", "reference", "--window", "7")
    assert "it is of backend='numba', and this is backend='reference'; " in backend.err
    assert call("--window", "none").status == 0
    file.write_bytes(file.read_bytes()[:-1])
    damaged = call()
    assert damaged.status == 0
    assert damaged.err.startswith(f"note: {file}: a damaged session: ")
    assert len(damaged.err.splitlines()) == 1
    if command == "chat":  # the text of a damaged file is not trusted either
        assert damaged.out == expected
    assert call().err == ""


@pytest.mark.parametrize("command", ["run", "chat"])
@pytest.mark.parametrize("content", [b"", b"Dear diary", b"[]", "safetensors"])
def test_a_file_of_another_kind_is_refused(command: str, content: bytes | str, tmp_path: Path) -> None:
    file = tmp_path / "mine"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        save_file({"tokens": np.zeros(3, np.int32)}, file)
    before = file.read_bytes()
    result = run(file) if command == "run" else chat(file, "Hello")
    assert result == Result(
        2, "", f"error: {file} is no session of mistral_portable, and is left as it is: name another file\n"
    )
    assert file.read_bytes() == before


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    for file in (tmp_path / "no" / "folder", Path("/proc/self/no/one")):
        result = run(file)
        assert (result.status, result.out) == (2, "")
        assert result.err == (
            f"error: --session {file}: the folder {file.parent} cannot be written: choose another one\n"
        )
    for file in (tmp_path, Path("/dev/null")):
        result = run(file)
        assert (result.status, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert not Path("/dev/null").is_file()
    os.symlink("gone", tmp_path / "link")
    assert cached(run(tmp_path / "link")) == 0
    assert (tmp_path / "gone").is_file()


def test_a_cache_that_keeps_nothing(tmp_path: Path) -> None:
    file = tmp_path / "one"
    result = chat(file, "Hello", options=("--cache-ram", "0"))
    assert result == Result(
        2, "", f"error: --session {file}: nothing is kept with --cache-ram 0: leave one of them out\n"
    )
    assert not file.exists()


@pytest.fixture
def third_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C instead of the third piece of an answer."""
    interrupt_after(2, monkeypatch)


@pytest.mark.usefixtures("third_is_ctrl_c")
def test_a_run_that_is_interrupted_keeps_what_was_read(tmp_path: Path) -> None:
    assert run(tmp_path / "one").status == 130
    with mp.load("tiny") as model:
        assert model.load_session(tmp_path / "one") > len(model.tokenizer.encode(PROMPT))


@pytest.mark.usefixtures("third_is_ctrl_c")
def test_a_piped_chat_that_is_interrupted_keeps_what_was_read(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    assert chat(tmp_path / "one", "Hello").status == 130
    assert read_messages(tmp_path / "one") == []
    with mp.load("tiny") as model:
        assert model.load_session(tmp_path / "one") > len(model.tokenizer.chat(messages))


def test_ctrl_c_at_the_prompt_writes_the_session(tmp_path: Path) -> None:
    file = tmp_path / "one"
    with Terminal("chat", *SHORT, "--session", str(file)) as terminal:
        terminal.expect("> ")
        terminal.press("Hello\n")
        terminal.expect("\n.*\n.*> ")
        assert terminal.interrupt() == 130
    messages = read_messages(file)
    assert messages is not None
    assert messages[0] == {"role": "user", "content": "Hello"}
