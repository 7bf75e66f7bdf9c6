"""Cache: `past_key_values`, one lane of the cache manager for each row of a batch."""

import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheManager

__all__ = ["Cache"]


class Cache:
    """What a model remembers of the rows of a batch; a call with it adds to it, as transformers' DynamicCache.

    Windows are rings: their memory does not grow beyond them. The lanes are free again when the object is gone.
    """

    def __init__(self, manager: CacheManager, rows: int) -> None:
        """Raises CacheError if the model has not so many lanes left."""
        self.lanes: list[int] = []
        self.program = frozenset[str]()
        """Which of the model's programs holds the arrays: by what it shows besides."""
        self.columns: list[NDArray[np.intp]] = [np.zeros(0, np.intp)] * rows
        """Of each row, the columns of its tokens: padding has no place in a lane."""
        self._length = 0
        self._manager = manager
        self.close = weakref.finalize(self, _close, manager, self.lanes)
        for _ in range(rows):
            self.lanes.append(manager.open())

    def __len__(self) -> int:
        """Rows."""
        return len(self.columns)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns so far, padding included: where the next ids of the batch begin."""
        return self._length

    def extend(self, columns: Sequence[NDArray[np.intp]], length: int) -> None:
        """Note that every row has `length` more columns, of which `columns` hold tokens."""
        self.columns = [np.append(old, self._length + new) for old, new in zip(self.columns, columns, strict=True)]
        self._length += length

    def crop(self, max_length: int) -> None:
        """Forget all columns from `max_length` on; if it is negative, so many of the last ones.

        Raises CacheError where a window's ring has overwritten what would be seen again.
        """
        length = max(0, self._length + max_length) if max_length < 0 else min(max_length, self._length)
        kept = [columns[columns < length] for columns in self.columns]
        for lane, columns in zip(self.lanes, kept, strict=True):
            self._manager.rollback(lane, len(columns))
        self.columns, self._length = kept, length


def _close(manager: CacheManager, lanes: list[int]) -> None:
    for lane in lanes:
        manager.close(lane)
    lanes.clear()
