"""TokenCounts: how often a sequence has each token, for the penalties."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["TokenCounts"]


class TokenCounts:
    """Counts token ids one by one; takes memory and time for those that occur, not for the vocabulary.

    >>> counted = TokenCounts([7, 3, 7])
    >>> counted.tokens, counted.counts
    (array([7, 3]), array([2, 1]))
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._places: dict[int, int] = {}
        self._tokens = np.zeros(16, np.int64)  # room for more: it doubles when it is full
        self._counts = np.zeros(16, np.int64)
        for token in tokens:
            self.add(token)

    def copy(self) -> "TokenCounts":
        """Return another one with the same counts, which goes on alone."""
        other = TokenCounts()
        other._places, other._tokens, other._counts = dict(self._places), self._tokens.copy(), self._counts.copy()
        return other

    @property
    def tokens(self) -> NDArray[np.int64]:
        """The distinct ids [n], in the order in which they came first."""
        return self._tokens[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each of `tokens` came: [n], 1 or more."""
        return self._counts[: len(self._places)]

    def add(self, token: int) -> None:
        """Count one token more."""
        place = self._places.setdefault(token, len(self._places))
        if place == self._tokens.size:
            self._tokens = np.append(self._tokens, np.zeros_like(self._tokens))
            self._counts = np.append(self._counts, np.zeros_like(self._counts))
        self._tokens[place] = token
        self._counts[place] += 1
