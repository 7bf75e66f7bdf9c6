"""Text from tokens, one at a time."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mistral_portable.tokenizer.tokenizer import Tokenizer

__all__ = ["TextStream"]


class TextStream:
    """Turns tokens into text as they arrive, and never shows half a character. Made by `Tokenizer.stream`.

    An emoji that has no token of its own arrives as bytes, and appears with the last of them:

        push(<0xF0>) -> ""   push(<0x9F>) -> ""   push(<0xA6>) -> ""   push(<0x8A>) -> "🦊"   flush() -> ""

    Bytes that cannot become a character turn into U+FFFD once that is certain; what follows them is kept.
    """

    def __init__(self, tokenizer: Tokenizer, *, begins_text: bool) -> None:
        self._tokenizer = tokenizer
        self._begins_text = begins_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the text that is now certain; "" for a special token, or while a character is incomplete.

        Raises:
            InputError: The id is outside the vocabulary.
        """
        if self._tokenizer.is_special(token_id):
            return self.flush()  # no character continues across a special token
        text = self._tokenizer.token_bytes(token_id, begins_text=self._begins_text)
        self._begins_text = False
        return self._decoder.decode(text)

    def flush(self) -> str:
        """Return what is held back: U+FFFD for an incomplete character, else ""."""
        return self._decoder.decode(b"", final=True)
