"""PagePool: the numbers of a layer group's pages, and how many lanes and prefixes refer to each."""

from collections.abc import Iterable

__all__ = ["PagePool"]


class PagePool:
    """Reference counts of pages 0, 1, 2, ... Not safe for concurrent calls.

    Example: `take(3)` gives (0, 1, 2); after `release([1])`, `take(2)` gives (1, 3).
    """

    def __init__(self, page_size: int, *, ring: bool) -> None:
        """page_size: slots of a page. ring: memory is taken as a page fills (`fill`), else all at once."""
        self._references: list[int] = []
        self._slots: list[int] = []  # that have memory, of each page
        self._taken_below = 0  # no page below is free
        self._at_first = 0 if ring else page_size
        self.in_use = 0
        """Pages that something refers to."""
        self.slots_in_use = 0
        """Slots of these pages that have memory."""

    @property
    def count(self) -> int:
        """The highest number in use, plus one."""
        return len(self._references)

    def shared(self, page: int) -> bool:
        """Whether more than one lane or prefix refers to the page."""
        return self._references[page] > 1

    def slots(self, page: int) -> int:
        """Slots of the page that have memory."""
        return self._slots[page]

    def fill(self, page: int, slots: int) -> None:
        """Note that a page in use has memory for at least so many slots."""
        more = slots - self._slots[page]
        if more > 0:
            self._slots[page] = slots
            self.slots_in_use += more

    def take(self, count: int) -> tuple[int, ...]:
        """Take the lowest free pages, ascending, each with one reference."""
        taken: list[int] = []
        while len(taken) < count:
            try:
                page = self._references.index(0, self._taken_below)
                self._references[page] = 1
                self._slots[page] = self._at_first
            except ValueError:  # no number is free
                page = len(self._references)
                self._references.append(1)
                self._slots.append(self._at_first)
            taken.append(page)
            self._taken_below = page + 1
        self.in_use += count
        self.slots_in_use += count * self._at_first
        return tuple(taken)

    def share(self, pages: Iterable[int]) -> None:
        """Add a reference to each of the pages, which are in use."""
        for page in pages:
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Take a reference from each of the pages; those without any are free."""
        for page in pages:
            self._references[page] -= 1
            if not self._references[page]:
                self.in_use -= 1
                self.slots_in_use -= self._slots[page]
                self._taken_below = min(self._taken_below, page)
        while self._references and not self._references[-1]:
            self._references.pop()
            self._slots.pop()
