"""Room: how many bytes the pages in use take, and whether a budget allows more."""

from collections.abc import Iterable, Sequence

from mistral_portable.cache.budget import CacheBudget
from mistral_portable.cache.lane import Lane
from mistral_portable.cache.pool import PagePool
from mistral_portable.cache.prefixes import Prefixes
from mistral_portable.cache.spec import CacheSpec
from mistral_portable.errors import CapacityError

__all__ = ["Room"]


class Room:
    """A budget, and what it is spent on. What is kept gives way to lanes; with a strict budget lanes have a limit, too.

    Example: a strict budget of 8 pages, 3 in use by a lane that is sure to need 5, 4 kept. A lane of 3 pages fits: 5 +
    3, and what is kept gives way to them. One of 4 pages is refused.
    """

    def __init__(self, budget: CacheBudget, spec: CacheSpec, pools: Sequence[PagePool], prefixes: Prefixes) -> None:
        self._budget = budget
        self._spec = spec
        self._pools = pools
        self._prefixes = prefixes

    @property
    def bytes(self) -> int:
        """Bytes of the slots that lanes use or that are kept."""
        return sum(pool.slots_in_use * size for pool, size in zip(self._pools, self._budget.slot_bytes, strict=True))

    def let_go(self) -> None:
        """Keep less, where the budget is exceeded."""
        while self.bytes > self._budget.limit and self._prefixes.give_way():
            pass

    def require(self) -> None:
        """Let what is kept give way to what lanes have taken. Raises CapacityError if a strict budget is exceeded."""
        self.let_go()
        self._require(self.bytes)

    def require_promised(self, lanes: Iterable[Lane]) -> None:
        """Raise CapacityError if a strict budget has no room for what all lanes are sure to need."""
        if not self._budget.strict:
            return
        needed, open_lanes = self.bytes, list(lanes)
        for group, size in enumerate(self._budget.slot_bytes):
            lacking = sum(self._lacking(group, lane) for lane in open_lanes)
            needed += size * (lacking - self._prefixes.spare_slots(group))
        self._require(needed)

    def _require(self, needed: int) -> None:
        limit = self._budget.limit
        if self._budget.strict and needed > limit:
            raise CapacityError(
                f"the cache would take {needed / 2**20:.1f} MiB, and cache_bytes={limit} allows "
                f"{limit / 2**20:.1f} MiB: raise it, shorten the text or use fewer sequences at a time"
            )

    def _lacking(self, group: int, lane: Lane) -> int:
        """Slots that a lane is sure to need and has not, or shares and must copy as it goes on."""
        own, pool, pages = self._spec.groups[group], self._pools[group], lane.tables[group].pages
        size, promised = own.page_size, lane.promised
        needed = min(promised, size) if own.ring else self._spec.lane_pages(group, promised) * size
        held = sum(map(pool.slots, pages))
        if pages and pool.shared(pages[-1]) and (own.ring or lane.length % size):
            held -= pool.slots(pages[-1])
        return max(0, needed - held)
