"""`chat`: history, and its commands."""

import json
from pathlib import Path
from typing import Any

import pytest
from cli.interrupts import interrupt_after
from cli.processes import Result, invoke

import mistral_portable as mp

OPTIONS = ("--max-tokens", "5", "--temperature", "0")


def chat(*lines: str, options: tuple[str, ...] = ()) -> Result:
    return invoke("chat", *OPTIONS, *options, stdin="".join(f"{line}\n" for line in lines).encode())


def test_the_history_is_part_of_the_next_prompt() -> None:
    model, messages, answers = mp.load("tiny"), [{"role": "system", "content": "Be brief."}], []
    for text in ("Hello", "/And then?"):
        messages.append({"role": "user", "content": text})
        answers.append(model.chat(messages, max_tokens=5, temperature=0).text)
        messages.append({"role": "assistant", "content": answers[-1]})
    result = chat("Hello", "", "//And then?", options=("--system", "Be brief."))
    assert (result.status, result.err) == (0, "")
    assert result.out == "".join(f"{answer}\n" for answer in answers)


def test_save_clear_and_load(tmp_path: Path) -> None:
    first, cleared, again = tmp_path / "my chat.json", tmp_path / "2", tmp_path / "3"
    result = chat("Hello", f"/save {first}", "/clear", f"/save {cleared}", f"/load {first}", "More", f"/save {again}")
    assert result.status == 0
    assert result.err == (
        f"saved 2 messages to {first}\na new conversation\nsaved 0 messages to {cleared}\n"
        f"loaded 2 messages from {first}\nsaved 4 messages to {again}\n"
    )
    messages = json.loads(first.read_text())
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert json.loads(cleared.read_text()) == []
    assert json.loads(again.read_text())[:3] == [*messages, {"role": "user", "content": "More"}]


def test_exit_help_and_unknown_commands() -> None:
    result = chat("/help", "/frob", "/save", "/load", "/save \0", "/exit", "never said")
    assert (result.status, result.out) == (0, "")
    for command in ("/help", "/clear", "/save FILE", "/load FILE", "/exit"):
        assert command in result.err
    assert "error: /frob is no command; /help lists them\n" in result.err
    assert "error: /save needs the name of a file\nerror: /load needs the name of a file\n" in result.err
    assert "error: cannot save: " in result.err


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"{}", b"[1]", b'[{"role": "king", "content": "x"}]', b'[{"role": "user"}]', b"[" * 99999],
)
def test_a_bad_file_is_one_line_and_changes_nothing(content: bytes, tmp_path: Path) -> None:
    bad, after = tmp_path / "bad.json", tmp_path / "after.json"
    bad.write_bytes(content)
    result = chat("Hello", f"/load {bad}", f"/save {after}")
    assert result.status == 0
    error, saved = result.err.splitlines()
    assert error.startswith("error: ")
    assert saved.startswith("saved 2 messages")
    assert json.loads(after.read_text())[0]["content"] == "Hello"


def test_missing_files() -> None:
    result = chat("/load /no/such/file", "/save /no/such/folder/file", "/load /")
    assert result.status == 0
    assert [line.split(":")[1] for line in result.err.splitlines()] == [" cannot load", " cannot save", " cannot load"]


def test_a_piped_message_that_fails_ends_the_chat() -> None:
    result = chat("a message that is too long for this context", options=("--max-context", "8"))
    assert result.status == 2
    assert result.err.startswith("error: the prompt is too long: ")


def test_ctrl_c_ends_a_piped_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(0, monkeypatch)
    assert chat("Hello") == Result(130, "", "")


def test_the_documented_command() -> None:
    """`echo ... | transformers chat MODEL --torch_dtype auto --device 0 --attn_implementation flash_attention_2`."""
    plain = chat("My favorite condiment is")
    named = invoke("chat", "tiny", "--torch_dtype", "auto", *OPTIONS, stdin=b"My favorite condiment is\n")
    assert (named.status, named.out) == (0, plain.out)
    cpu = invoke(
        *("chat", "tiny", "--backend", "torch", "--device", "cpu", "--torch_dtype", "float32"),
        *("--attn_implementation", "flash_attention_2", *OPTIONS),
        stdin=b"Hi\n",
    )
    assert cpu.status == 1
    assert "--attention 'flash_attn': it needs a CUDA GPU, and this is cpu" in cpu.err
    gpu = invoke("chat", "tiny", "--backend", "numba", "--device", "0", stdin=b"Hi\n")
    assert gpu.status == 1
    assert "backend 'numba', --device 'cuda:0': it has no such choice; leave the option out" in gpu.err


def test_the_memory_of_the_cache_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def watched(**options: Any) -> mp.Model:
        given.append(options["cache_bytes"])
        return mp.load(**options)

    monkeypatch.setattr("mistral_portable.cli.loading.load", watched)
    for text in ("0", "16", "16m", "1G", "1GiB"):
        assert chat("Hello", options=("--cache-ram", text)).status == 0
    assert given == [0, 16 << 20, 16 << 20, 1 << 30, 1 << 30]
    for text in ("", "-1", "lots", "1.5G", "9" * 30):
        result = chat("Hello", options=("--cache-ram", text))
        assert result.status == 2
        assert "is not a size like 512 (MiB), 512M or 2G" in result.err
