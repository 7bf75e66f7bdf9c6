"""CacheManager against plain lists: every key that a query may see is where it was last written, whatever is done."""

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import count, pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mistral_portable.cache import CacheBudget, CacheManager, CacheSpec, Chunk, LayerGroup, Reads, StepPlan, visible
from mistral_portable.config import MistralConfig, Window
from mistral_portable.errors import BusyError, CacheError

WIDEST = 8
WINDOWS: list[Window] = [*range(1, WIDEST + 1), None]

Memory = dict[int, tuple[int, int]]
"""The content of a layer group's pool: slot -> (position, token)."""


@dataclass
class Lane:
    """The text so far; per layer group the oldest position whose page is held, and the pages kept for `undo` alone."""

    text: list[int]
    kept: list[int]
    parked: list[set[int]]
    begin: int = 0  # where the last plan began
    copied: bool = False  # whether the last plan copied a page
    peak: int = 0  # the longest that the text has been since it was last empty
    before: tuple[list[int], int] | None = None  # `kept` and `peak` before the last plan, if that can be undone


def oldest(query: int, group: LayerGroup) -> int:
    """The oldest position that a query sees."""
    positions = range(max(0, query - WIDEST) if group.window else 0, query + 1)
    return next(position for position in positions if visible(query, position, group.window))


@st.composite
def specs(draw: st.DrawFn) -> CacheSpec:
    windows = draw(st.lists(st.sampled_from(WINDOWS), min_size=1, max_size=3))
    widest = max(window or 1 for window in windows)
    return CacheSpec.from_config(
        MistralConfig(num_hidden_layers=len(windows), sliding_window=tuple(windows)),
        max_context=draw(st.sampled_from([widest, 2 * widest + 1, 60, 100])),
        page_size=draw(st.sampled_from([1, 2, 3, 4, 5, None])),
        max_chunk=draw(st.integers(1, 9)),
        max_lanes=draw(st.sampled_from([1, 2, 3, 4])),
    )


class CacheMachine(RuleBasedStateMachine):
    """There is always an open lane; every rule picks one or more of them."""

    @initialize(spec=specs())
    def start(self, spec: CacheSpec) -> None:
        self.spec = spec
        self.groups = list(enumerate(spec.groups))
        self.manager = self.managed(spec)
        self.lanes: dict[int, Lane] = {}
        self.memory: list[Memory] = [{} for _ in spec.groups]
        self.tokens = count()  # every token is new, so that a stale slot cannot pass for a fresh one
        self.open()

    def managed(self, spec: CacheSpec) -> CacheManager:
        return CacheManager(spec)

    def teardown(self) -> None:
        if hasattr(self, "lanes"):
            for lane in self.lanes:
                self.manager.close(lane)
            assert all(self.manager.pages_in_use(index) == 0 for index, _ in self.groups)

    @invariant()
    def lengths_agree(self) -> None:
        assert self.manager.lanes == tuple(sorted(self.lanes))
        assert all(self.manager.length(lane) == len(model.text) for lane, model in self.lanes.items())

    @invariant()
    def pages_are_those_of_the_tables_and_of_plans_that_can_be_undone(self) -> None:
        for index, group in self.groups:
            tables = {lane: self.manager.pages(lane)[index] for lane in self.lanes}
            used = {page for table in tables.values() for page in table}
            used |= {page for model in self.lanes.values() for page in model.parked[index]}
            assert self.manager.pages_in_use(index) == len(used)
            for lane, table in tables.items():
                held = set(table) | self.lanes[lane].parked[index]
                assert len(set(table)) == len(table)
                if group.window is not None:
                    assert len(held) <= self.spec.lane_pages(index) + self.lanes[lane].copied

    @invariant()
    def held_positions_are_in_memory(self) -> None:
        for lane, model in self.lanes.items():
            for index, group in self.groups:
                if not group.ring and group.window != 1:  # queries that see themselves alone need no page that is whole
                    positions = range(model.kept[index], len(model.text))
                    assert self.held(lane, index, positions) == [(p, model.text[p]) for p in positions]

    def held(self, lane: int, index: int, positions: range) -> list[tuple[int, int] | None]:
        """The content of the positions' slots, by the lane's table."""
        group, table, kept = self.spec.groups[index], self.manager.pages(lane)[index], self.lanes[lane].kept[index]
        columns = [0 if group.ring else (position - kept) // group.page_size for position in positions]
        slots = [table[c] * group.page_size + p % group.page_size for c, p in zip(columns, positions, strict=True)]
        return [self.memory[index].get(slot) for slot in slots]

    @precondition(lambda self: len(self.lanes) < self.spec.max_lanes)
    @rule()
    def open(self) -> None:
        zeros = [0] * len(self.groups)
        self.add(Lane([], zeros, [set() for _ in zeros]), lambda: self.manager.open())

    @rule(data=st.data(), back=st.integers(0, 9), cut=st.integers(0, 9))
    def fork(self, data: st.DataObject, back: int, cut: int) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        model = deepcopy(self.lanes[lane])
        model.parked, model.copied, model.before = [set() for _ in self.groups], False, None
        length = max(0, len(model.text) - cut)
        if self.legal(lane, length):
            self.shorten(model, length)
            self.add(model, lambda: self.manager.fork(lane, length), back)
        else:
            with pytest.raises(CacheError, match="needs position"):
                self.manager.fork(lane, length)

    @precondition(lambda self: len(self.lanes) > 1)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        self.manager.close(lane)
        del self.lanes[lane]

    @rule(data=st.data(), back=st.integers(0, 9))
    def save_close_load(self, data: st.DataObject, back: int) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        model = self.lanes[lane]
        integers, pages = self.manager.save(lane)
        saved = json.dumps(integers)
        arrays = [self.read(index, some) for (index, _), some in zip(self.groups, pages, strict=True)]
        self.manager.close(lane)
        del self.lanes[lane]
        for index, group in self.groups:
            if not group.ring:
                model.kept[index] = oldest(len(model.text), group) // group.page_size * group.page_size
        model.parked, model.copied, model.begin = [set() for _ in self.groups], False, len(model.text)
        model.before = None

        def load() -> int:
            loaded, pages = self.manager.load(json.loads(saved))
            for (index, group), some, array in zip(self.groups, pages, arrays, strict=True):
                assert len(some) * group.page_size == len(array)
                self.write(index, some, array)
            return loaded

        self.add(model, load, back)

    def read(self, index: int, pages: Iterable[int]) -> list[tuple[int, int] | None]:
        size = self.spec.groups[index].page_size
        return [self.memory[index].get(page * size + offset) for page in pages for offset in range(size)]

    def write(self, index: int, pages: Iterable[int], content: list[tuple[int, int] | None]) -> None:
        size = self.spec.groups[index].page_size
        slots = [page * size + offset for page in pages for offset in range(size)]
        self.memory[index].update({slot: held or (-1, -1) for slot, held in zip(slots, content, strict=True)})

    def add(self, model: Lane, take: Callable[[], int], back: int = 0) -> None:
        """Take a lane for `model`, the lowest free one, and try to go back; BusyError if no lane is free."""
        free = [lane for lane in range(self.spec.max_lanes) if lane not in self.lanes]
        if free:
            lane = take()
            assert lane == free[0]
            self.lanes[lane] = model
            self.take_back(lane, back)
        else:
            with pytest.raises(BusyError, match="lanes are taken"):
                take()

    @rule(data=st.data(), fails=st.booleans())
    def step(self, data: st.DataObject, fails: bool) -> None:
        order = data.draw(st.permutations(sorted(self.lanes)))
        chunks = []
        for lane in order[: data.draw(st.integers(1, len(order)))]:
            size = data.draw(st.integers(1, self.spec.max_chunk))
            rows = data.draw(st.lists(st.integers(0, size - 1), max_size=2))
            chunks.append(Chunk(lane, [next(self.tokens) for _ in range(size)], rows))
        self.plan(chunks, fails)

    @rule(data=st.data(), chunks=st.integers(2, 9))
    def wrap(self, data: st.DataObject, chunks: int) -> None:
        """Full chunks, one after the other: windows soon move on."""
        lane, size = data.draw(st.sampled_from(sorted(self.lanes))), self.spec.max_chunk
        for _ in range(min(chunks, (self.spec.max_context - len(self.lanes[lane].text)) // size)):
            self.plan([Chunk(lane, [next(self.tokens) for _ in range(size)])])

    @rule(data=st.data(), moves=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=2, max_size=5))
    def speculate(self, data: st.DataObject, moves: list[tuple[int, int]]) -> None:
        """Chunks of which a part is taken back: what follows may reach less far than what came before."""
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        for size, back in moves:
            self.plan([Chunk(lane, [next(self.tokens) for _ in range(min(size, self.spec.max_chunk))])])
            self.take_back(lane, back)

    def plan(self, chunks: list[Chunk], fails: bool = False) -> None:
        """Plan, and do what an executor does; or fail after all was written, and undo the plan."""
        if any(len(self.lanes[chunk.lane].text) + len(chunk.tokens) > self.spec.max_context for chunk in chunks):
            with pytest.raises(CacheError, match="max_context"):
                self.manager.plan(chunks)
            return
        before = {chunk.lane: self.manager.pages(chunk.lane) for chunk in chunks}
        plan = self.manager.plan(chunks)
        begins = [len(self.lanes[chunk.lane].text) for chunk in chunks]
        self.check_layout(plan, chunks, begins)
        self.check_writes(plan, set(before))
        self.execute(plan, garbage=fails)
        if fails:
            for chunk, begin in zip(chunks, begins, strict=True):
                model = self.lanes[chunk.lane]
                model.parked, model.copied, model.before = [set() for _ in self.groups], False, None
                if self.manager.pages(chunk.lane) == before[chunk.lane]:  # of a ring, slots were overwritten
                    model.peak = max(model.peak, begin + len(chunk.tokens))
            self.manager.undo(plan)
            assert {lane: self.manager.pages(lane) for lane in before} == before
            return
        for chunk, begin in zip(chunks, begins, strict=True):
            model, after = self.lanes[chunk.lane], self.manager.pages(chunk.lane)
            model.text += chunk.tokens
            # Of a ring that was written in place, slots were overwritten: only another page brings its slack back.
            same = after == before[chunk.lane]
            model.before = list(model.kept), max(model.peak, len(model.text)) if same else model.peak
            model.begin, model.peak = begin, max(model.peak, len(model.text))
            model.parked = [set(old) - set(new) for old, new in zip(before[chunk.lane], after, strict=True)]
            sources = {int(page) for reads in plan.groups for page in reads.copies[:, 0]}
            model.copied = any(sources & parked for parked in model.parked)
            for index, group in self.groups:
                if not group.ring:
                    model.kept[index] = oldest(begin, group) // group.page_size * group.page_size
        for index, reads in enumerate(plan.groups):
            self.check_reads(plan, index, reads, begins)

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

    def check_writes(self, plan: StepPlan, planned: set[int]) -> None:
        """No page that is written or copied to is anybody else's, also not after an undo; numbers are in range."""
        for (index, group), reads in zip(self.groups, plan.groups, strict=True):
            written = [{int(slot) // group.page_size for slot in reads.slot_mapping[span]} for span in plan.spans]
            for lane, pages in zip(plan.lanes.tolist(), written, strict=True):
                others = [other for other in self.lanes if other != lane]
                assert pages <= set(self.manager.pages(lane)[index])
                assert not any(pages & set(self.manager.pages(other)[index]) for other in others)
                assert not any(pages & self.lanes[other].parked[index] for other in others if other not in planned)
            sources, targets = reads.copies.T.tolist()
            assert len(set(targets)) == len(targets)
            assert not set(targets) & set(sources)
            assert not {page for pages in written for page in pages} & set(sources)
            assert len(set(reads.slot_mapping.tolist())) == len(reads.slot_mapping)
            assert reads.page_count > max(*sources, *targets, int(reads.pages.max()), *map(max, written), 0)

    def execute(self, plan: StepPlan, garbage: bool) -> None:
        """Copy pages, then write all tokens of the step, before anything is read."""
        for (index, _), reads in zip(self.groups, plan.groups, strict=True):
            for source, target in reads.copies.tolist():
                self.write(index, [target], self.read(index, [source]))
            for t, slot in enumerate(reads.slot_mapping.tolist()):
                token = -1 if garbage else int(plan.tokens[t])
                self.memory[index][slot] = (int(plan.positions[t]), token)

    def check_reads(self, plan: StepPlan, index: int, reads: Reads, begins: list[int]) -> None:
        """Keys that a query sees are held where `pages` says, and `first` is the oldest of them."""
        group = self.spec.groups[index]
        widths = []
        for s, (lane, begin) in enumerate(zip(plan.lanes.tolist(), begins, strict=True)):
            text = self.lanes[lane].text
            first, row = int(reads.first[s]), reads.pages[s].tolist()
            seen = [p for p in range(len(text)) if any(visible(q, p, group.window) for q in range(begin, len(text)))]
            assert seen == list(range(first, len(text)))
            columns = [0 if group.ring else p // group.page_size - first // group.page_size for p in seen]
            slots = [row[c] * group.page_size + p % group.page_size for c, p in zip(columns, seen, strict=True)]
            assert [self.memory[index].get(slot) for slot in slots] == [(p, text[p]) for p in seen]
            widths.append(max(columns) + 1)
            assert len(set(row[: widths[-1]])) == widths[-1]
            assert not any(row[widths[-1] :])
        assert reads.pages.shape == (len(begins), max(widths))

    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        self.take_back(lane, data.draw(st.integers(0, 2 * self.spec.max_chunk)))

    @rule(data=st.data())
    def clear(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        self.take_back(lane, self.manager.length(lane))

    def legal(self, lane: int, length: int) -> bool:
        """Whether every key that the query at `length` sees is held: in a ring, whether it is still in its slot."""
        model, legal = self.lanes[lane], True
        for index, group in self.groups:
            needed = range(oldest(length, group), length)
            if group.ring:
                legal = legal and self.held(lane, index, needed) == [(p, model.text[p]) for p in needed]
            else:
                legal = legal and (not needed or needed[0] >= model.kept[index])
        slack = model.peak - self.spec.max_chunk if self.spec.groups[0].ring else model.begin
        assert legal or length < slack  # the documented limit
        return legal

    def take_back(self, lane: int, tokens: int) -> None:
        model = self.lanes[lane]
        length = max(0, len(model.text) - tokens)
        if self.legal(lane, length):
            self.manager.rollback(lane, length)
            if length == model.begin and model.before is not None:  # the plan is undone
                model.kept, model.peak = model.before
            if length <= model.begin or not length:
                model.parked, model.copied, model.before = [set() for _ in self.groups], False, None
            self.shorten(model, length)
        else:
            with pytest.raises(CacheError, match="needs position"):
                self.manager.rollback(lane, length)

    def shorten(self, model: Lane, length: int) -> None:
        del model.text[length:]
        model.peak = model.peak if length else 0
        for index, group in self.groups:
            if not group.ring:
                start = oldest(length, group) // group.page_size * group.page_size
                model.kept[index] = min(model.kept[index], start)


class PrefixMachine(CacheMachine):
    """Lanes are kept, and texts resumed where a known one begins alike; pages give way, or there is room for all."""

    @initialize(spec=specs(), room=st.sampled_from([0, 3, 12, 40, 10**9]))
    def start(self, spec: CacheSpec, room: int) -> None:
        self.room = room
        self.known: list[Lane] = []
        super().start(spec)

    def managed(self, spec: CacheSpec) -> CacheManager:
        return CacheManager(spec, budget=CacheBudget(self.room, (1,) * len(spec.groups)))

    def teardown(self) -> None:
        if hasattr(self, "lanes"):
            for lane in self.lanes:
                self.manager.close(lane)
            assert self.manager.bytes_in_use <= self.room

    @invariant()
    def pages_are_those_of_the_tables_and_of_plans_that_can_be_undone(self) -> None:
        for index, _ in self.groups:
            used = {page for lane in self.lanes for page in self.manager.pages(lane)[index]}
            used |= {page for model in self.lanes.values() for page in model.parked[index]}
            assert self.manager.pages_in_use(index) >= len(used)

    @rule(data=st.data(), whole=st.booleans(), cut=st.integers(0, 9), closed=st.booleans())
    def keep(self, data: st.DataObject, whole: bool, cut: int, closed: bool) -> None:
        lane = data.draw(st.sampled_from(sorted(self.lanes)))
        model = self.lanes[lane]
        text = model.text[: max(0, len(model.text) - cut)]
        self.manager.keep(lane, text, whole=whole)
        self.known.append(replace(model, text=text))
        for index, parked in enumerate(model.parked):
            parked -= set(self.manager.pages(lane)[index])
        if closed and len(self.lanes) > 1:
            self.manager.close(lane)
            del self.lanes[lane]
            if whole and not cut and self.room == 10**9 and text:
                assert self.resumed(text) == len(text)

    @precondition(lambda self: self.known and len(self.lanes) < self.spec.max_lanes)
    @rule(data=st.data(), more=st.integers(0, 9))
    def resume(self, data: st.DataObject, more: int) -> None:
        text = data.draw(st.sampled_from(self.known)).text
        self.resumed(text[: data.draw(st.integers(0, len(text)))] + [next(self.tokens) for _ in range(more)])

    @rule()
    def salted(self) -> None:
        if len(self.lanes) < self.spec.max_lanes and self.known:
            lane, length = self.manager.resume(self.known[-1].text, salt="another user")
            assert not length
            self.manager.close(lane)

    def resumed(self, text: list[int]) -> int:
        """Open a lane with what is known of the text; `held_positions_are_in_memory` says whether that is right."""
        lane, length = self.manager.resume(text)
        assert length <= len(text)
        alike = [model for model in self.known if model.text[:length] == text[:length]]
        assert alike
        starts = [oldest(length, group) // group.page_size * group.page_size for _, group in self.groups]
        kept = [0 if group.ring else start for (_, group), start in zip(self.groups, starts, strict=True)]
        peak = max(model.peak for model in alike)
        self.lanes[lane] = Lane(text[:length], kept, [set() for _ in self.groups], length, False, peak)
        return length


TestCacheMachine = CacheMachine.TestCase
TestPrefixMachine = PrefixMachine.TestCase
