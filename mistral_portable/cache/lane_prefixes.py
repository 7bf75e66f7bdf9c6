"""LanePrefixes: the beginnings of texts where a page is a whole lane."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from mistral_portable.cache.pool import PagePool
from mistral_portable.cache.prefixes import Found, common_length
from mistral_portable.cache.spec import LayerGroup
from mistral_portable.cache.table import Table
from mistral_portable.cache.window import first_visible

__all__ = ["LanePrefixes"]


class _Kept(NamedTuple):
    high: int
    tables: tuple[Table, ...]


class LanePrefixes:
    """Whole lanes. A text that goes on from all of a kept one takes it over; one that has less in common shares it.

    Example: the text 1 2 3 kept. `find` of 1 2 3 4 takes it over: it is not kept any more, and written in place.
    `find` of 1 2 9 shares it, if no window has overwritten what 2 tokens need; the executor copies the lane.
    """

    def __init__(self, groups: Sequence[LayerGroup], pools: Sequence[PagePool]) -> None:
        self._groups, self._pools = groups, pools
        self._kept: OrderedDict[tuple[Hashable, tuple[int, ...]], _Kept] = OrderedDict()  # the latest used last

    def spare_slots(self, group: int) -> int:
        """Slots of a layer group's pages that are kept and that no lane uses."""
        pages = [page for kept in self._kept.values() if not self._in_use(kept) for page in kept.tables[group].pages]
        return sum(self._pools[group].slots(page) for page in pages)

    def keep(self, salt: Hashable, tokens: Sequence[int], high: int, tables: Sequence[Table], *, whole: bool) -> None:
        """Keep a lane that holds these tokens, if it is to be kept whole."""
        key = salt, tuple(tokens)
        if not whole or not tokens:
            return
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        if any(kept.tables == tuple(tables) for kept in self._kept.values()):  # a page has one place
            return
        self._kept[key] = _Kept(high, tuple(tables))
        for pool, table in zip(self._pools, tables, strict=True):
            pool.share(table.pages)

    def find(self, salt: Hashable, tokens: Sequence[int]) -> Found | None:
        """The longest known beginning of the tokens from which a lane can go on."""
        best, found = 0, None
        for key, kept in self._kept.items():
            length = common_length(key[1], tokens) if key[0] == salt else 0
            if length > best and self._holds(kept, length):
                best, found = length, key
        if found is None:
            return None
        kept = self._kept[found]
        if best == len(found[1]) and not self._in_use(kept):
            del self._kept[found]  # and its references are the finder's
        else:
            self._kept.move_to_end(found)
            for pool, table in zip(self._pools, kept.tables, strict=True):
                pool.share(table.pages)
        return Found(best, kept.high, kept.tables)

    def give_way(self) -> bool:
        """Let go of what has been unused for the longest time; False if lanes use all that is kept, or nothing is."""
        unused = next((key for key, kept in self._kept.items() if not self._in_use(kept)), None)
        if unused is None:
            return False
        for pool, table in zip(self._pools, self._kept.pop(unused).tables, strict=True):
            pool.release(table.pages)
        return True

    def clear(self) -> bool:
        """Let go of everything, also of what lanes use, which then need not copy it; False if nothing is kept."""
        anything = bool(self._kept)
        for kept in self._kept.values():
            for pool, table in zip(self._pools, kept.tables, strict=True):
                pool.release(table.pages)
        self._kept.clear()
        return anything

    def _in_use(self, kept: _Kept) -> bool:
        return any(
            pool.shared(page) for pool, table in zip(self._pools, kept.tables, strict=True) for page in table.pages
        )

    def _holds(self, kept: _Kept, length: int) -> bool:
        """Whether all that the query at position `length` sees is there."""
        return all(
            first_visible(length, group.window) >= min(length, table.oldest(group, kept.high))
            for group, table in zip(self._groups, kept.tables, strict=True)
        )
