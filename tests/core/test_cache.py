"""CacheSpec and CacheManager by hand: the documented examples, sizes in bytes, and every refusal."""

from typing import Any

import numpy as np
import pytest

from mistral_portable.cache import CacheManager, CacheSpec, Chunk, LayerGroup, first_visible
from mistral_portable.config import MistralConfig, Window
from mistral_portable.errors import BusyError, CacheError, InputError

CONFIG = MistralConfig(num_hidden_layers=2, sliding_window=3)
MIXED = MistralConfig(num_hidden_layers=3, sliding_window=(3, None))


def manager(config: MistralConfig = CONFIG, page_size: int | None = 2, **sizes: int) -> CacheManager:
    sizes = {"max_context": 100, "max_chunk": 3, "max_lanes": 2} | sizes
    return CacheManager(CacheSpec.from_config(config, page_size=page_size, **sizes))


def advance(manager: CacheManager, lane: int, count: int) -> None:
    """Plan `count` tokens of any value, in chunks that fit."""
    while count > 0:
        size = min(count, manager.spec.max_chunk)
        manager.plan([Chunk(lane, [0] * size)])
        count -= size


def test_spec_groups_layers_by_window() -> None:
    spec = CacheSpec.from_config(MIXED, max_context=100, page_size=16, max_chunk=2)
    assert spec.groups == (LayerGroup(3, (0, 2), 16, False), LayerGroup(None, (1,), 16, False))
    assert [spec.group_of(layer) for layer in range(3)] == [0, 1, 0]


def test_a_page_may_be_a_whole_lane() -> None:
    spec = CacheSpec.from_config(MIXED, max_context=100, page_size=None, max_chunk=2)
    assert spec.groups == (LayerGroup(3, (0, 2), 4, True), LayerGroup(None, (1,), 100, True))


def test_no_ring_has_more_slots_than_the_context() -> None:
    spec = CacheSpec.from_config(MIXED, max_context=3, page_size=None, max_chunk=512)
    assert spec.max_chunk == 3
    assert [group.page_size for group in spec.groups] == [3, 3]


@pytest.mark.parametrize("name", ["max_context", "max_chunk", "max_lanes", "page_size"])
def test_spec_refuses_sizes_below_one(name: str) -> None:
    with pytest.raises(InputError, match=name):
        CacheSpec.from_config(CONFIG, **({"max_context": 8, "page_size": 4} | {name: 0}))


def test_spec_docstring_example_of_pages() -> None:
    caches = manager(page_size=4, max_lanes=6)
    others = [caches.open() for _ in range(5)]
    for other in others:
        advance(caches, other, 1)
    lane = caches.open()
    advance(caches, lane, 4)
    caches.close(others[2])
    plan = caches.plan([Chunk(lane, [0, 0])])
    assert caches.pages(lane) == ((5, 2),)
    assert plan.groups[0].pages.tolist() == [[5, 2]]
    assert plan.groups[0].slot_mapping.tolist() == [8, 9]
    plan = caches.plan([Chunk(lane, [0])])
    assert plan.groups[0].first.tolist() == [4]
    assert plan.groups[0].pages.tolist() == [[2]]


def test_spec_docstring_example_of_rings() -> None:
    """Window 3, max_chunk 2: the chunk 6, 7 overwrites 2 and 3, and query 6 still finds 4, 5, 6."""
    caches = manager(page_size=None, max_chunk=2)
    slots = ["-"] * caches.spec.groups[0].page_size
    lane = caches.open()
    for chunk in ("01", "23", "45"):
        for slot, token in zip(caches.plan([Chunk(lane, [0, 0])]).groups[0].slot_mapping, chunk, strict=True):
            slots[slot] = token
    assert "".join(slots) == "4523"
    plan = caches.plan([Chunk(lane, [0, 0])])
    assert plan.groups[0].slot_mapping.tolist() == [2, 3]
    assert plan.groups[0].first.tolist() == [4]
    assert plan.groups[0].pages.tolist() == [[0]]


def test_plan_docstring_example() -> None:
    caches = manager(page_size=4)
    a, b = caches.open(), caches.open()
    advance(caches, a, 4)
    plan = caches.plan([Chunk(a, [14, 15], rows=[1]), Chunk(b, [20, 21, 22], rows=[2])])
    assert plan.tokens.tolist() == [14, 15, 20, 21, 22]
    assert plan.positions.tolist() == [4, 5, 0, 1, 2]
    assert plan.lanes.tolist() == [0, 1]
    assert plan.query_starts.tolist() == [0, 2, 5]
    assert plan.spans == [slice(0, 2), slice(2, 5)]
    assert plan.ends.tolist() == [6, 3]
    assert plan.logit_rows.tolist() == [1, 4]
    (reads,) = plan.groups
    assert reads.slot_mapping.tolist() == [4, 5, 8, 9, 10]
    assert reads.pages.tolist() == [[0, 1], [2, 0]]
    assert reads.first.tolist() == [2, 0]
    assert reads.copies.shape == (0, 2)
    assert reads.page_count == 3
    arrays = [plan.tokens, plan.positions, plan.lanes, plan.query_starts, plan.logit_rows]
    arrays += [reads.slot_mapping, reads.pages, reads.first, reads.copies]
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}


def test_slots_of_mistral_inference_token_by_token() -> None:
    """Its worked vector has 5, 7, 2 tokens at 0, 1, 3 with W = 3, and keeps the last W of each chunk: 2 0 1 | 5 3 4 |
    6 7, which is position % W + W * lane. With max_chunk 1 our rings have those W slots."""
    caches = manager(page_size=None, max_chunk=1, max_lanes=3)
    kept = []
    for begin, count in ((0, 5), (1, 7), (3, 2)):
        lane = caches.open()
        advance(caches, lane, begin)
        slots = [int(caches.plan([Chunk(lane, [0])]).groups[0].slot_mapping[0]) for _ in range(count)]
        kept.append(slots[-3:])
    assert kept == [[2, 0, 1], [5, 3, 4], [6, 7]]


def test_bytes_of_mistral_7b() -> None:
    seven = MistralConfig()
    ring = CacheSpec.from_config(seven, max_context=1_000_000, page_size=None, max_chunk=1)
    assert ring.lane_bytes(2) == 512 * 2**20
    assert ring.lane_bytes(2, 4096) == ring.lane_bytes(2, 8192) == ring.lane_bytes(2)
    assert ring.lane_bytes(2, 2048) == ring.lane_bytes(2) // 2
    slack = CacheSpec.from_config(seven, max_context=1_000_000, page_size=None, max_chunk=512)
    assert slack.lane_bytes(2) == ring.lane_bytes(2) * (4096 + 511) // 4096
    pages = CacheSpec.from_config(seven, max_context=1_000_000, page_size=64, max_chunk=512)
    assert pages.page_bytes(0, 2) == 8 * 2**20
    assert pages.lane_pages(0) == 1 + (4096 + 1024 - 2 + 63) // 64
    assert pages.lane_bytes(2) == pages.lane_bytes(2, 8192) == pages.lane_pages(0) * 8 * 2**20
    assert pages.lane_bytes(2, 65) == 2 * 8 * 2**20
    full = CacheSpec.from_config(seven.with_window(None), max_context=8192, page_size=64)
    assert full.lane_bytes(2) == 2 * full.lane_bytes(2, 4096) == 2 * 512 * 2**20


def test_a_windowed_lane_takes_as_many_pages_however_long_the_text() -> None:
    """Window 3, max_chunk 2, pages of 2: at most the 4 pages that the spec's example says."""
    caches = manager(max_chunk=2)
    lane = caches.open()
    advance(caches, lane, 1)  # so that chunks do not begin where pages do
    used = []
    for _ in range(20):
        advance(caches, lane, 2)
        used.append(caches.pages_in_use(0))
    assert max(used) == caches.spec.lane_pages(0) == 4


def test_lanes_are_handed_out_lowest_first() -> None:
    caches = manager(max_lanes=3)
    assert [caches.open() for _ in range(3)] == [0, 1, 2]
    caches.close(1)
    assert caches.lanes == (0, 2)
    assert caches.open() == 1
    with pytest.raises(BusyError, match="all 3 lanes"):
        caches.open()


def test_pages_are_handed_out_lowest_first_and_the_pool_shrinks() -> None:
    caches = manager(CONFIG.with_window(None), max_lanes=3)
    a, b, c = (caches.open() for _ in range(3))
    for lane in (a, b, c):
        advance(caches, lane, 4)
    caches.close(a)
    assert caches.plan([Chunk(b, [0])]).groups[0].pages.tolist() == [[2, 3, 0]]
    caches.close(c)
    assert caches.pages_in_use(0) == 3
    assert caches.plan([Chunk(b, [0])]).groups[0].page_count == 4


def test_rollback_docstring_example() -> None:
    caches = manager(max_chunk=2)
    lane = caches.open()
    advance(caches, lane, 10)
    with pytest.raises(CacheError, match="needs position 5, but the window keeps only positions from 6"):
        caches.rollback(lane, 7)
    caches.rollback(lane, 8)
    assert caches.length(lane) == 8
    with pytest.raises(CacheError, match="cannot roll back from 8 to 9"):
        caches.rollback(lane, 9)
    with pytest.raises(CacheError, match="cannot roll back from 8 to -1"):
        caches.rollback(lane, -1)
    caches.rollback(lane, 0)
    assert caches.pages_in_use(0) == 0
    assert caches.plan([Chunk(lane, [0])]).positions.tolist() == [0]


def test_rollback_docstring_example_of_rings() -> None:
    caches = manager(page_size=None, max_chunk=2)
    lane = caches.open()
    advance(caches, lane, 10)
    with pytest.raises(CacheError, match="needs position 5"):
        caches.rollback(lane, 7)
    caches.rollback(lane, 8)
    assert caches.length(lane) == 8


@pytest.mark.parametrize("page_size", [2, None])
def test_a_fork_shares_pages_until_one_writes(page_size: int | None) -> None:
    caches = manager(CONFIG.with_window(None), page_size=page_size)
    lane = caches.open()
    advance(caches, lane, 3)
    fork = caches.fork(lane)
    assert caches.pages(fork) == caches.pages(lane)
    (shared,) = caches.pages(lane)
    assert caches.pages_in_use(0) == len(shared)
    (reads,) = caches.plan([Chunk(fork, [0])]).groups
    assert reads.copies.tolist() == [[shared[-1], len(shared)]]
    assert caches.pages(lane) == (shared,)
    assert caches.pages(fork) == ((*shared[:-1], len(shared)),)
    (alone,) = caches.plan([Chunk(fork, [0])]).groups  # the copied page is the lane's alone from now on
    assert alone.copies.tolist() == []
    (last,) = caches.plan([Chunk(lane, [0])]).groups
    assert last.copies.tolist() == []
    assert last.slot_mapping.tolist() == [3]


def test_a_fork_of_full_pages_copies_nothing() -> None:
    caches = manager(CONFIG.with_window(None))
    lane = caches.open()
    advance(caches, lane, 4)
    fork = caches.fork(lane)
    plan = caches.plan([Chunk(fork, [0]), Chunk(lane, [0])])
    assert plan.groups[0].copies.tolist() == []
    assert plan.groups[0].pages.tolist() == [[0, 1, 2], [0, 1, 3]]


def test_a_fork_may_be_shorter() -> None:
    caches = manager(max_chunk=2)
    lane = caches.open()
    advance(caches, lane, 10)
    fork = caches.fork(lane, 8)
    assert caches.length(fork) == 8
    caches.close(fork)
    with pytest.raises(CacheError, match="needs position 5"):
        caches.fork(lane, 7)
    with pytest.raises(CacheError, match="11"):
        caches.fork(lane, 11)
    assert caches.lanes == (lane,)
    assert caches.length(caches.fork(lane, 0)) == 0


def test_a_full_page_is_copied_before_a_rollback_into_it_is_written_if_it_is_shared() -> None:
    caches = manager(CONFIG.with_window(None))
    lane = caches.open()
    advance(caches, lane, 4)
    fork = caches.fork(lane)
    caches.rollback(lane, 3)
    assert caches.plan([Chunk(lane, [0])]).groups[0].copies.tolist() == [[1, 2]]
    caches.close(fork)
    caches.rollback(lane, 3)
    assert caches.plan([Chunk(lane, [0])]).groups[0].copies.tolist() == []


def test_an_undone_plan_gives_back_what_it_let_go_of_and_what_it_copied() -> None:
    caches = manager(max_chunk=2)
    lane = caches.open()
    advance(caches, lane, 1)
    advance(caches, lane, 6)
    fork = caches.fork(lane)
    assert caches.pages(lane) == ((1, 2, 3),)
    plan = caches.plan([Chunk(lane, [0, 0])])
    assert plan.groups[0].copies.tolist() == [[3, 0]]
    assert caches.pages(lane) == ((2, 0, 4),)
    assert caches.pages_in_use(0) == 5
    for _ in range(2):  # the second time nothing is left to undo
        caches.undo(plan)
        assert caches.pages(lane) == caches.pages(fork) == ((1, 2, 3),)
        assert caches.pages_in_use(0) == 3
        assert caches.length(lane) == caches.length(fork) == 7


@pytest.mark.parametrize("page_size", [4, None])
def test_a_rollback_to_where_a_plan_began_undoes_it(page_size: int | None) -> None:
    """Its step may not have run: the copy that it was to make is not there."""
    caches = manager(page_size=page_size, max_chunk=6)
    source = caches.open()
    caches.plan([Chunk(source, [0] * 6)])
    lane = caches.fork(source)
    for _ in range(2):
        (copy,) = caches.plan([Chunk(lane, [7])]).groups[0].copies.tolist()
        assert copy[0] == caches.pages(source)[0][-1]
        caches.rollback(lane, 6)
        assert caches.pages(lane) == caches.pages(source)


def test_undo_gives_a_forked_ring_its_slack_back() -> None:
    """The plan took a copy, so that nothing of the page that the lane gets back was overwritten."""
    caches = manager(page_size=None, max_chunk=2)
    lane = caches.open()
    advance(caches, lane, 4)
    caches.fork(lane)
    plan = caches.plan([Chunk(lane, [0, 0])])
    with pytest.raises(CacheError, match="needs position 1"):
        caches.check_rollback(lane, 3)
    caches.undo(plan)
    caches.rollback(lane, 3)
    assert caches.length(lane) == 3


def test_undo_leaves_alone_who_has_moved_on() -> None:
    caches = manager()
    lane, other = caches.open(), caches.open()
    plan = caches.plan([Chunk(lane, [0]), Chunk(other, [0])])
    advance(caches, lane, 1)
    caches.close(other)
    assert caches.open() == other
    caches.undo(plan)
    assert (caches.length(lane), caches.length(other)) == (2, 0)


def test_pages_that_leave_a_window_are_free_from_the_next_plan_on() -> None:
    caches = manager(max_chunk=2)
    lane = caches.open()
    used = []
    for _ in range(4):
        advance(caches, lane, 2)
        used.append((caches.pages(lane)[0], caches.pages_in_use(0)))
    assert used == [((0,), 1), ((0, 1), 2), ((1, 2), 3), ((2, 0), 3)]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "at least one chunk"),
        ([Chunk(0, [1]), Chunk(0, [2])], "one chunk per lane"),
        ([Chunk(0, [1]), Chunk(1, [])], "lane 1: a chunk of 0 tokens"),
        ([Chunk(0, [1]), Chunk(1, [1, 2, 3, 4])], "max_chunk=3"),
        ([Chunk(0, [1]), Chunk(2, [1])], "lane 2 is not open"),
        ([Chunk(0, [1]), Chunk(-1, [1])], "lane -1 is not open"),
        ([Chunk(0, [1]), Chunk(1, [1, 2, 3])], "exceed max_context=6"),
        ([Chunk(0, [1], rows=[1])], "rows"),
        ([Chunk(0, [1], rows=[-1])], "rows"),
    ],
)
def test_a_refused_plan_changes_nothing(chunks: list[Chunk], message: str) -> None:
    caches = manager(max_context=6)
    for length in (2, 4):
        advance(caches, caches.open(), length)
    before = [caches.pages(lane) for lane in caches.lanes], caches.pages_in_use(0)
    with pytest.raises(CacheError, match=message):
        caches.plan(chunks)
    assert [caches.length(lane) for lane in caches.lanes] == [2, 4]
    assert ([caches.pages(lane) for lane in caches.lanes], caches.pages_in_use(0)) == before


def test_a_token_that_is_no_int32_changes_nothing() -> None:
    caches = manager()
    lane = caches.open()
    with pytest.raises(OverflowError):
        caches.plan([Chunk(lane, [2**40])])
    assert caches.length(lane) == caches.pages_in_use(0) == 0


def test_a_plan_that_runs_out_of_memory_gives_back_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    caches = manager(MIXED)
    lane = caches.open()
    advance(caches, lane, 3)
    fork = caches.fork(lane)
    before = caches.pages(lane), caches.pages_in_use(0), caches.pages_in_use(1)

    def fail(query: int, window: Window) -> int:
        if window is None:
            raise MemoryError
        return first_visible(query, window)

    monkeypatch.setattr("mistral_portable.cache.table.first_visible", fail)
    with pytest.raises(MemoryError):
        caches.plan([Chunk(lane, [0]), Chunk(fork, [0])])
    monkeypatch.undo()
    assert (caches.pages(lane), caches.pages_in_use(0), caches.pages_in_use(1)) == before
    assert caches.length(lane) == caches.length(fork) == 3
    assert caches.plan([Chunk(fork, [0])]).groups[1].copies.tolist() == [[1, 2]]


def test_rows_come_once_and_ascending() -> None:
    caches = manager()
    a, b = caches.open(), caches.open()
    assert caches.plan([Chunk(a, [1, 2, 3], rows=[2, 0, 2]), Chunk(b, [4])]).logit_rows.tolist() == [0, 2]


@pytest.mark.parametrize("call", ["close", "length", "fork", "save", "pages"])
def test_every_call_refuses_a_lane_that_is_not_open(call: str) -> None:
    with pytest.raises(CacheError, match="lane 0 is not open"):
        getattr(manager(), call)(0)
    with pytest.raises(CacheError, match="lane 0 is not open"):
        manager().rollback(0, 0)


def test_only_pages_that_the_next_query_needs_are_saved() -> None:
    caches = manager(MIXED, max_chunk=2)
    lane = caches.open()
    advance(caches, lane, 10)
    integers, pages = caches.save(lane)
    assert pages == (caches.pages(lane)[0][1:], caches.pages(lane)[1])
    assert integers == {
        "model": "",
        "length": 10,
        "high": 10,
        "page_size.0": 2,
        "begin.0": 4,
        "pages.0": 1,
        "page_size.1": 2,
        "begin.1": 0,
        "pages.1": 5,
    }


@pytest.mark.parametrize("length", range(1, 13))
def test_slots_without_a_position_are_blank(length: int) -> None:
    """Those behind the end; in a ring, those of tokens that were taken back."""
    paged, ring = manager(page_size=4, max_chunk=2), manager(page_size=None, max_chunk=2)
    lanes = paged.open(), ring.open()
    for caches, lane in zip((paged, ring), lanes, strict=True):
        advance(caches, lane, 12)
        if length >= 10:  # the ring has 4 slots
            caches.rollback(lane, length)
        else:
            caches.close(lane)
            advance(caches, caches.open(), length)
    assert paged.blank(lanes[0]) == (tuple(range(4))[(length - 1) % 4 + 1 :],)
    held = range(8, length) if length >= 10 else range(length)
    assert ring.blank(lanes[1]) == (tuple(slot for slot in range(4) if slot not in {p % 4 for p in held}),)


SAVED = {"length": 8, "high": 10, "page_size.0": 4, "begin.0": 0, "pages.0": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"length": 11},
        {"length": -1},
        {"high": 101, "length": 101},
        {"length": 7},  # needs position 5, which 9 has overwritten
        {"page_size.0": 5},
        {"page_size.0": None},
        {"begin.0": 1},
        {"pages.0": 2},
        {"length": "8"},
        {"high": 10.0},
    ],
)
def test_load_refuses_integers_that_cannot_belong_to_the_spec(change: dict[str, Any]) -> None:
    caches = manager(page_size=None, max_chunk=2)
    with pytest.raises(CacheError, match="saved lane"):
        caches.load(SAVED | change)
    assert caches.lanes == ()
    assert caches.pages_in_use(0) == 0
    lane, pages = caches.load(SAVED)
    assert (caches.length(lane), pages) == (8, ((0,),))


@pytest.mark.parametrize("name", SAVED)
def test_load_refuses_a_save_that_lacks_a_key(name: str) -> None:
    with pytest.raises(CacheError, match="saved lane"):
        manager(page_size=None, max_chunk=2).load({key: value for key, value in SAVED.items() if key != name})


def test_a_lane_moves_between_managers_of_other_sizes() -> None:
    small, large = manager(max_chunk=2), manager(max_chunk=9, max_context=1000)
    lane = small.open()
    advance(small, lane, 41)
    loaded, pages = large.load(small.save(lane)[0])
    assert large.length(loaded) == 41
    assert large.pages(loaded) == pages == ((0, 1),)


def test_a_lane_does_not_move_between_windows_or_pages() -> None:
    source = manager()
    lane = source.open()
    advance(source, lane, 9)
    saved, _ = source.save(lane)
    with pytest.raises(CacheError, match="does not fit window=7"):
        manager(CONFIG.with_window(7)).load(saved)
    with pytest.raises(CacheError, match="pages of 2 slots, these have 4: load it on the executor that saved it"):
        manager(page_size=4).load(saved)
    with pytest.raises(CacheError, match="pages of 2 slots, these have 5: set max_context and max_chunk alike"):
        manager(page_size=None).load(saved)
