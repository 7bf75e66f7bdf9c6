"""Prefixes hold what was written for them: texts over two tokens, so that many begin alike."""

from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable.cache import CacheBudget, CacheManager, CacheSpec, Chunk, StepPlan, first_visible
from mistral_portable.config import MistralConfig, Window
from mistral_portable.errors import BusyError, CapacityError

LIMITLESS = 10**9
Content = tuple[int, ...]
"""The content of a slot: the text up to and with its token, on which its key and value depend."""


@dataclass
class World:
    """A manager, and the slots of an executor. `texts` are those of the open lanes."""

    windows: tuple[Window, ...] = (None,)
    page_size: int | None = 2
    limit: int = LIMITLESS
    strict: bool = False
    max_lanes: int = 3
    max_chunk: int = 4
    texts: dict[int, list[int]] = field(default_factory=dict)
    computed: int = 0

    def __post_init__(self) -> None:
        config = MistralConfig(num_hidden_layers=len(self.windows), sliding_window=self.windows)
        self.spec = CacheSpec.from_config(
            config, max_context=40, page_size=self.page_size, max_chunk=self.max_chunk, max_lanes=self.max_lanes
        )
        budget = CacheBudget(self.limit, (1,) * len(self.spec.groups), self.strict)
        self.manager = CacheManager(self.spec, budget=budget)
        self.slots: list[dict[int, Content]] = [{} for _ in self.spec.groups]

    def resume(self, text: list[int], salt: str = "", length: int = 0) -> tuple[int, int]:
        lane, known = self.manager.resume(text, salt=salt, length=length)
        self.texts[lane] = text[:known]
        self.check(lane)
        return lane, known

    def feed(self, lane: int, tokens: list[int], undone: bool = False) -> None:
        plan = self.manager.plan([Chunk(lane, tokens)])
        text = self.texts[lane] + tokens
        self.execute(plan, [-1] * len(text) if undone else text)
        if undone:
            self.manager.undo(plan)
        else:
            self.texts[lane] = text
            self.computed += len(tokens)
        self.check(lane)

    def execute(self, plan: StepPlan, text: list[int]) -> None:
        for reads, slots, group in zip(plan.groups, self.slots, self.spec.groups, strict=True):
            size = group.page_size
            for source, target in reads.copies.tolist():
                for offset in range(size):
                    slots[target * size + offset] = slots.get(source * size + offset, ())
            for slot, position in zip(reads.slot_mapping.tolist(), plan.positions.tolist(), strict=True):
                slots[slot] = tuple(text[: position + 1])

    def check(self, lane: int) -> None:
        """The next query finds all that it sees."""
        text = self.texts[lane]
        for pages, slots, group in zip(self.manager.pages(lane), self.slots, self.spec.groups, strict=True):
            size, length = group.page_size, len(text)
            oldest = first_visible(length, group.window)
            begin = 0 if group.ring else -(-length // size) - len(pages)  # the page that the table begins with
            for p in range(oldest, length):
                slot = pages[0 if group.ring else p // size - begin] * size + p % size
                assert slots[slot] == tuple(text[: p + 1])

    def write(self, lane: int, text: list[int], sizes: list[int]) -> None:
        """Feed the rest of a text."""
        rest = text[len(self.texts[lane]) :]
        for begin, end in zip([0, *accumulate(sizes)], accumulate(sizes), strict=False):
            if rest[begin:end]:
                self.feed(lane, rest[begin:end])
                self.manager.keep(lane, self.texts[lane], whole=False)

    def end(self, lane: int) -> None:
        self.manager.keep(lane, self.texts.pop(lane))
        self.manager.close(lane)


windows = st.one_of(st.integers(1, 8), st.none())
texts = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=1, max_size=30)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    return World(
        tuple(draw(st.lists(windows, min_size=1, max_size=2))),
        draw(st.sampled_from([1, 2, 3, 4, 5, None])),
        draw(st.sampled_from([0, 5, 20, 60, LIMITLESS])),
    )


@settings(max_examples=150)
@given(worlds(), st.lists(st.tuples(texts, texts, st.integers(0, 4)), min_size=2, max_size=12), st.data())
def test_what_is_known_is_what_was_written(
    world: World, turns: list[tuple[list[int], list[int], int]], data: st.DataObject
) -> None:
    for beginning, more, choice in turns:
        open_lanes = sorted(world.texts)
        if len(open_lanes) == world.max_lanes or (open_lanes and choice == 0):
            world.end(data.draw(st.sampled_from(open_lanes)))
            continue
        text = (beginning + more)[:35]
        lane, _ = world.resume(text[:-1])
        world.write(lane, text, data.draw(st.lists(st.integers(1, 4), min_size=9, max_size=9)))
        if choice == 1:
            world.feed(lane, [1], undone=True)
        if choice == 2:
            world.manager.keep(lane, world.texts[lane])  # as one waits for it, it goes on in a copy
            world.feed(lane, [1, 1])
        for other in world.texts:
            world.check(other)
    for lane in list(world.texts):
        world.end(lane)
    assert world.manager.bytes_in_use <= world.limit


@settings(max_examples=100)
@given(worlds(), texts, texts, texts)
def test_where_there_is_room_the_longest_beginning_is_found(
    world: World, common: list[int], one: list[int], other: list[int]
) -> None:
    """Also behind windows that have moved on, but not if a page is a whole lane, which windows overwrite."""
    one, other = [*common, 2, *one][:35], [*common, 3, *other][:35]
    world.limit = LIMITLESS
    world.__post_init__()
    lane, _ = world.resume(one)
    world.write(lane, one, [4] * 9)
    world.end(lane)
    lane, again = world.resume(one)
    assert again == len(one)
    world.end(lane)
    _, known = world.resume(other)
    if world.page_size is not None or world.windows == (None,) * len(world.windows):
        assert known >= min(len(common), len(one), len(other))


def test_eight_texts_share_the_pages_of_their_beginning() -> None:
    world = World(page_size=4, max_lanes=8)
    common = [0, 1] * 5
    for number in range(8):
        lane, known = world.resume([*common, number])
        assert known == (10 if number else 0)
        world.write(lane, [*common, number], [4, 4, 4])
        world.manager.keep(lane, world.texts[lane])
    assert world.computed == 11 + 7
    assert world.manager.pages_in_use(0) == 2 + 8  # two full pages, and one of each


def test_the_least_recently_used_text_gives_way() -> None:
    world = World(page_size=4, limit=16, max_lanes=1)
    for first in (0, 1, 2, 0, 3):  # the second text was used last before the limit is met
        lane, _ = world.resume([first] * 8)
        world.write(lane, [first] * 8, [4, 4])
        world.end(lane)
    found = [world.manager.resume([first] * 8) for first in (3,)]
    assert found == [(0, 8)]
    world.manager.close(0)
    assert world.manager.resume([0] * 8) == (0, 8)
    world.manager.close(0)
    assert world.manager.resume([1] * 8) == (0, 0)


def test_of_a_text_that_gives_way_the_end_goes_first() -> None:
    world = World(page_size=2, limit=8, max_lanes=1)
    lane, _ = world.resume([0] * 8)
    world.write(lane, [0] * 8, [4, 4])
    world.end(lane)
    lane, _ = world.resume([1] * 3)
    world.write(lane, [1] * 3, [3])
    world.end(lane)
    assert world.manager.resume([0] * 8) == (0, 4)


def test_another_salt_finds_nothing() -> None:
    world = World(max_lanes=2)
    lane, _ = world.resume([0] * 6)
    world.write(lane, [0] * 6, [4, 4])
    world.end(lane)
    assert world.resume([0] * 6, salt="b") == (0, 0)
    assert world.resume([0] * 6) == (1, 6)


@pytest.mark.parametrize("page_size", [2, None])
def test_a_strict_limit_holds_for_lanes(page_size: int | None) -> None:
    world = World(page_size=page_size, limit=12, strict=True)
    first, _ = world.resume([0], length=8)
    with pytest.raises(CapacityError, match=r"would take 0\.0 MiB, and cache_bytes=12 allows"):
        world.resume([1], length=8)
    assert world.manager.lanes == (first,)
    second, _ = world.resume([1], length=4)
    world.write(first, [0] * 8, [4, 4])
    world.write(second, [1] * 4, [4])
    with pytest.raises(CapacityError):
        world.feed(second, [1])
    world.check(second)
    assert world.manager.length(second) == 4
    world.end(first)
    world.feed(second, [1])  # what was kept of the other gives way
    assert world.manager.bytes_in_use <= 12


def test_without_a_budget_nothing_is_kept() -> None:
    manager = CacheManager(World().spec)
    lane, known = manager.resume([1, 2])
    manager.plan([Chunk(lane, [1, 2])])
    manager.keep(lane, [1, 2])
    manager.close(lane)
    assert (known, manager.pages_in_use(0), manager.bytes_in_use) == (0, 0, 0)
    assert manager.resume([1, 2]) == (0, 0)


def test_all_lanes_are_taken() -> None:
    world = World(max_lanes=1)
    world.resume([0])
    with pytest.raises(BusyError, match="all 1 lanes"):
        world.resume([0])


@pytest.mark.parametrize("page_size", [4, None])
def test_what_was_resumed_and_left_unwritten_gives_way_like_all_else(page_size: int | None) -> None:
    world = World(page_size=page_size, limit=4, max_lanes=1)
    for text in ([0] * 4, [0] * 2, [0] * 4, [1] * 4):
        lane, _ = world.resume(text)
        world.write(lane, text, [4])
        world.end(lane)
    assert world.manager.bytes_in_use == 4
    assert world.resume([0] * 4)[1] == 0


def test_what_a_lane_uses_does_not_give_way() -> None:
    world = World(page_size=2, limit=4, max_lanes=3)
    lane, _ = world.resume([0] * 4)
    world.write(lane, [0] * 4, [4])
    other, _ = world.resume([1] * 4)
    world.write(other, [1] * 4, [4])
    world.end(other)
    assert world.resume([0] * 4)[1] == 4
    assert world.resume([1] * 4)[1] == 0


@pytest.mark.parametrize(("page_size", "limit"), [(4, 8), (None, 8)])
def test_where_there_is_no_room_for_a_copy_the_text_is_read_again(page_size: int | None, limit: int) -> None:
    world = World(page_size=page_size, limit=limit, strict=True)
    lane, _ = world.resume([0] * 7, length=7)
    world.write(lane, [0] * 7, [4, 3])
    world.end(lane)
    lane, known = world.resume([0] * 6, length=7)  # it would share a page that the 7th token needs a copy of
    assert known == 0
    world.write(lane, [0] * 6 + [1], [4, 3])
    assert world.manager.bytes_in_use <= limit


@pytest.mark.parametrize("page_size", [2, None])
def test_what_is_found_and_then_refused_is_kept_on(page_size: int | None) -> None:
    world = World(page_size=page_size, limit=12, strict=True)
    lane, _ = world.resume([0] * 6, length=6)
    world.write(lane, [0] * 6, [4, 2])
    world.end(lane)
    other, _ = world.resume([1], length=4)
    with pytest.raises(CapacityError):
        world.resume([0] * 9, length=10)
    world.end(other)
    assert world.resume([0] * 9, length=10)[1] == 6


def test_what_is_forgotten_need_not_be_copied() -> None:
    world = World(page_size=None, limit=8, strict=True)
    lane, _ = world.resume([0] * 6, length=6)
    world.write(lane, [0] * 6, [4, 2])
    world.manager.keep(lane, [0] * 6)
    with pytest.raises(CapacityError):
        world.feed(lane, [0])
    assert world.manager.forget()
    assert not world.manager.forget()
    world.feed(lane, [0])
    assert world.manager.bytes_in_use == 7
