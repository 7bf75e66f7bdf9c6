"""Cache: `past_key_values`, one lane of the cache manager for each row of a batch."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheManager
from mistral_portable.errors import CacheError, ClosedError, InputError
from mistral_portable.transformers.arrays import integers

__all__ = ["Cache"]


class Cache:
    """The keys and values of a batch's rows so far, like transformers' DynamicCache: a call with it appends to it.

    Windowed layers let go of keys that have left the window, so their memory stays constant once it has filled. The
    lanes are given back when the object is closed or collected.
    """

    def __init__(
        self,
        manager: CacheManager,
        rows: int,
        copy: Callable[["Cache", Sequence[int]], "Cache"],
        sources: Sequence[int] | None = None,
    ) -> None:
        """Open a lane for each row: an empty one, or a fork of the row's lane in `sources`.

        copy: makes a cache with the content of some rows in other lanes. Raises BusyError if too few are left.
        """
        self.manager, self._copy = manager, copy
        self.lanes: list[int] = []
        """The lane of each row."""
        self.program = frozenset[str]()
        """The outputs that the program with this cache's arrays exposes: which of the model's programs it is."""
        self.columns: list[NDArray[np.intp]] = [np.zeros(0, np.intp)] * rows
        """For each row the columns that hold tokens; padding takes no place in a lane."""
        self._length = 0
        self.close = weakref.finalize(self, _close, manager, self.lanes)
        """Give the lanes back; called by itself when the object is collected."""
        try:
            for row in range(rows):
                self.lanes.append(manager.open() if sources is None else manager.fork(sources[row]))
        except BaseException:
            self.close()  # whoever keeps the exception would keep its lanes
            raise

    def __deepcopy__(self, memo: dict[int, Any]) -> "Cache":
        """A copy in lanes of its own: one prompt may then be continued in several ways.

        Raises BusyError if too few lanes are left, ClosedError if this cache is closed.
        """
        return self.take(range(len(self)))

    def take(self, rows: Sequence[int]) -> "Cache":
        """A cache of these rows, in lanes of its own; a row may come several times. Raises the errors of a copy."""
        return self._copy(self, rows)

    def __copy__(self) -> "Cache":
        return self.__deepcopy__({})

    def __reduce__(self) -> Any:
        raise InputError("a cache is not pickled: its keys and values are the model's")

    def require_open(self) -> None:
        """Raise ClosedError if the cache is closed."""
        if not self.close.alive:
            raise ClosedError("past_key_values are closed: begin again")

    def __len__(self) -> int:
        """Rows."""
        return len(self.columns)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of columns so far, padding included: the column at which the next ids begin."""
        return self._length

    def extend(self, columns: Sequence[NDArray[np.intp]], length: int) -> None:
        """Record `length` more columns; columns: for each row those of them that hold tokens, counted from 0."""
        self.columns = [np.append(old, self._length + new) for old, new in zip(self.columns, columns, strict=True)]
        self._length += length

    def reorder_cache(self, beam_idx: Any) -> None:
        """Let each row r go on from what row `beam_idx[r]` has now; rows that begin alike share memory.

        Raises InputError for anything but the number of a row for each row, ClosedError if the cache is closed.
        """
        sources = integers("beam_idx", beam_idx, (len(self),)).tolist()
        if not all(0 <= source < len(self) for source in sources):
            raise InputError(f"beam_idx={sources!r:.60} must be rows of this cache: 0 to {len(self) - 1}")
        self.require_open()
        kept = {source: row for row, source in reversed([*enumerate(sources)])}  # the first row keeps the source's lane
        old, columns = list(self.lanes), self.columns
        taken = {row: old[source] for source, row in kept.items()}
        self.lanes[:] = taken.values()
        for source, lane in enumerate(old):
            if source not in kept:
                self.manager.close(lane)
        for row, source in enumerate(sources):
            if row not in taken:
                taken[row] = self.manager.fork(old[source])
                self.lanes.append(taken[row])
        self.lanes[:] = [taken[row] for row in range(len(sources))]
        self.columns = [columns[source] for source in sources]

    def crop(self, max_length: int) -> None:
        """Forget all columns from `max_length` on; a negative number: that many of the last columns.

        Raises CacheError, and changes nothing, if keys have left a window that would be seen again;
        ClosedError if the cache is closed; InputError for anything but an integer.
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


def _close(manager: CacheManager, lanes: Sequence[int]) -> None:
    for lane in lanes:
        with suppress(CacheError):  # it is not open any more; the others are
            manager.close(lane)
