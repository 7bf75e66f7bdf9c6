"""Table: the pages of one lane in one layer group, and what becomes of them as the sequence moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache.pool import PagePool
from mistral_portable.cache.spec import LayerGroup
from mistral_portable.cache.window import first_visible

__all__ = ["Advance", "Table", "span"]


@dataclass(frozen=True)
class Table:
    """`pages[i]` holds the positions `(begin + i) * page_size` up to the next page's; a ring's only page holds all.

    Example: pages of 4 slots, window 3, 10 tokens: Table(1, (7, 3)) has positions 4..7 in page 7 and 8, 9 in page 3.
    A table is a value: whatever changes makes a new one, so that a plan can be undone.
    """

    begin: int = 0
    pages: tuple[int, ...] = ()

    @cached_property  # a table is the same for as many steps as a page has slots
    def array(self) -> NDArray[np.int32]:
        """`pages`, int32 [pages]."""
        return np.array(self.pages, np.int32)

    def page(self, number: int) -> int | None:
        """The page of the positions from `number * page_size` on; None if it is not held."""
        return self.pages[number - self.begin] if 0 <= number - self.begin < len(self.pages) else None

    def oldest(self, group: LayerGroup, high: int) -> int:
        """The oldest position that is still held, where the sequence's greatest length was `high`."""
        return max(0, high - group.page_size) if group.ring else self.begin * group.page_size

    def advance(self, group: LayerGroup, pool: PagePool, begin: int, end: int) -> "Advance":
        """Make the table for a plan of the positions begin .. end - 1; its new pages are taken from the pool.

        It lacks the pages of which query `begin` sees no position. If another lane refers to the page of position
        `begin`, the first page taken stands in its place, and is to become a copy of it.
        """
        size = group.page_size
        first, written, last = (
            (0, 0, 0) if group.ring else (first_visible(begin, group.window) // size, begin // size, (end - 1) // size)
        )
        kept = self.pages[first - self.begin :]
        source: list[int] = []
        if kept and first + len(kept) > written and pool.shared(kept[-1]):
            kept, source = kept[:-1], [kept[-1]]
        missing = last + 1 - first - len(kept)
        if not missing and first == self.begin:
            return Advance(self)
        taken = pool.take(missing)
        return Advance(Table(first, kept + taken), taken, [(page, taken[0]) for page in source])

    def cut(self, group: LayerGroup, length: int) -> "Table":
        """The table without the pages that hold no position below `length`."""
        if length == 0:
            return Table()
        if group.ring:
            return self
        pages = self.pages[: max(0, -(-length // group.page_size) - self.begin)]
        return Table(self.begin, pages) if pages else Table(first_visible(length, group.window) // group.page_size)

    def needed(self, group: LayerGroup, length: int) -> "Table":
        """The table without the pages that no query from position `length` on sees."""
        first, count = span(group, length)
        return Table(first, self.pages[first - self.begin :][:count])

    def blank(self, group: LayerGroup, length: int, high: int) -> tuple[int, ...]:
        """The slots of the last page that hold none of a sequence's `length` tokens; high: as `oldest` takes it.

        Example: pages of 4 slots, 10 tokens: (2, 3). A ring of 4 slots that has held 6 tokens, of which 5 are left, has
        the positions 4 - 2 3 in its slots: (1,).
        """
        first = max(0, high - group.page_size) if group.ring else (length - 1) // group.page_size * group.page_size
        held = {position % group.page_size for position in range(first, length)}
        return tuple(slot for slot in range(group.page_size) if slot not in held) if self.pages else ()

    def slots(self, group: LayerGroup, begin: int, end: int) -> list[int]:
        """The slots, in the group's pool, of the positions begin .. end - 1."""
        size = group.page_size
        slots: list[int] = []
        while begin < end:  # a page at a time
            number, offset = divmod(begin, size)
            count = min(size - offset, end - begin)
            slot = self.pages[0 if group.ring else number - self.begin] * size + offset
            slots.extend(range(slot, slot + count))
            begin += count
        return slots


class Advance(NamedTuple):
    """The table after a plan, the pages taken for it, ascending, and the page (source, target) to copy, if any."""

    table: Table
    taken: tuple[int, ...] = ()
    copies: Sequence[tuple[int, int]] = ()


def span(group: LayerGroup, length: int) -> tuple[int, int]:
    """The first page, and the number of pages, that queries from position `length` on see."""
    if group.ring:
        return 0, min(1, length)
    oldest = first_visible(length, group.window)
    first = oldest // group.page_size
    return first, -(-length // group.page_size) - first if oldest < length else 0
