"""CacheManager: hands out lanes, positions, slots and what each sequence reads. Integers only."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mistral_portable.cache.plan import Reads, StepPlan
from mistral_portable.cache.spec import CacheSpec, LayerGroup
from mistral_portable.cache.window import first_visible
from mistral_portable.errors import BusyError, CacheError
from mistral_portable.forks import make_locks

__all__ = ["CacheManager", "Chunk"]

_BLOCK = 256  # lanes grow by this many slots, doubling, so that a short chat does not allocate a whole context


@dataclass(frozen=True)
class Chunk:
    """The next tokens of the sequence in `lane`, and which of them (indices into `tokens`) want their logits."""

    lane: int
    tokens: Sequence[int]
    rows: Sequence[int] = ()


@dataclass
class _Lane:
    length: int = 0  # positions 0 .. length - 1 are valid
    high: int = 0  # the largest length so far: position p was overwritten if p < high - slots


class CacheManager:
    """Bookkeeping of `spec.max_lanes` lanes. `plan` moves the sequences forward; `rollback` moves one back.

    Example: `lane = manager.open(); manager.plan([Chunk(lane, [5, 6, 7], rows=[2])])`, then
    `manager.length(lane)` is 3; `manager.rollback(lane, 2)` forgets the last token.
    """

    def __init__(self, spec: CacheSpec, *, model: str = "", block: int = _BLOCK) -> None:
        """model: the fingerprint of the weights (`weights.fingerprint`), which saved lanes carry. block: the first
        capacity that plans ask for; it doubles as sequences grow.

        Safe from any thread, with and without the GIL, also for a garbage collector that closes lanes in the middle of
        another call. The order of plans and the steps that they are for is the caller's to keep.
        """
        self.spec = spec
        self._model = model
        self._block = block
        self._lanes: dict[int, _Lane] = {}
        make_locks(self, CacheManager._make_locks)

    def _make_locks(self) -> None:
        self._lock = threading.RLock()  # reentrant: the collector may run in the thread that holds it

    def open(self) -> int:
        """Take a free lane, the lowest one, with length 0. Raises BusyError if all are taken."""
        with self._lock:
            lane = next((lane for lane in range(self.spec.max_lanes) if lane not in self._lanes), None)
            if lane is None:
                raise BusyError(f"all {self.spec.max_lanes} lanes are taken: close a sequence or raise max_lanes")
            self._lanes[lane] = _Lane()
            return lane

    def close(self, lane: int) -> None:
        """Give the lane back; its content is void."""
        with self._lock:
            self._lane(lane)
            del self._lanes[lane]

    @property
    def lanes(self) -> tuple[int, ...]:
        """The lanes in use, ascending."""
        with self._lock:
            return tuple(sorted(self._lanes))

    def length(self, lane: int) -> int:
        """Tokens of the sequence in `lane`; the next one gets this position."""
        return self._lane(lane).length

    def plan(self, chunks: Sequence[Chunk]) -> StepPlan:
        """Lay the chunks end to end and move their sequences forward.

        Raises CacheError, and changes nothing, if there is no chunk, a chunk is empty or longer than max_chunk, a
        lane is not open or named twice, a row is not in its chunk, or a sequence would outgrow max_context.
        """
        with self._lock:
            return self._plan(chunks)

    def _plan(self, chunks: Sequence[Chunk]) -> StepPlan:
        if not chunks or len({chunk.lane for chunk in chunks}) != len(chunks):
            raise CacheError("a step takes at least one chunk, and one chunk per lane")
        # Lists, as NumPy's own functions would take longer than many a step of one token.
        tokens, positions, rows = list[int](), list[int](), list[int]()
        starts, begins, ends = [0], list[int](), list[int]()
        for chunk in chunks:
            begin = self._lane(chunk.lane).length
            end = begin + len(chunk.tokens)
            self._check(chunk, begin, end)
            rows.extend(len(tokens) + row for row in sorted(set(chunk.rows)))
            tokens.extend(chunk.tokens)
            positions.extend(range(begin, end))
            starts.append(len(tokens))
            begins.append(begin)
            ends.append(end)
        absolute, longest = np.array(positions, np.int32), max(ends)
        plan = StepPlan(
            tokens=np.array(tokens, np.int32),
            positions=absolute,
            lanes=np.array([chunk.lane for chunk in chunks], np.int32),
            query_starts=np.array(starts, np.int32),
            logit_rows=np.array(rows, np.int32),
            groups=tuple(
                Reads(
                    slot_mapping=absolute % np.int32(group.slots),
                    first=np.array([first_visible(begin, group.window) for begin in begins], np.int32),
                    capacity=_capacity(group, longest, self._block),
                )
                for group in self.spec.groups
            ),
        )
        for chunk, end in zip(chunks, ends, strict=True):
            lane = self._lanes[chunk.lane]
            lane.length, lane.high = end, max(lane.high, end)
        return plan

    def rollback(self, lane: int, length: int) -> None:
        """Forget the tokens from position `length` on.

        Legal while no key that the next query sees has been overwritten: a windowed lane keeps max_chunk tokens of
        slack beyond its window, counted from the greatest length that it has had. Raises CacheError otherwise, and
        changes nothing.

        Example: window 3, max_chunk 2, 4 slots, length 10 (positions 6..9 are held). Back to 8: the next query, 8,
        sees 6, 7, 8: legal. Back to 7: it would see 5, which 9 has overwritten: CacheError.
        """
        with self._lock:
            self.check_rollback(lane, length)
            state = self._lane(lane)
            state.length = length
            if length == 0:  # nothing is held any more, so nothing that was overwritten matters
                state.high = 0

    def undo(self, plan: StepPlan) -> None:
        """Undo a plan whose step has failed: its sequences get back the length that they had before it.

        Lanes that were closed since then stay closed. Never raises: a plan's chunk is within the slack of a rollback.
        """
        with self._lock:
            begins = plan.positions[plan.query_starts[:-1]].tolist()
            for lane, begin in zip(plan.lanes.tolist(), begins, strict=True):
                if lane in self._lanes and self._lanes[lane].length >= begin:
                    self.rollback(lane, begin)

    def check_rollback(self, lane: int, length: int) -> None:
        """Raise CacheError if `rollback` would."""
        state = self._lane(lane)
        if not 0 <= length <= state.length:
            raise CacheError(f"lane {lane}: cannot roll back from {state.length} to {length} tokens")
        self._require_held(f"lane {lane}: rolling back from {state.length}", length, state.high)

    def fork(self, lane: int) -> int:
        """A new lane with the same integers. The caller copies the arrays: `program.copy_lane(lane, new)`.

        Roll the new lane back to share a prefix only. Raises BusyError if no lane is free.
        """
        with self._lock:
            source = self._lane(lane)
            new = self.open()
            self._lanes[new] = _Lane(source.length, source.high)
            return new

    def save(self, lane: int) -> dict[str, int | str]:
        """The lane's integers and the model's fingerprint, for JSON; the arrays are `program.save_lane(lane)`."""
        state = self._lane(lane)
        rings = {f"slots.{index}": group.slots for index, group in enumerate(self.spec.groups)}
        return {"model": self._model, "length": state.length, "high": state.high, **rings}

    def load(self, saved: Mapping[str, int | str]) -> int:
        """Open a lane with the values of `save`. Raises CacheError if they are another model's or do not fit this spec,
        BusyError if no lane is free.

        A lane that was saved with other slots (another max_chunk or max_context) fits while no ring has wrapped.
        """
        if saved.get("model", "") != self._model:
            raise CacheError("the saved lane is of other weights: load the model that it was saved with")
        names = ["length", "high", *(f"slots.{index}" for index in range(len(self.spec.groups)))]
        values = [value if isinstance(value := saved.get(name), int) else -1 for name in names]
        length, high, *rings = values
        if not 0 <= length <= high <= self.spec.max_context:
            raise CacheError(f"saved lane {dict(saved)} does not fit max_context={self.spec.max_context}")
        for slots, group in zip(rings, self.spec.groups, strict=True):
            if slots != group.slots and high > min(slots, group.slots):
                raise CacheError(
                    f"saved lane has rings of {slots} slots, these have {group.slots}: set max_chunk alike"
                )
        self._require_held("saved lane: going on", length, high)
        with self._lock:
            lane = self.open()
            self._lanes[lane] = _Lane(length, high)
            return lane

    def _check(self, chunk: Chunk, begin: int, end: int) -> None:
        lane, count = chunk.lane, end - begin
        if not 1 <= count <= self.spec.max_chunk:
            raise CacheError(f"lane {lane}: a chunk of {count} tokens, 1 to max_chunk={self.spec.max_chunk} fit")
        if end > self.spec.max_context:
            raise CacheError(f"lane {lane}: {begin} + {count} tokens exceed max_context={self.spec.max_context}")
        if len(chunk.rows) and not 0 <= min(chunk.rows) <= max(chunk.rows) < count:
            raise CacheError(f"lane {lane}: rows {list(chunk.rows)} are not all within {count} tokens")

    def _require_held(self, action: str, length: int, high: int) -> None:
        """Raise CacheError if a key that the query at position `length` sees was overwritten."""
        for group in self.spec.groups:
            oldest, kept = first_visible(length, group.window), high - group.slots
            if oldest < length and oldest < kept:
                raise CacheError(
                    f"{action} to {length} tokens needs position {oldest}, "
                    f"but the window's ring keeps only positions from {kept}: start the sequence again"
                )

    def _lane(self, lane: int) -> _Lane:
        if lane not in self._lanes:
            raise CacheError(f"lane {lane} is not open: open ones are {list(self.lanes)}")
        return self._lanes[lane]


def _capacity(group: LayerGroup, length: int, block: int) -> int:
    """Slots to hold `length` tokens, in doublings of a block, at most the group's slots: 300 -> 512."""
    capacity = block
    while capacity < length:
        capacity *= 2
    return min(capacity, group.slots)
