"""The command line on a terminal: prompts, Ctrl-C, Ctrl-D."""

import json
import sys
from pathlib import Path

import pytest
from cli.processes import Terminal
from filelock import FileLock
from mistral_portable_numba.compiler.chosen import chosen_isa

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")

ENDLESS = ("--ignore-eos", "--max-tokens", "30000")


def test_ctrl_c_keeps_what_was_written_and_exits_130() -> None:
    with Terminal("run", "Once upon a time", *ENDLESS) as terminal:
        terminal.expect(r"Once upon a time[^\n]{20}")
        terminal.press("\x03")
        assert terminal.wait() == 130
    assert "Traceback" not in terminal.text
    assert "prompt 5 tokens" in terminal.text


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    with Terminal("chat", *ENDLESS) as terminal:
        terminal.expect("> ")
        terminal.press("Hello\n")
        terminal.expect(r"Hello[^\n]*\n[^\n]{20}")
        terminal.press("\x03")
        terminal.expect("\n> ")
        terminal.press(f"/save {saved}\n")
        terminal.expect("saved 2 messages.*\n.*> ")
        terminal.press("\x04")
        assert terminal.wait() == 0
    question, answer = json.loads(saved.read_text())
    assert question == {"role": "user", "content": "Hello"}
    assert answer["role"] == "assistant"
    assert answer["content"].split("\n")[0][:20] in terminal.text
    assert "Traceback" not in terminal.text


def test_ctrl_c_ends_a_chat_whose_launcher_passes_it_on() -> None:
    """torchrun ends all that it has started, and would kill a chat that goes on."""
    with Terminal("chat", *ENDLESS, launched=True) as terminal:
        terminal.expect("> ")
        terminal.press("Hello\n")
        terminal.expect(r"Hello[^\n]*\n[^\n]{20}")
        terminal.press("\x03")
        assert terminal.wait() == 130
    assert "Traceback" not in terminal.text


def test_ctrl_c_at_the_prompt_leaves_with_130_and_a_full_context_does_not_leave() -> None:
    with Terminal("chat", "--max-context", "8") as terminal:
        terminal.expect("> ")
        terminal.press("one two three four five six seven eight\n")
        terminal.expect("error: the prompt is too long: .*/clear starts a new conversation\n.*> ")
        assert terminal.interrupt() == 130
    assert "Traceback" not in terminal.text


def test_run_without_a_prompt_is_wrong_usage() -> None:
    with Terminal("run") as terminal:
        assert terminal.wait() == 2
    assert terminal.text.startswith("error: Invalid value for 'PROMPT': give a text, or pipe one in")
    assert terminal.text.count("\n") == 1


@pytest.mark.parametrize("command", [("run", "Once"), ("chat",), ("serve", "--port", "0")])
def test_ctrl_c_amid_loading_says_what_it_has_ended(command: tuple[str, ...], tmp_path: Path) -> None:
    """The loading waits for this process, as if that compiled kernels."""
    lock = tmp_path / "kernels" / chosen_isa().name / ".lock"
    lock.parent.mkdir(parents=True)
    environment = {"MISTRAL_PORTABLE_CACHE": str(tmp_path)}
    with FileLock(lock), Terminal(*command, "--backend", "numba", columns=120, environment=environment) as terminal:
        terminal.expect("loading tiny: waiting for another process")
        terminal.press("\x03")
        assert terminal.wait() == 130
    assert terminal.text.splitlines()[-1] == "interrupted: loading tiny"
    assert "Traceback" not in terminal.text
