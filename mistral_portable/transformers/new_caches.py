"""DynamicCache, StaticCache: caches that callers make before there is anything in them."""

from collections.abc import Callable, Sequence
from typing import Any

from mistral_portable.cache import CacheManager
from mistral_portable.errors import InputError
from mistral_portable.transformers.cache import Cache

__all__ = ["DynamicCache", "StaticCache"]


class DynamicCache(Cache):
    """A Cache that is empty until it is given to a call, whose model and number of rows it then has.

    >>> past = DynamicCache()
    >>> model(ids, past_key_values=past)
    >>> past.get_seq_length()  # the columns of ids
    """

    def __init__(self, config: Any = None) -> None:
        """Make an empty cache. config: has no effect; the windows are those of the model that it is given to."""
        self._be_empty()

    @property
    def is_new(self) -> bool:
        """Whether no model has been given it yet."""
        return not hasattr(self, "manager")

    def begin(
        self,
        manager: CacheManager,
        rows: int,
        copy: Callable[[Cache, Sequence[int]], Cache],
        sources: Sequence[int] | None = None,
    ) -> None:
        """Open lanes as Cache does, of which this then is one."""
        super().__init__(manager, rows, copy, sources)

    def forget(self) -> None:
        """Give the lanes back, and be as new."""
        self.close()
        del self.manager
        self._be_empty()

    def _be_empty(self) -> None:
        self.lanes, self.columns, self._length = [], [], 0

    def require_open(self) -> None:
        """Raise ClosedError if the cache is closed; a new one is open."""
        if not self.is_new:
            super().require_open()

    def crop(self, max_length: int) -> None:
        """Forget all columns from `max_length` on, as Cache does; a new cache has none."""
        if not self.is_new:
            super().crop(max_length)

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        return type(self)() if self.is_new else super().__deepcopy__(memo)


class StaticCache(DynamicCache):
    """A DynamicCache of at most `max_cache_len` columns. Its memory grows with what is in it, as that of all caches."""

    def __init__(self, config: Any = None, max_cache_len: int | None = None) -> None:
        """Make an empty cache. config: has no effect. Raises InputError for anything but a number of columns."""
        if isinstance(max_cache_len, bool) or not isinstance(max_cache_len, int) or max_cache_len < 1:
            raise InputError(f"max_cache_len={max_cache_len!r:.40} must be an integer from 1 on")
        super().__init__(config)
        self.max_cache_len = max_cache_len

    def require_room(self, columns: int) -> None:
        """Raise InputError if so many columns more do not fit."""
        if self.get_seq_length() + columns > self.max_cache_len:
            raise InputError(
                f"{self.get_seq_length()} + {columns} columns exceed max_cache_len={self.max_cache_len}: make it larger"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        """A copy; one of what is there is a DynamicCache, without the limit."""
        return StaticCache(None, self.max_cache_len) if self.is_new else super().__deepcopy__(memo)
