"""CacheManager against plain lists: every key that a query may see is in its slot, whatever is done to the lanes."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import count, pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mistral_portable.cache import CacheManager, CacheSpec, Chunk, StepPlan, visible
from mistral_portable.config import MistralConfig, Window
from mistral_portable.errors import BusyError, CacheError

WINDOWS: list[Window] = [*range(1, 9), None]


@dataclass
class Lane:
    """The text so far, and per layer group what each slot holds: slot -> (position, token)."""

    text: list[int]
    rings: list[dict[int, tuple[int, int]]]
    peak: int = 0  # the longest that the text has been since it was last empty

    def holds(self, group: int, slots: int, position: int) -> bool:
        return self.rings[group].get(position % slots) == (position, self.text[position])


@st.composite
def specs(draw: st.DrawFn) -> CacheSpec:
    windows = draw(st.lists(st.sampled_from(WINDOWS), min_size=1, max_size=3))
    widest = max(window or 1 for window in windows)
    return CacheSpec.from_config(
        MistralConfig(num_hidden_layers=len(windows), sliding_window=tuple(windows)),
        max_context=draw(st.sampled_from([widest, 2 * widest + 1, 60, 100])),
        max_chunk=draw(st.integers(1, 9)),
        max_lanes=draw(st.sampled_from([1, 2, 3, 4])),
    )


class CacheMachine(RuleBasedStateMachine):
    """There is always an open lane; every rule picks one or more of them."""

    @initialize(spec=specs())
    def start(self, spec: CacheSpec) -> None:
        self.spec = spec
        self.manager = CacheManager(spec)
        self.lanes: dict[int, Lane] = {}
        self.tokens = count()  # every token is new, so that a stale slot cannot pass for a fresh one
        self.open()

    @invariant()
    def lengths_agree(self) -> None:
        assert self.manager.lanes == tuple(sorted(self.lanes))
        assert all(self.manager.length(lane) == len(model.text) for lane, model in self.lanes.items())

    @precondition(lambda self: len(self.lanes) < self.spec.max_lanes)
    @rule()
    def open(self) -> None:
        self.add(Lane([], [{} for _ in self.spec.groups]), lambda: self.manager.open())

    @rule(data=st.data(), back=st.integers(0, 9))
    def fork(self, data: st.DataObject, back: int) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        self.add(deepcopy(self.lanes[lane]), lambda: self.manager.fork(lane), back)

    @precondition(lambda self: len(self.lanes) > 1)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        self.manager.close(lane)
        del self.lanes[lane]

    @rule(data=st.data(), back=st.integers(0, 9))
    def save_close_load(self, data: st.DataObject, back: int) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        saved = json.dumps(self.manager.save(lane))
        self.manager.close(lane)
        self.add(self.lanes.pop(lane), lambda: self.manager.load(json.loads(saved)), back)

    def add(self, model: Lane, take: Callable[[], int], back: int = 0) -> None:
        """Take a lane for `model`, the lowest free one, and try its slack; BusyError if no lane is free."""
        free = [lane for lane in range(self.spec.max_lanes) if lane not in self.lanes]
        if free:
            lane = take()
            assert lane == free[0]
            self.lanes[lane] = model
            self.take_back(lane, back)
        else:
            with pytest.raises(BusyError, match="lanes are taken"):
                take()

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        order = data.draw(st.permutations(sorted(self.lanes)))
        chunks = []
        for lane in order[: data.draw(st.integers(1, len(order)))]:
            size = data.draw(st.integers(1, self.spec.max_chunk))
            rows = data.draw(st.lists(st.integers(0, size - 1), max_size=2))
            chunks.append(Chunk(lane, [next(self.tokens) for _ in range(size)], rows))
        self.plan(chunks)

    @rule(data=st.data(), chunks=st.integers(2, 9))
    def wrap(self, data: st.DataObject, chunks: int) -> None:
        """Full chunks, one after the other: the rings are soon overwritten."""
        lane, size = data.draw(st.sampled_from(sorted(self.lanes))), self.spec.max_chunk
        for _ in range(min(chunks, (self.spec.max_context - len(self.lanes[lane].text)) // size)):
            self.plan([Chunk(lane, [next(self.tokens) for _ in range(size)])])

    @rule(data=st.data(), moves=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=2, max_size=5))
    def speculate(self, data: st.DataObject, moves: list[tuple[int, int]]) -> None:
        """Chunks of which a part is taken back: what follows may overwrite less than what came before."""
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        for size, back in moves:
            self.plan([Chunk(lane, [next(self.tokens) for _ in range(min(size, self.spec.max_chunk))])])
            self.take_back(lane, back)

    def plan(self, chunks: list[Chunk]) -> None:
        if any(len(self.lanes[chunk.lane].text) + len(chunk.tokens) > self.spec.max_context for chunk in chunks):
            with pytest.raises(CacheError, match="max_context"):
                self.manager.plan(chunks)
            return
        plan = self.manager.plan(chunks)
        begins = [len(self.lanes[chunk.lane].text) for chunk in chunks]
        self.check_layout(plan, chunks, begins)
        self.write(plan, chunks)
        for group in range(len(self.spec.groups)):
            self.check_reads(plan, group, begins)

    def check_layout(self, plan: StepPlan, chunks: list[Chunk], begins: list[int]) -> None:
        """Tokens, positions, lanes, starts and rows are the chunks, laid end to end."""
        starts = plan.query_starts.tolist()
        spans = list(pairwise(starts))
        assert plan.lanes.tolist() == [chunk.lane for chunk in chunks]
        assert starts[0] == 0
        for (start, stop), chunk, begin in zip(spans, chunks, begins, strict=True):
            assert plan.tokens[start:stop].tolist() == chunk.tokens
            assert plan.positions[start:stop].tolist() == list(range(begin, begin + len(chunk.tokens)))
            assert [row - start for row in plan.logit_rows if start <= row < stop] == sorted(set(chunk.rows))

    def write(self, plan: StepPlan, chunks: list[Chunk]) -> None:
        """Do what an executor does: all tokens of the step go to their slots before anything is read."""
        for s, chunk in enumerate(chunks):
            model = self.lanes[chunk.lane]
            for t in range(plan.query_starts[s], plan.query_starts[s + 1]):
                for ring, reads in zip(model.rings, plan.groups, strict=True):
                    ring[int(reads.slot_mapping[t])] = (int(plan.positions[t]), int(plan.tokens[t]))
            model.text += chunk.tokens
            model.peak = max(model.peak, len(model.text))

    def check_reads(self, plan: StepPlan, index: int, begins: list[int]) -> None:
        """Keys that a query sees are held, `first` is the oldest of them, and the capacity is enough and bounded."""
        group, reads = self.spec.groups[index], plan.groups[index]
        ends = [len(self.lanes[lane].text) for lane in plan.lanes.tolist()]
        assert reads.slot_mapping.max() < reads.capacity <= group.slots
        assert reads.capacity >= min(group.slots, max(ends))
        for lane, begin, end, first in zip(plan.lanes.tolist(), begins, ends, reads.first.tolist(), strict=True):
            seen = [p for p in range(end) if any(visible(query, p, group.window) for query in range(begin, end))]
            assert seen == list(range(first, end))
            assert all(self.lanes[lane].holds(index, group.slots, position) for position in seen)
            slots = [position % group.slots for position in seen]
            assert len(set(slots)) == len(slots)
            assert sum(after != before + 1 for before, after in pairwise(slots)) <= 1

    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        self.take_back(lane, data.draw(st.integers(0, 2 * self.spec.max_chunk)))

    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        self.take_back(lane, self.manager.length(lane))

    def take_back(self, lane: int, tokens: int) -> None:
        """Legal if and only if every key that the next query sees is still in its slot."""
        model = self.lanes[lane]
        length = max(0, len(model.text) - tokens)
        legal = all(
            model.holds(index, group.slots, position)
            for index, group in enumerate(self.spec.groups)
            for position in range(length)
            if visible(length, position, group.window)
        )
        assert legal or length < model.peak - self.spec.max_chunk  # the documented slack
        if legal:
            self.manager.rollback(lane, length)
            del model.text[length:]
            model.peak = model.peak if length else 0
        else:
            with pytest.raises(CacheError, match="needs position"):
                self.manager.rollback(lane, length)


TestCacheMachine = CacheMachine.TestCase
