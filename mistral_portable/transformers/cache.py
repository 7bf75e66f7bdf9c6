"""Cache: `past_key_values`, one lane of the cache manager for each row of a batch."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheManager
from mistral_portable.errors import InputError

__all__ = ["Cache"]

Fork = Callable[[frozenset[str], int], int]


class Cache:
    """What a model remembers of the rows of a batch; a call with it adds to it, as transformers' DynamicCache.

    Windows are rings: their memory does not grow beyond them. The lanes are free again when the object is gone.
    """

    def __init__(self, manager: CacheManager, rows: int, fork: Fork) -> None:
        """fork: makes a lane with what is in another one. Raises CacheError if the model has not so many left."""
        self.manager, self._fork = manager, fork
        self.lanes: list[int] = []
        self.program = frozenset[str]()
        """Which of the model's programs holds the arrays: by what it shows besides."""
        self.columns: list[NDArray[np.intp]] = [np.zeros(0, np.intp)] * rows
        """Of each row, the columns of its tokens: padding has no place in a lane."""
        self._length = 0
        self.close = weakref.finalize(self, _close, manager, self.lanes)
        for _ in range(rows):
            self.lanes.append(manager.open())

    def __deepcopy__(self, memo: dict[int, Any]) -> "Cache":
        """With lanes of its own: to go on from one prompt in several ways. Raises InputError if there are none left."""
        self.require_open()
        copy = Cache(self.manager, 0, self._fork)
        copy.program, copy.columns, copy._length = self.program, list(self.columns), self._length
        for lane in self.lanes:
            copy.lanes.append(self._fork(self.program, lane))
        return copy

    def __copy__(self) -> "Cache":
        return self.__deepcopy__({})

    def __reduce__(self) -> Any:
        raise InputError("a cache is not pickled: its keys and values are the model's")

    def require_open(self) -> None:
        """Raise InputError if it has been closed."""
        if not self.close.alive:
            raise InputError("past_key_values are closed: begin again")

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
        if type(max_length) is not int:
            raise InputError(f"crop({max_length!r:.40}): pass an integer")
        length = max(0, self._length + max_length) if max_length < 0 else min(max_length, self._length)
        kept = [columns[columns < length] for columns in self.columns]
        self.require_open()
        for roll_back in (self.manager.check_rollback, self.manager.rollback):  # all or none
            for lane, columns in zip(self.lanes, kept, strict=True):
                roll_back(lane, len(columns))
        self.columns, self._length = kept, length


def _close(manager: CacheManager, lanes: list[int]) -> None:
    for lane in lanes:
        manager.close(lane)
    lanes.clear()
