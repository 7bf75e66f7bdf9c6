"""CacheManager: hands out lanes, pages, positions, slots and what each sequence reads. Integers only."""

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache.budget import CacheBudget
from mistral_portable.cache.lane import Before, Lane
from mistral_portable.cache.lane_prefixes import LanePrefixes
from mistral_portable.cache.plan import StepPlan
from mistral_portable.cache.plan_maker import PlanMaker
from mistral_portable.cache.pool import PagePool
from mistral_portable.cache.prefixes import PagePrefixes, Prefixes
from mistral_portable.cache.room import Room
from mistral_portable.cache.saved import SavedIntegers, to_integers, to_lane
from mistral_portable.cache.spec import CacheSpec
from mistral_portable.cache.table import Advance, Table
from mistral_portable.cache.window import first_visible
from mistral_portable.errors import BusyError, CacheError, CapacityError
from mistral_portable.forks import make_locks

__all__ = ["CacheManager", "Chunk", "Pages"]

Pages = tuple[tuple[int, ...], ...]
"""A lane's pages in each layer group, in order of position."""


class Chunk(NamedTuple):
    """The next tokens of the sequence in `lane`, and which of them (indices into `tokens`) want their logits.

    embeds: float32 [n, hidden_size] in place of the embeddings of the first n tokens, whose ids then mean nothing; for
    `engine.Core`, as the manager does not look at them. source: the row of the step that this one is submitted after
    whose token is the last one here, so that its id means nothing; None: that one's id counts, too. adapters: the
    weight of each adapter of the model for these tokens, for `engine.Core`, too; (): none has one.
    """

    lane: int
    tokens: Sequence[int]
    rows: Sequence[int] = ()
    embeds: NDArray[np.float32] | None = None
    source: int | None = None
    adapters: Sequence[float] = ()


P = ParamSpec("P")
T = TypeVar("T")


def _alone(call: Callable[Concatenate["CacheManager", P], T]) -> Callable[Concatenate["CacheManager", P], T]:
    """Hold the lock for a call. At the end of the outermost one what was kept and closed amid it is seen to."""

    @wraps(call)
    def alone(self: "CacheManager", /, *arguments: P.args, **options: P.kwargs) -> T:
        with self._lock:
            outermost, self._changing = not self._changing, True
            try:
                return call(self, *arguments, **options)
            finally:
                if outermost:
                    try:
                        self._settle()
                    finally:
                        self._changing = False

    return alone


class _Keep(NamedTuple):
    """A call of `keep` that is still to be done. The tables' pages are not released before."""

    tables: tuple[Table, ...]
    high: int
    tokens: Sequence[int]
    salt: Hashable
    whole: bool


class CacheManager:
    """Bookkeeping of `spec.max_lanes` lanes and of the pages that they refer to.

    `plan` moves sequences forward, `rollback` moves one back, `fork` lets two lanes share pages until one of them
    writes. A page that is full is never written again, except after a rollback into it; a page to which something else
    refers is never written at all: the plan asks for a copy.

    With a budget, `keep` makes a text known, and `resume` opens a lane with the longest known beginning of another one,
    whose tokens need not be computed again. What is kept gives way where its room is needed.

    Example: `lane = manager.open(); manager.plan([Chunk(lane, [5, 6, 7], rows=[2])])`, then
    `manager.length(lane)` is 3; `manager.rollback(lane, 2)` forgets the last token.
    """

    def __init__(self, spec: CacheSpec, *, model: str = "", budget: CacheBudget | None = None) -> None:
        """model: the fingerprint of the weights (`weights.fingerprint`), which saved lanes carry. budget: None: lanes
        take what they need, and nothing is kept.

        Safe from any thread, with and without the GIL, also for a garbage collector that closes lanes in the middle of
        another call: a closed lane's pages are free when that call, or the next one, ends. The order of plans and the
        steps that they are for is the caller's to keep, by `turn`.
        """
        self.spec = spec
        self.model = model
        self._lanes: dict[int, Lane] = {}
        self._pools = tuple(PagePool(group.page_size, ring=group.ring) for group in spec.groups)
        self._ring = spec.groups[0].ring
        self._maker = PlanMaker(len(spec.groups))
        self._prefixes: Prefixes | None = None
        self._room: Room | None = None
        if budget is not None:
            self._prefixes = (LanePrefixes if self._ring else PagePrefixes)(spec.groups, self._pools)
            self._room = Room(budget, spec, self._pools, self._prefixes)
        # Texts that are still to be kept and lanes whose pages are still to be released, in the order of the calls.
        self._later: deque[_Keep | Lane] = deque()
        make_locks(self, CacheManager._make_locks, held=lambda manager: manager._lock)

    def _make_locks(self) -> None:
        self.turn = threading.Lock()
        """Held from a plan to the end of its step, whichever of the model's programs runs it."""
        self._lock = threading.RLock()  # reentrant: the collector may run in the thread that holds it
        self._changing = False

    @_alone
    def open(self) -> int:
        """Take a free lane, the lowest one, with length 0. Raises BusyError if all are taken."""
        lane = self._free_lane()
        self._lanes[lane] = Lane((Table(),) * len(self.spec.groups))
        return lane

    @_alone
    def resume(
        self, tokens: Sequence[int], *, salt: Hashable = "", length: int = 0, owner: object = None
    ) -> tuple[int, int]:
        """Open a lane that holds the longest known beginning of these tokens; return it and their number.

        salt: only what was kept with the same is found. length: what the sequence is sure to reach; if the budget is
        strict, room for it must be there. owner: whose lane it is, for `lanes_of`.

        Raises BusyError if all lanes are taken, CapacityError if there is no room beside the other lanes.

        Example: after `keep(lane, [1, 2, 3, 4])`, `resume([1, 2, 3, 5, 6])` opens a lane that holds 3 tokens.
        """
        number = self._free_lane()
        if self._prefixes is not None and (found := self._prefixes.find(salt, tokens)) is not None:
            with suppress(CapacityError):  # to share a page that must then be copied may take too much
                lane = Lane(found.tables, found.length, found.high, promised=length, owner=owner)
                return self._begin(number, lane, salt, tokens)
        nothing = (Table(),) * len(self.spec.groups)
        return self._begin(number, Lane(nothing, promised=length, owner=owner), salt, tokens)

    def _begin(self, number: int, lane: Lane, salt: Hashable, tokens: Sequence[int]) -> tuple[int, int]:
        """Open a lane. Raises CapacityError if it exceeds a strict budget; what was found for it is kept on then."""
        self._lanes[number] = lane
        try:
            if self._room is not None:
                self._room.require_promised(self._lanes.values())
        except BaseException:
            del self._lanes[number]
            if self._prefixes is not None:
                self._prefixes.keep(salt, tokens[: lane.length], lane.high, lane.tables, whole=True)
            self._release(lane)
            raise
        return number, lane.length

    @_alone
    def keep(self, lane: int, tokens: Sequence[int], *, salt: Hashable = "", whole: bool = True) -> None:
        """Make known that the lane's first tokens are these, at most as many as it holds. Their pages stay when it is
        closed, until the room is needed. Without a budget it does nothing.

        whole: also a page that is not full yet, and also where a page is a whole lane. It counts as shared from then
        on: it is copied when the lane goes on.
        """
        state = self._lane(lane)
        # At the end of the call: a garbage collector may have called amid another one.
        self._later.append(_Keep(state.tables, state.high, tokens[: state.length], salt, whole))

    @property
    def keeps(self) -> bool:
        """Whether `keep` does anything: whether there is a budget."""
        return self._room is not None

    @_alone
    def forget(self) -> bool:
        """Let go of all that is kept, also of pages that lanes use, which then need not copy them to go on.

        Returns False if nothing was kept.
        """
        return self._prefixes is not None and self._prefixes.clear()

    @property
    @_alone
    def bytes_in_use(self) -> int:
        """Bytes of the slots that lanes use or that are kept; 0 without a budget."""
        self._settle()  # a lane that the collector closed at the end of the last call
        return 0 if self._room is None else self._room.bytes

    @_alone
    def close(self, lane: int) -> None:
        """Give the lane back; its content is void."""
        self._lane(lane)
        self._later.append(self._lanes.pop(lane))

    @property
    def lanes(self) -> tuple[int, ...]:
        """The lanes in use, ascending."""
        with self._lock:
            return tuple(sorted(self._lanes))

    def lanes_of(self, owner: object) -> list[int]:
        """The lanes that `resume` and `fork` have opened for this owner."""
        with self._lock:
            return [number for number, lane in self._lanes.items() if lane.owner is owner]

    def length(self, lane: int) -> int:
        """Tokens of the sequence in `lane`; the next one gets this position."""
        return self._lane(lane).length

    def pages(self, lane: int) -> Pages:
        """All pages in the lane's tables: each that a rollback may need, but not those that only `undo` brings back."""
        return tuple(table.pages for table in self._lane(lane).tables)

    @_alone
    def pages_in_use(self, group: int) -> int:
        """Pages of a layer group that are not free; one that several lanes share counts once."""
        self._settle()  # a lane that the collector closed at the end of the last call
        return self._pools[group].in_use

    @_alone
    def plan(self, chunks: Sequence[Chunk]) -> StepPlan:
        """Lay the chunks end to end and move their sequences forward.

        If the step fails, `undo` must take the plan back before anything else moves its lanes. Pages that leave a
        lane are free from the lane's next plan on.

        Raises CacheError, and changes nothing, if there is no chunk, a chunk is empty or longer than max_chunk, a
        lane is not open or named twice, a row is not in its chunk, or a sequence would outgrow max_context.
        """
        numbers = [chunk.lane for chunk in chunks]
        if not chunks or len(set(numbers)) != len(chunks):
            raise CacheError("a step takes at least one chunk, and one chunk per lane")
        # Lists, as NumPy's own functions would take longer than many a step of one token.
        # And `[]`, as `list[int]()` takes ten times as long.
        tokens: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        starts: list[int] = [0]
        sources: list[int] = []
        moves: list[tuple[Lane, int, int]] = []
        for chunk in chunks:
            lane, start = self._lane(chunk.lane), starts[-1]
            begin = lane.length
            end = begin + len(chunk.tokens)
            self._check(chunk, begin, end)
            if len(chunk.rows):
                rows += [start + row for row in sorted(set(chunk.rows))]
            tokens += chunk.tokens
            if chunk.source is not None:
                sources += [-1] * (len(tokens) - len(sources))
                sources[-1] = chunk.source
            positions += range(begin, end)
            starts.append(start + end - begin)
            moves.append((lane, begin, end))
        if sources:
            sources += [-1] * (len(tokens) - len(sources))
        ids = np.array(tokens, np.int32)  # before any page is taken: it may raise
        for lane, _, _ in moves:
            self._forget(lane)
        advances: list[list[Advance]] = [[] for _ in self._pools]
        try:
            for index, group in enumerate(self.spec.groups):
                pool, some = self._pools[index], advances[index]
                for lane, begin, end in moves:
                    some.append(lane.tables[index].advance(group, pool, begin, end))
            self._make_room(moves, advances)
            plan = self._maker.make(ids, positions, (numbers, starts, rows, sources), advances, self._pools)
        except BaseException:
            for pool, some in zip(self._pools, advances, strict=True):
                for advance in some:
                    pool.release(advance.taken)
            raise
        for at, (lane, _, end) in enumerate(moves):
            lane.before = Before(plan, lane.length, lane.high, lane.tables)
            lane.tables = tuple([some[at].table for some in advances])
            lane.length, lane.high = end, max(lane.high, end)
            if end >= lane.promised:  # a windowed lane lets go of pages from here on
                lane.promised = 0
        return plan

    def _make_room(self, moves: Sequence[tuple[Lane, int, int]], advances: Sequence[Sequence[Advance]]) -> None:
        """Let what is kept give way to what a plan takes. Raises CapacityError if it exceeds a strict budget."""
        if self._room is None:
            return
        if self._ring:
            for group, pool, some in zip(self.spec.groups, self._pools, advances, strict=True):
                for (_, _, end), advance in zip(moves, some, strict=True):
                    pool.fill(advance.table.pages[0], min(end, group.page_size))
        elif not any(advance.taken for some in advances for advance in some):
            return
        self._room.require()

    @_alone
    def undo(self, plan: StepPlan) -> None:
        """Undo a plan whose step has failed: its sequences get back the length and the pages that they had before it.

        Never raises. Lanes that were closed since then stay closed; those that have moved on, or back beyond where the
        plan began, stay as they are.
        """
        for number in plan.lanes.tolist():
            lane = self._lanes.get(number)
            if lane is None or lane.before is None or lane.before.plan is not plan:
                continue
            self._restore(lane, lane.before)

    @_alone
    def rollback(self, lane: int, length: int) -> None:
        """Forget the tokens from position `length` on. Back to where the last plan began, that one is undone.

        Legal while the lane still has every page whose positions the next query sees: it lets go of a page when the
        first query of a plan no longer sees any of its positions, so one may always go back to where the last plan
        began. A ring keeps `max_chunk` tokens of slack beyond its window, counted from the greatest length that the
        lane has had. Raises CacheError otherwise, and changes nothing.

        Example: window 3, pages of 2 slots, a plan of positions 8 and 9: query 8 saw 6, 7, 8, so the pages of 6..9 are
        held. Back to 8: legal. Back to 7: the next query, 7, would see 5, whose page is gone: CacheError.
        A ring with window 3 and max_chunk 2 has 4 slots, 6..9: back to 8 is legal, to 7 is not.
        """
        self.check_rollback(lane, length)
        state = self._lane(lane)
        if state.before is not None and length == state.before.length:
            self._restore(state, state.before)  # the step may not have run, nor made the copies that it was to make
        elif length == 0 or (state.before is not None and length < state.before.length):
            self._forget(state)  # that plan can no longer be undone
        held = state.tables
        state.tables = self._cut(held, length)
        state.length = length
        if length == 0:  # nothing is held any more, so nothing that was overwritten matters
            state.high = 0
        self._drop(held, state.tables)

    def check_rollback(self, lane: int, length: int) -> None:
        """Raise CacheError if `rollback` would."""
        state = self._lane(lane)
        if not 0 <= length <= state.length:
            raise CacheError(f"lane {lane}: cannot roll back from {state.length} to {length} tokens")
        self._require_held(f"lane {lane}: rolling back from {state.length}", state, length)

    @_alone
    def fork(self, lane: int, length: int | None = None, *, owner: object = None) -> int:
        """A new lane with the first `length` tokens of another (None: all), whose pages they share.

        owner: whose lane it is, for `lanes_of`.

        Raises CacheError where `rollback` to that length would, BusyError if no lane is free.
        """
        source = self._lane(lane)
        length = source.length if length is None else length
        self.check_rollback(lane, length)
        tables = self._cut(source.tables, length)
        new = self._free_lane()
        for pool, table in zip(self._pools, tables, strict=True):
            pool.share(table.pages)
        self._lanes[new] = Lane(tables, length, source.high if length else 0, owner=owner)
        return new

    def save(self, lane: int) -> tuple[SavedIntegers, Pages]:
        """Integers of the lane, for JSON, with the model's fingerprint; and the pages that its next query needs, whose
        arrays `program.read_pages` copies (see `boundary.saved`)."""
        state, groups = self._lane(lane), self.spec.groups
        needed = tuple(table.needed(group, state.length) for table, group in zip(state.tables, groups, strict=True))
        high = state.high if groups[0].ring else state.length  # pages overwrite nothing
        integers = to_integers(self.model, self.spec, state.length, high, needed)
        return integers, tuple(table.pages for table in needed)

    def blank(self, lane: int) -> tuple[tuple[int, ...], ...]:
        """For each layer group the slots, in the last page of `save`, that hold no position of the lane."""
        state = self._lane(lane)
        return tuple(
            table.needed(group, state.length).blank(group, state.length, state.high)
            for table, group in zip(state.tables, self.spec.groups, strict=True)
        )

    @_alone
    def load(self, saved: SavedIntegers) -> tuple[int, Pages]:
        """Open a lane with the integers of `save`; its pages are new, and their content is the caller's to write.

        Raises CacheError if they are another model's or do not fit this spec, BusyError if no lane is free,
        CapacityError if a strict budget has no room for them.
        """
        length, high, spans = to_lane(self.model, self.spec, saved)
        tables = tuple(Table(begin) for begin, _ in spans)
        self._require_held("saved lane: going on", Lane(tables, length, high), length)
        lane = self._free_lane()
        pages = tuple(pool.take(count) for pool, (_, count) in zip(self._pools, spans, strict=True))
        tables = tuple(Table(begin, some) for (begin, _), some in zip(spans, pages, strict=True))
        for group, pool, some in zip(self.spec.groups, self._pools, pages, strict=True):
            if group.ring:
                for page in some:
                    pool.fill(page, min(high, group.page_size))
        self._lanes[lane] = Lane(tables, length, high)
        try:
            if self._room is not None:
                self._room.require()
        except BaseException:
            self._later.append(self._lanes.pop(lane))
            raise
        return lane, pages

    def _settle(self) -> None:
        """Keep and release pages of lanes that were kept and closed amid a call: none changes amid another."""
        if not self._later:
            return
        while self._later:
            some = self._later.popleft()
            if isinstance(some, Lane):
                self._release(some)
            elif self._prefixes is not None:
                self._prefixes.keep(some.salt, some.tokens, some.high, some.tables, whole=some.whole)
        if self._room is not None:
            self._room.let_go()

    def _free_lane(self) -> int:
        number = next((number for number in range(self.spec.max_lanes) if number not in self._lanes), None)
        if number is None:
            raise BusyError(f"all {self.spec.max_lanes} lanes are taken: close a sequence or raise max_lanes")
        return number

    def _cut(self, tables: Sequence[Table], length: int) -> tuple[Table, ...]:
        return tuple(table.cut(group, length) for table, group in zip(tables, self.spec.groups, strict=True))

    def _drop(self, held: Sequence[Table], kept: Sequence[Table]) -> None:
        """Release the pages of `held` that are not in `kept`."""
        for pool, old, new in zip(self._pools, held, kept, strict=True):
            if old is not new:
                pool.release(set(old.pages) - set(new.pages))

    def _restore(self, lane: Lane, before: Before) -> None:
        """Take a lane back to what it was before its last plan."""
        after = lane.tables
        if before.tables[0] is not after[0]:  # what a ring's page held is whole: the plan took another page
            lane.high = before.high
        lane.before, lane.length, lane.tables = None, before.length, before.tables
        self._drop(after, before.tables)

    def _forget(self, lane: Lane) -> None:
        """Release the pages that were kept for `undo` alone."""
        if lane.before is not None:
            before, lane.before = lane.before, None
            self._drop(before.tables, lane.tables)

    def _release(self, lane: Lane) -> None:
        self._forget(lane)
        self._drop(lane.tables, self._cut(lane.tables, 0))

    def _check(self, chunk: Chunk, begin: int, end: int) -> None:
        lane, count = chunk.lane, end - begin
        if not 1 <= count <= self.spec.max_chunk:
            raise CacheError(f"lane {lane}: a chunk of {count} tokens, 1 to max_chunk={self.spec.max_chunk} fit")
        if end > self.spec.max_context:
            raise CacheError(f"lane {lane}: {begin} + {count} tokens exceed max_context={self.spec.max_context}")
        if len(chunk.rows) and not 0 <= min(chunk.rows) <= max(chunk.rows) < count:
            raise CacheError(f"lane {lane}: rows {list(chunk.rows)} are not all within {count} tokens")

    def _require_held(self, action: str, lane: Lane, length: int) -> None:
        """Raise CacheError if a key that the query at position `length` sees is not held any more."""
        for group, table in zip(self.spec.groups, lane.tables, strict=True):
            oldest, kept = first_visible(length, group.window), table.oldest(group, lane.high)
            if oldest < min(length, kept):
                raise CacheError(
                    f"{action} to {length} tokens needs position {oldest}, "
                    f"but the window keeps only positions from {kept}: start the sequence again"
                )

    def _lane(self, lane: int) -> Lane:
        if lane not in self._lanes:
            raise CacheError(f"lane {lane} is not open: open ones are {list(self.lanes)}")
        return self._lanes[lane]
