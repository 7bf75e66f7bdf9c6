"""Repl: answers messages and obeys commands, until the lines end."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from mistral_portable.cli import stdin
from mistral_portable.cli.answer import end_answer, show_answer
from mistral_portable.cli.conversation import Conversation, read_tools
from mistral_portable.cli.lines import ReadLine, read_messages
from mistral_portable.cli.output import aside, note, one_line, speed
from mistral_portable.cli.settings import changed, shown
from mistral_portable.cli.signals import Signals
from mistral_portable.engine import Generation, Model, TextStreamer
from mistral_portable.errors import InputError, MistralPortableError
from mistral_portable.sampling import SamplingParams

__all__ = ["Repl"]

_HELP = """\
/help            this list
/clear           start a new conversation
/undo            take back the last message and its answer
/regen           answer the last message again
/system TEXT     change the instructions; without TEXT show them
/set NAME VALUE  change a setting, such as temperature; without NAME list them
/tools FILE      offer the functions in a JSON file; off: none
/tokens          say how much of the context is full
/save FILE       write the conversation to a file, as JSON
/load FILE       continue a saved conversation
/exit            leave; so do /quit, /bye and Ctrl-D
//...            a message that begins with a slash
\"\"\" ... \"\"\"      a message of several lines; so is a line that ends in \\
Ctrl-C           stops an answer; empties a line; leaves, at an empty one"""
_EXITS = ("/exit", "/quit", "/bye")


class Repl:
    """A chat, line by line. Commands that fail are a note, and so are messages on a terminal; else these raise."""

    def __init__(
        self, model: Model, conversation: Conversation, params: SamplingParams, effort: str | None, signals: Signals
    ) -> None:
        self._model = model
        self._conversation = conversation
        self._params = params
        self._effort = effort
        self._signals = signals
        self._tools: list[dict[str, Any]] = []
        self._read: ReadLine = lambda prompt: None
        self._commands: Mapping[str, Callable[[str], None]] = {
            "/help": lambda _: note(_HELP),
            "/clear": self._clear,
            "/undo": self._undo,
            "/regen": self._answer_again,
            "/system": self._instruct,
            "/set": self._set,
            "/tools": self._offer,
            "/tokens": self._count,
            "/save": self._save,
            "/load": self._load,
        }

    def run(self, read: ReadLine) -> None:
        """Answer and obey until the lines end, or one says so."""
        self._read = read
        for line in read_messages(read):
            if line.strip() in _EXITS:
                return
            if line.startswith("/") and not line.startswith("//"):
                self._obey(line)
            elif line.strip():
                content = line[1:] if line.startswith("//") else line
                self._answer([*self._conversation.messages, {"role": "user", "content": content}])

    def _obey(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        try:
            if name not in self._commands:
                raise InputError(f"{name} is no command; /help lists them")
            self._commands[name](rest.strip())
        except MistralPortableError as error:
            note(f"error: {one_line(str(error))}")

    def _clear(self, _: str) -> None:
        self._conversation.clear()
        note("a new conversation")

    def _undo(self, _: str) -> None:
        content = self._conversation.undo()["content"]
        note(
            f"taken back: {one_line(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))}"
        )

    def _answer_again(self, _: str) -> None:
        before = self._conversation.messages
        message = self._conversation.undo()
        answered = False
        try:
            answered = self._answer([*self._conversation.messages, message])
        finally:
            if not answered:
                self._conversation.messages = before

    def _instruct(self, text: str) -> None:
        if text:
            self._conversation.instruct(text)
            note("new instructions")
        else:
            note(self._conversation.system or "no instructions")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if not name:
            note(shown(self._params))
        elif not value.strip():
            raise InputError("/set needs a name and a value")
        else:
            self._params = changed(self._params, name, value.strip())

    def _offer(self, file: str) -> None:
        if file == "off":
            self._tools = []
        elif file:
            tools = read_tools(file)
            self._conversation.check(tools)
            self._tools = tools
        names = ", ".join(str(tool.get("function", {}).get("name")) for tool in self._tools)
        note(f"tools: {names or 'none'}")

    def _count(self, _: str) -> None:
        note(f"{self._conversation.count(self._tools)} of {self._model.max_context} tokens")

    def _save(self, file: str) -> None:
        self._conversation.save(_required("/save", file))
        note(f"saved {len(self._conversation.messages)} messages to {one_line(file)}")

    def _load(self, file: str) -> None:
        self._conversation.load(_required("/load", file))
        note(f"loaded {len(self._conversation.messages)} messages from {one_line(file)}")

    def _answer(self, messages: list[dict[str, Any]]) -> bool:
        """Show the answer to messages and keep both; an empty answer leaves the conversation as it was. Returns whether
        there is one. Results of functions that it calls are lines, too."""
        generation = self._generate(messages)
        while generation is not None and generation.tool_calls:
            messages = [*messages, _said(generation)]
            for call in generation.tool_calls:
                result = self._read(f"{call.name}: ")
                if result is None or not result.strip():
                    aside("(no result; your message is forgotten)")
                    return False
                messages.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": result})
            generation = self._generate(messages)
        if generation is None:
            return False
        if not generation.text:
            aside("(no answer; your message is forgotten)")
            return False
        self._conversation.messages = [*messages, _said(generation)]
        return True

    def _generate(self, messages: list[dict[str, Any]]) -> Generation | None:
        """Show an answer. None if it failed, on a terminal."""
        try:
            with self._model.stream(
                messages, self._params, reasoning_effort=self._effort, tools=self._tools or None
            ) as streamer:
                self._show(streamer)
                generation = streamer.generation
        except MistralPortableError as error:
            if not stdin.is_terminal():
                raise
            note(f"error: {one_line(str(error))}; /clear starts a new conversation")
            return None
        end_answer(generation.text, generation)
        if generation.finish_reason == "length":
            aside(f"(cut off after {len(generation.tokens)} tokens: /set max_tokens, or the context is full)")
        aside(speed(generation.timings))
        return generation

    def _show(self, streamer: TextStreamer) -> None:
        """Show the answer as it is generated. On a terminal Ctrl-C ends the answer, not the chat."""
        try:
            show_answer(streamer)
        except KeyboardInterrupt:
            if not stdin.interrupts():
                raise
            self._signals.go_on()


def _required(command: str, file: str) -> str:
    if not file:
        raise InputError(f"{command} needs the name of a file")
    return file


def _said(generation: Generation) -> dict[str, Any]:
    """The message of an answer."""
    message: dict[str, Any] = {"role": "assistant", "content": generation.text}
    if generation.reasoning:
        message["reasoning"] = generation.reasoning
    if generation.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in generation.tool_calls
        ]
    return message
