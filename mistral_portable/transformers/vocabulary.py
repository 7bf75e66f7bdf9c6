"""Vocabulary: tokens as strings, spelled like mistral-common: sentencepiece's `▁Hello`, tekken's ` Hello`."""

from functools import cached_property
from typing import Any

from mistral_portable.tokenizer.common import CommonTokenizer

__all__ = ["Vocabulary"]


class Vocabulary:
    """Converts between token ids and the strings of a tokenizer's vocabulary.

    >>> vocabulary.to_piece(867), vocabulary.to_id("▁Hello")
    ('▁Hello', 867)
    """

    def __init__(self, tokenizer: CommonTokenizer) -> None:
        self._size = tokenizer.vocab_size
        self._tokens: Any = tokenizer.mistral.instruct_tokenizer.tokenizer  # mistral-common has one class for each kind
        self._tekken = tokenizer.kind == "tekken"
        self.unknown: int = self._tokens.unk_id
        self.special: frozenset[int] = frozenset(self._tokens.special_ids)
        """The ids of control tokens; tekken's `<unk>` is one, sentencepiece's is not."""

    def to_piece(self, id: int) -> str:
        """The token as a string; U+FFFD stands for a part of a character. Raises the errors of `checked`."""
        return str(self._tokens.id_to_piece(self.checked(id)))

    def checked(self, id: int) -> int:
        """The id as an int. Raises TypeError if it is not an integer, IndexError if it is outside the vocabulary."""
        if isinstance(id, str) or not hasattr(id, "__index__"):
            raise TypeError(f"{id!r:.80} is no token id; pass integers")
        if not 0 <= id < self._size:
            raise IndexError(f"token id {id} is outside the vocabulary; ids are 0 to {self._size - 1}")
        return int(id)

    def to_id(self, piece: str) -> int:
        """The id of a token; the id of `<unk>` for an unknown string. Raises TypeError for anything but a string."""
        if not isinstance(piece, str):
            raise TypeError(f"{piece!r:.80} is no token; pass strings")
        if not self._tekken:
            return int(self._tokens.get_special_token(piece))  # finds every piece, not only special ones
        id = self._tekken_ids.get(piece.encode(errors="surrogatepass"))
        if id is not None:
            return id
        return int(self._tokens.get_special_token(piece)) if self._tokens.is_special(piece) else self.unknown

    @cached_property
    def _tekken_ids(self) -> dict[bytes, int]:
        first = self._tokens.num_special_tokens
        return {self._tokens.id_to_byte_piece(id): id for id in range(first, self._size)}

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids by token, in order of ids; tokens with the same string share one entry."""
        pairs = [(piece, self.to_id(piece)) for piece in dict.fromkeys(self._tokens.vocab())]
        return dict(sorted(pairs, key=lambda pair: pair[1]))
