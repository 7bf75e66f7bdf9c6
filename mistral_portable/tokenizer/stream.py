"""Incremental detokenization: text from tokens, one at a time."""

import codecs
from collections.abc import Callable

__all__ = ["TextStream"]


class TextStream:
    """Decoder of one text's tokens as they arrive, which never returns a part of a character.

    An emoji that has no token of its own arrives as bytes, and is returned with the last of them:

        push(<0xF0>) -> ""   push(<0x9F>) -> ""   push(<0xA6>) -> ""   push(<0x8A>) -> "🦊"   flush() -> ""

    Bytes that cannot become a character turn into U+FFFD once that is certain; what follows them is kept.

    piece: function of a token id and whether it begins the text, which returns the bytes that the token adds, or None
    for a special token (`Tokenizer.piece`). begins_text: whether the first token begins a text or continues one.
    """

    def __init__(self, piece: Callable[[int, bool], bytes | None], *, begins_text: bool) -> None:
        self._piece = piece
        self._begins_text = begins_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is now certain; "" for a special token, or while a character is incomplete.

        Raises InputError if the id is outside the vocabulary.
        """
        piece = self._piece(token_id, self._begins_text)
        if piece is None:
            return self.flush()  # no character continues across a special token
        self._begins_text = False
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """The rest at the end of a text: U+FFFD for an incomplete character, else ""."""
        return self._decoder.decode(b"", final=True)
