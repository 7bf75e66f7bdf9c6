"""Conversation: the messages of a chat, which can be saved and loaded."""

import json
from collections.abc import Mapping, Sequence
from os.path import expanduser
from pathlib import Path
from typing import Any

from mistral_portable.errors import InputError
from mistral_portable.tokenizer import Tokenizer

__all__ = ["Conversation", "read_tools"]


class Conversation:
    """The messages of a chat, in OpenAI's format: `[{"role": "user", "content": "Hi"}, ...]`.

    Raises TokenizerError if the tokenizer cannot encode a chat, or refuses a system message.
    """

    def __init__(self, tokenizer: Tokenizer, system: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._beginning = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, Any]] = []
        self.clear()
        self._check(self.messages)

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._beginning)

    @property
    def system(self) -> str:
        """The instructions at the beginning; "" if there are none."""
        return str(self.messages[0]["content"]) if self._is_instructed else ""

    def instruct(self, text: str) -> None:
        """Put instructions in place of those at the beginning, also for conversations that `clear` begins.

        Raises TokenizerError if the tokenizer refuses them.
        """
        beginning = [{"role": "system", "content": text}]
        messages = [*beginning, *self.messages[self._is_instructed :]]
        self._check(messages)
        self._beginning, self.messages = beginning, messages

    @property
    def _is_instructed(self) -> bool:
        return bool(self.messages) and self.messages[0].get("role") == "system"

    def undo(self) -> dict[str, Any]:
        """Take back the user's last message and what follows it; return it. Raises InputError without one."""
        for index in reversed(range(len(self.messages))):
            if self.messages[index].get("role") == "user":
                message = self.messages[index]
                self.messages = self.messages[:index]
                return message
        raise InputError("there is no message yet")

    def count(self, tools: Sequence[Mapping[str, Any]]) -> int:
        """The tokens of the messages and the tools."""
        return len(self._tokenizer.chat(self.messages, tools=tools or None)) if self.messages else 0

    def check(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """Raise TokenizerError for tools that the tokenizer refuses."""
        self._tokenizer.chat([{"role": "user", "content": "?"}], tools=tools or None)

    def save(self, file: str) -> None:
        """Write the messages as JSON. Raises InputError if the file cannot be written."""
        text = json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n"
        try:
            Path(expanduser(file)).write_text(text, encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise InputError(f"cannot save: {error}") from error

    def load(self, file: str) -> None:
        """Replace the messages by those of a file.

        Raises InputError or TokenizerError, and keeps the messages, if the file cannot be read or is not a chat.
        """
        self.replace(_read_json(file), file)

    def replace(self, messages: Any, file: str) -> None:
        """Replace the messages by those that were read from a file.

        Raises InputError or TokenizerError, and keeps the messages, if it is not a chat.
        """
        if not isinstance(messages, list):
            raise InputError(f"cannot load {file}: it holds no list of messages")
        self._check(messages)
        self.messages = messages

    def _check(self, messages: list[dict[str, Any]]) -> None:
        """Raise TokenizerError unless the user may speak next."""
        self._tokenizer.chat([*messages, {"role": "user", "content": "?"}])


def read_tools(file: str) -> list[dict[str, Any]]:
    """The functions in a JSON file, in OpenAI's format. Raises InputError if it cannot be read or holds no list."""
    tools = _read_json(file)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"cannot load {file}: it holds no list of functions")
    return tools


def _read_json(file: str) -> Any:
    try:
        return json.loads(Path(expanduser(file)).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot load: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot load {file}: not JSON in UTF-8: {error}") from error
