"""`chat` as a program to type into: its commands, blocks, pasting, history, narrow terminals."""

import json
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from cli.processes import Result, Terminal, invoke
from hypothesis import given
from hypothesis import strategies as st
from scripted import call_tokens, scripted

import mistral_portable as mp
from mistral_portable.cli.lines import read_messages
from mistral_portable.cli.settings import changed, shown
from mistral_portable.errors import InputError

ON_A_TERMINAL = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
SHORT = ("-n", "5", "--temperature", "0")


def chat(*lines: str, options: tuple[str, ...] = ()) -> Result:
    return invoke("chat", *SHORT, *options, stdin="".join(f"{line}\n" for line in lines).encode())


def said(tmp_path: Path, *lines: str) -> list[dict[str, Any]]:
    """The conversation behind some lines."""
    result = chat(*lines, f"/save {tmp_path / 'chat'}")
    assert result.status == 0
    messages: list[dict[str, Any]] = json.loads((tmp_path / "chat").read_text())
    return messages


def messages_of(*lines: str) -> list[str]:
    rest = iter(lines)
    return list(read_messages(lambda prompt: next(rest, None)))


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (['"""one', "two", 'three"""', "four"], ["one\ntwo\nthree", "four"]),
        (['"""', "/one", '"""'], ["//one"]),
        (['"""one"""'], ["one"]),
        (['"""one', "two"], ["one\ntwo"]),
        (["one\\", "two\\", "three"], ["one\ntwo\nthree"]),
        (["one\\"], ["one"]),
        (["/usr/bin\n/usr/lib"], ["//usr/bin\n/usr/lib"]),  # pasted
        (["//one", "/help"], ["//one", "/help"]),
        ([""], [""]),
    ],
)
def test_lines_become_messages(lines: list[str], messages: list[str]) -> None:
    assert messages_of(*lines) == messages


@given(st.lists(st.text(st.characters(exclude_characters='\n"\\/ ', exclude_categories=["Cs", "Cc"]), min_size=1)))
def test_plain_lines_are_messages_and_a_block_is_one(lines: list[str]) -> None:
    assert messages_of(*lines) == lines
    assert messages_of('"""', *lines, '"""') == ["\n".join(lines)]


@pytest.mark.parametrize("word", ["/exit", "/quit", "/bye"])
def test_ways_to_leave(word: str) -> None:
    assert chat(word, "never said") == Result(0, "", "")


def test_undo_and_regen(tmp_path: Path) -> None:
    first = said(tmp_path, "Hello")
    assert said(tmp_path, "Hello", "And then?", "/undo") == first
    assert said(tmp_path, "Hello", "/regen") == first  # greedy: the same again
    assert said(tmp_path, "Hello", "/undo") == []
    result = chat("/undo", "/regen")
    assert (result.status, result.err) == (0, "error: there is no message yet\n" * 2)


def test_content_in_parts_is_answered_again_as_it_is(tmp_path: Path) -> None:
    question = {"role": "user", "content": [{"type": "text", "text": "One day"}]}
    file = tmp_path / "parts"
    file.write_text(json.dumps([question, {"role": "assistant", "content": "Yes."}]))
    assert said(tmp_path, f"/load {file}", "/regen")[0] == question
    assert 'taken back: [{"type": "text", "text": "One day"}]' in chat(f"/load {file}", "/undo").err


def test_a_message_that_cannot_be_answered_again_stays(tmp_path: Path) -> None:
    long = [{"role": "user", "content": "one day " * 200}, {"role": "assistant", "content": "Yes."}]
    file = tmp_path / "long"
    file.write_text(json.dumps(long))
    result = chat(f"/load {file}", "/regen", f"/save {tmp_path / 'chat'}", options=("--max-context", "64"))
    assert "error:" in result.err
    assert json.loads((tmp_path / "chat").read_text()) == long


def test_system(tmp_path: Path) -> None:
    beginning = {"role": "system", "content": "Be brief."}
    messages = said(tmp_path, "Hello", "/system Be brief.")
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert said(tmp_path, "/system Be long.", "/system Be brief.", "/clear") == [beginning]
    file = tmp_path / "empty"
    file.write_text(json.dumps([{"role": "system", "content": ""}]))
    assert said(tmp_path, f"/load {file}", "/system Be brief.") == [beginning]
    result = chat("/system", "/system Be brief.", "/system")
    assert result.err == "no instructions\nnew instructions\nBe brief.\n"


def test_settings() -> None:
    answers = chat("/set max_tokens 1", "Hello").out, invoke("chat", *SHORT, "-n", "1", stdin=b"Hello\n").out
    assert answers[0] == answers[1]
    result = chat("/set", "/set temprature 1", "/set temperature hot", "/set top_p 0", "/set temperature")
    lines = result.err.splitlines()
    assert "temperature            0.0" in lines
    assert "max_tokens             5" in lines
    assert lines[-4:-1] == [
        "error: temprature is no setting: is it temperature?",
        "error: temperature='hot' must be a number in [0, 100]",
        "error: top_p=0 must be a number in (0, 1]; greedy sampling is temperature=0",
    ]
    assert lines[-1] == "error: /set needs a name and a value"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.2", 0.2),
        ("top-k", "9", 9),
        ("seed", "none", None),
        ("seed", "7", 7),
        ("max_tokens", "none", None),
        ("ignore_eos", "True", True),
        ("stop", "END", ("END",)),
        ("stop", "none", ()),
    ],
)
def test_a_setting_is_read(name: str, text: str, value: object) -> None:
    params = changed(mp.SamplingParams(seed=3, stop=("x",)), name, text)
    assert getattr(params, name.replace("-", "_")) == value
    assert f"{name.replace('-', '_'):20}" in shown(params)


def test_a_nested_value_is_no_setting() -> None:
    with pytest.raises(InputError, match="temperature") as caught:
        changed(mp.SamplingParams(), "temperature", "[" * 200_000)
    assert len(str(caught.value)) < 200


def test_a_setting_that_is_none() -> None:
    with pytest.raises(InputError, match="frob is no setting; /set lists them"):
        changed(mp.SamplingParams(), "frob", "1")


def test_tokens() -> None:
    model = mp.load("tiny")
    answer = model.chat("Hello", max_tokens=5, temperature=0).text
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]
    count = len(model.tokenizer.chat(messages))
    assert chat("/tokens", "Hello", "/tokens").err == f"0 of 32768 tokens\n{count} of 32768 tokens\n"


def test_tools_are_offered_called_and_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    function = {"name": "add", "description": "", "parameters": {"type": "object", "properties": {}}}
    (tmp_path / "tools.json").write_text(json.dumps([{"type": "function", "function": function}]))
    with mp.load("tiny") as model:
        monkeypatch.setattr("mistral_portable.cli.loading.load", lambda **_: model)
        call = call_tokens(model, '[{"name": "add", "arguments": {"a": 1}}]')
        text = model.tokenizer.encode("It is 2.", bos=False)
        with scripted(model, [*call, model.tokenizer.eos_id, *text]):
            result = chat(
                f"/tools {tmp_path / 'tools.json'}", "/set max_tokens 64", "1 + 1?", "2", f"/save {tmp_path / 'chat'}"
            )
    assert (result.status, result.out) == (0, 'add({"a": 1})\nIt is 2.\n')
    messages = json.loads((tmp_path / "chat").read_text())
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert (messages[2]["content"], messages[3]["content"]) == ("2", "It is 2.")


def test_tools_that_are_none(tmp_path: Path) -> None:
    for content in ("{}", "[1]", "x", '[{"type": "frob"}]'):
        (tmp_path / "tools.json").write_text(content)
        result = chat(f"/tools {tmp_path / 'tools.json'}", "/tools", "/tools off")
        error, *rest = result.err.splitlines()
        assert error.startswith("error: ")
        assert rest == ["tools: none"] * 2


@ON_A_TERMINAL
def test_pasted_lines_are_one_message_and_the_history_stays(tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    with Terminal("chat", *SHORT, environment=environment) as terminal:
        terminal.expect("tiny on .*\n> ")
        terminal.press("\x1b[200~One\ntwo\x1b[201~\r")
        terminal.expect("prompt .*answer .*\n> ")
        terminal.press(f"/save {tmp_path / 'chat'}\r")
        terminal.expect("saved 2 messages.*\n> ")
        terminal.press("\x04")
        assert terminal.wait() == 0
    assert json.loads((tmp_path / "chat").read_text())[0]["content"] == "One\ntwo"
    file = tmp_path / "mistral_portable" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with Terminal("chat", *SHORT, environment=environment) as terminal:
        terminal.expect("\n> ")
        terminal.press("\x1b[A\x1b[A")  # up, up
        terminal.expect("One")
        terminal.press("\r")
        terminal.expect("prompt .*answer .*\n> ")
        terminal.press("\x04")
        assert terminal.wait() == 0


@ON_A_TERMINAL
def test_a_history_that_cannot_be_kept_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Terminal("chat", *SHORT, environment={"XDG_STATE_HOME": str(tmp_path / "file")}) as terminal:
        terminal.expect("note: what you type is not kept: .*\n> ")
        terminal.press("/exit\r")
        assert terminal.wait() == 0


@ON_A_TERMINAL
def test_ctrl_c_empties_a_line_first() -> None:
    with Terminal("chat", *SHORT) as terminal:
        terminal.expect("\n> ")
        terminal.press("Hel")
        terminal.expect("Hel")
        terminal.press("\x03")
        terminal.expect("\n> ")
        terminal.press("\x03")
        assert terminal.wait() == 130
    assert "Traceback" not in terminal.text


@ON_A_TERMINAL
def test_a_narrow_terminal_that_changes() -> None:
    with Terminal("chat", *SHORT, columns=12) as terminal:
        terminal.expect("> ")
        terminal.press("Hello there, old friend")
        terminal.expect("frien")
        terminal.resize(40)
        terminal.press("\r")
        terminal.expect("answer")
        terminal.expect("> ")
        terminal.press("/quit\r")
        assert terminal.wait() == 0
    assert "Traceback" not in terminal.text


@ON_A_TERMINAL
def test_sigterm_at_the_prompt_gives_the_terminal_back() -> None:
    with Terminal("chat", *SHORT) as terminal:
        terminal.expect("\n> ")
        terminal.press("x")
        terminal.expect("x")
        assert not terminal.echoes
        terminal.kill(signal.SIGTERM)
        terminal.read_to_the_end()
        assert terminal.echoes
        assert terminal.wait() == 143
    assert "Traceback" not in terminal.text


@ON_A_TERMINAL
@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": ""}])
def test_no_color(environment: dict[str, str]) -> None:
    with Terminal("run", "Once", *SHORT, environment=environment) as terminal:
        assert terminal.wait() == 0
    assert ("\x1b[2m" in terminal.raw) == bool(environment)
