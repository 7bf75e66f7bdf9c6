"""Conversation: the messages of a chat, which can be saved and loaded."""

import json
from os.path import expanduser
from pathlib import Path
from typing import Any

from mistral_portable.errors import InputError
from mistral_portable.tokenizer import Tokenizer

__all__ = ["Conversation"]


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
        try:
            messages = json.loads(Path(expanduser(file)).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot load: {error}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"cannot load {file}: not JSON in UTF-8: {error}") from error
        self.replace(messages, file)

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
