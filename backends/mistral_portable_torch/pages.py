"""Which pages of a pool hold which lane: integers only.

A lane of a window is a ring of pages, and position p lies in its slot `p % (pages * page)`. The ring is as long as the
cache manager's, up to whole pages, so a slot is free again when the manager says so. Position 0 begins a page, so the
keys of a text, page by page from the one with its oldest visible key on, are in order of time: kernels that mask by
index read a ring through a table of its pages, and nothing is moved.

Example: pages of 4 slots, window 5 and chunks of 3, so 7 slots, 2 pages. After position 9 the ring holds 8 9 2 3 | 4 5
6 7. Query 9 sees 5 .. 9: the table is 1 0, its keys are 4 5 6 7 8 9, and the kernel's window hides the 4.
"""

from heapq import heapify, heappop, heappush

__all__ = ["Pages"]


class Pages:
    """The pages of one layer group. `count`: pages of the pool; it grows when no page is free."""

    def __init__(self, slots: int, page: int) -> None:
        """slots: of a full lane, as the cache manager counts. page: slots of a page."""
        self.page = page
        self.most = -(-slots // page)
        self.count = 0
        self._free: list[int] = []
        self._lanes: dict[int, list[int]] = {}

    @property
    def ring(self) -> int:
        """Slots after which a lane's positions start over."""
        return self.most * self.page

    def of(self, lane: int) -> list[int]:
        """The lane's pages, in order of slots."""
        return self._lanes.get(lane, [])

    def needed(self, length: int) -> int:
        """Pages of a lane of `length` tokens."""
        return min(-(-length // self.page), self.most)

    def missing(self, lane: int, length: int) -> int:
        """Pages that the lane lacks for `length` tokens."""
        return max(0, self.needed(length) - len(self.of(lane)))

    def shortage(self, count: int) -> int:
        """By how many pages the pool must grow for `count` more: by at least a quarter beyond 16, so that it grows
        rarely."""
        lacking = count - len(self._free)
        if lacking <= 0:
            return 0
        step = 1 << max(0, (self.count + lacking).bit_length() - 3)
        return -(-(self.count + lacking) // step) * step - self.count

    def add(self, count: int) -> None:
        """The pool has grown by `count` pages."""
        self._free += range(self.count, self.count + count)
        heapify(self._free)
        self.count += count

    def take(self, lane: int, count: int) -> list[int]:
        """Give the lane `count` free pages, the lowest ones; the new ones."""
        taken = [heappop(self._free) for _ in range(count)]
        self._lanes.setdefault(lane, []).extend(taken)
        return taken

    def drop(self, lane: int) -> None:
        """Take a lane's pages back."""
        for page in self._lanes.pop(lane, []):
            heappush(self._free, page)
