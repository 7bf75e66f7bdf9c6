"""Tokens as strings, spelled like the library that encodes: sentencepiece's `▁Hello`, tekken's ` Hello`."""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

from mistral_portable.tokenizer.common import CommonTokenizer
from mistral_portable.tokenizer.library import LibraryTokenizer

__all__ = ["CommonVocabulary", "LibraryVocabulary", "Vocabulary"]


class Vocabulary(ABC):
    """Converts between token ids and the strings of a tokenizer's vocabulary.

    >>> vocabulary.to_piece(867), vocabulary.to_id("▁Hello")
    ('▁Hello', 867)

    special: the ids of control tokens. unknown: the id of `<unk>`; None where there is none.
    """

    special: frozenset[int]
    unknown: int | None

    def __init__(self, size: int) -> None:
        self._size = size

    @abstractmethod
    def to_piece(self, id: int) -> str:
        """The token as a string; U+FFFD stands for a part of a character. Raises the errors of `checked`."""

    @abstractmethod
    def to_id(self, piece: str) -> int | None:
        """The id of a token; `unknown` for an unknown string. Raises TypeError for anything but a string."""

    @property
    @abstractmethod
    def ids(self) -> dict[str, int]:
        """Ids by token, in order of ids; tokens with the same string share one entry."""

    def checked(self, id: int) -> int:
        """The id as an int. Raises TypeError if it is not an integer, IndexError if it is outside the vocabulary."""
        if isinstance(id, str) or not hasattr(id, "__index__"):
            raise TypeError(f"{id!r:.80} is no token id; pass integers")
        if not 0 <= id < self._size:
            raise IndexError(f"token id {id} is outside the vocabulary; ids are 0 to {self._size - 1}")
        return int(id)


class CommonVocabulary(Vocabulary):
    """The vocabulary of mistral-common's tokenizer. Tekken's `<unk>` is special, sentencepiece's is not."""

    unknown: int

    def __init__(self, tokenizer: CommonTokenizer) -> None:
        super().__init__(tokenizer.vocab_size)
        self._tokens: Any = tokenizer.mistral.instruct_tokenizer.tokenizer  # mistral-common has one class for each kind
        self._tekken = tokenizer.kind == "tekken"
        self.unknown = int(self._tokens.unk_id)
        self.special = frozenset(self._tokens.special_ids)

    def to_piece(self, id: int) -> str:
        """The token as a string, as `Vocabulary` says."""
        return str(self._tokens.id_to_piece(self.checked(id)))

    def to_id(self, piece: str) -> int:
        """The id of a token, as `Vocabulary` says."""
        _check_piece(piece)
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
        """Ids by token, as `Vocabulary` says."""
        pairs = [(piece, self.to_id(piece)) for piece in dict.fromkeys(self._tokens.vocab())]
        return dict(sorted(pairs, key=lambda pair: pair[1]))


class LibraryVocabulary(Vocabulary):
    """The vocabulary of a tokenizer of Hugging Face's library. Tokens that are hidden when decoding are special."""

    def __init__(self, tokenizer: LibraryTokenizer) -> None:
        super().__init__(tokenizer.vocab_size)
        self._backend = tokenizer.backend
        name = tokenizer.special_tokens.get("unk_token")
        self.unknown = None if name is None else self._backend.token_to_id(name)
        self.special = frozenset(id for id, (_, hidden) in tokenizer.added.items() if hidden)

    def to_piece(self, id: int) -> str:
        """The token as a string; "" for an id without a token."""
        return self._backend.id_to_token(self.checked(id)) or ""

    def to_id(self, piece: str) -> int | None:
        """The id of a token, as `Vocabulary` says."""
        _check_piece(piece)
        id = self._backend.token_to_id(piece)
        return self.unknown if id is None else id

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids by token, as `Vocabulary` says."""
        return dict(sorted(self._backend.get_vocab(with_added_tokens=True).items(), key=lambda pair: pair[1]))


def _check_piece(piece: object) -> None:
    if not isinstance(piece, str):
        raise TypeError(f"{piece!r:.80} is no token; pass strings")
