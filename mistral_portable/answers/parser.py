"""Parsers: deltas from an answer's tokens, one at a time."""

from typing import Protocol

from mistral_portable.answers.deltas import Content, Delta
from mistral_portable.tokenizer import TextStream

__all__ = ["Parser", "PlainText"]


class Parser(Protocol):
    """Turns the tokens of one answer into deltas. However the tokens come, the same deltas add up to the same parts."""

    def push(self, token_id: int) -> list[Delta]:
        """Take the next token; return what is certain now. Raises InputError for an id outside the vocabulary."""

    def flush(self) -> list[Delta]:
        """Return the rest, as no token follows."""


class PlainText:
    """The parser of a text that is no answer to a chat: all of it is content, and special tokens stand for nothing."""

    def __init__(self, text: TextStream) -> None:
        """text: the tokenizer's stream behind the prompt."""
        self._text = text

    def push(self, token_id: int) -> list[Delta]:
        """Take the next token; return the text that is certain now."""
        return _content(self._text.push(token_id))

    def flush(self) -> list[Delta]:
        """Return the rest of the text."""
        return _content(self._text.flush())


def _content(text: str) -> list[Delta]:
    return [Content(text)] if text else []
