"""History: the token ids of a text that grows at its end."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["History"]


class History:
    """Keeps ids in one array, so that rules which look at the whole text do so by NumPy.

    >>> text = History([7, 3])
    >>> text.append(9)
    >>> text.tokens
    array([7, 3, 9])
    """

    def __init__(self, tokens: Sequence[int] | NDArray[np.int64] = ()) -> None:
        self._length = len(tokens)
        self._ids = np.zeros(2 * self._length + 16, np.int64)  # room for more: it doubles when it is full
        self._ids[: self._length] = tokens

    @property
    def tokens(self) -> NDArray[np.int64]:
        """All ids [n], the oldest first."""
        return self._ids[: self._length]

    def append(self, token: int) -> None:
        """Add one token."""
        if self._length == self._ids.size:
            self._ids = np.append(self._ids, np.zeros_like(self._ids))
        self._ids[self._length] = token
        self._length += 1
