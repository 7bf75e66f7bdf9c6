"""Table: the pages of one lane in one layer group, and what becomes of them as the sequence moves."""

from dataclasses import dataclass
from typing import NamedTuple

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
        size, first = group.page_size, first_visible(begin, group.window)
        start, written, last = (0, 0, 0) if group.ring else (first // size, begin // size, (end - 1) // size)
        pages = self.pages if start == self.begin else self.pages[start - self.begin :]
        copied = pages[-1:] if start + len(pages) > written and pool.shared(pages[-1]) else ()
        kept = pages[:-1] if copied else pages
        missing = last + 1 - start - len(kept)
        taken = pool.take(missing) if missing else ()
        table = self if kept is self.pages and not taken else Table(start, kept + taken)
        return Advance(table, first, table.slots(group, begin, end), taken, [(page, taken[0]) for page in copied])

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
    """A step of a table: the table after a plan, the oldest position that the plan reads, the slots that it writes, the
    pages taken for it, ascending, and the page (source, target) to copy, if any."""

    table: Table
    first: int
    slots: list[int]
    taken: tuple[int, ...]
    copies: list[tuple[int, int]]


def span(group: LayerGroup, length: int) -> tuple[int, int]:
    """The first page, and the number of pages, that queries from position `length` on see."""
    if group.ring:
        return 0, min(1, length)
    oldest = first_visible(length, group.window)
    first = oldest // group.page_size
    return first, -(-length // group.page_size) - first if oldest < length else 0
