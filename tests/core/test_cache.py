"""CacheSpec and CacheManager by hand: the documented examples, sizes in bytes, and every refusal."""

from typing import Any

import numpy as np
import pytest

from mistral_portable.cache import CacheManager, CacheSpec, Chunk, LayerGroup
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BusyError, CacheError, InputError

CONFIG = MistralConfig(num_hidden_layers=2, sliding_window=3)
MIXED = MistralConfig(num_hidden_layers=3, sliding_window=(3, None))


def manager(config: MistralConfig = CONFIG, **sizes: int) -> CacheManager:
    return CacheManager(CacheSpec.from_config(config, **({"max_context": 100, "max_chunk": 3, "max_lanes": 2} | sizes)))


def advance(manager: CacheManager, lane: int, count: int) -> None:
    """Plan `count` tokens of any value, in chunks that fit."""
    while count > 0:
        size = min(count, manager.spec.max_chunk)
        manager.plan([Chunk(lane, [0] * size)])
        count -= size


def test_spec_groups_layers_by_window() -> None:
    spec = CacheSpec.from_config(MIXED, max_context=100, max_chunk=2)
    assert spec.groups == (LayerGroup(3, (0, 2), 4), LayerGroup(None, (1,), 100))
    assert [spec.group_of(layer) for layer in range(3)] == [0, 1, 0]


def test_no_group_has_more_slots_than_the_context() -> None:
    spec = CacheSpec.from_config(MIXED, max_context=3, max_chunk=512)
    assert spec.max_chunk == 3
    assert [group.slots for group in spec.groups] == [3, 3]


@pytest.mark.parametrize("name", ["max_context", "max_chunk", "max_lanes"])
def test_spec_refuses_sizes_below_one(name: str) -> None:
    with pytest.raises(InputError, match=name):
        CacheSpec.from_config(CONFIG, **({"max_context": 8} | {name: 0}))


def test_spec_docstring_example() -> None:
    """Window 3, max_chunk 2: the chunk 6, 7 overwrites 2 and 3, and query 6 still finds 4, 5, 6."""
    caches = manager(max_chunk=2)
    slots = ["-"] * caches.spec.groups[0].slots
    lane = caches.open()
    for chunk in ("01", "23", "45"):
        for slot, token in zip(caches.plan([Chunk(lane, [0, 0])]).groups[0].slot_mapping, chunk, strict=True):
            slots[slot] = token
    assert "".join(slots) == "4523"
    plan = caches.plan([Chunk(lane, [0, 0])])
    assert plan.groups[0].slot_mapping.tolist() == [2, 3]
    assert plan.groups[0].first.tolist() == [4]


def test_plan_docstring_example() -> None:
    caches = manager()
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
    assert reads.slot_mapping.tolist() == [4, 0, 0, 1, 2]
    assert reads.first.tolist() == [2, 0]
    assert reads.capacity == 5
    arrays = (
        plan.tokens,
        plan.positions,
        plan.lanes,
        plan.query_starts,
        plan.logit_rows,
        reads.slot_mapping,
        reads.first,
    )
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}


def test_slots_of_mistral_inference_token_by_token() -> None:
    """Its worked vector has 5, 7, 2 tokens at 0, 1, 3 with W = 3, and keeps the last W of each chunk: 2 0 1 | 5 3 4 |
    6 7, which is position % W + W * lane. With max_chunk 1 our rings have those W slots."""
    caches = manager(max_chunk=1, max_lanes=3)
    kept = []
    for begin, count in ((0, 5), (1, 7), (3, 2)):
        lane = caches.open()
        advance(caches, lane, begin)
        slots = [int(caches.plan([Chunk(lane, [0])]).groups[0].slot_mapping[0]) for _ in range(count)]
        kept.append([slot + 3 * lane for slot in slots[-3:]])
    assert kept == [[2, 0, 1], [5, 3, 4], [6, 7]]


def test_bytes_of_mistral_7b() -> None:
    spec = CacheSpec.from_config(MistralConfig(), max_context=1_000_000, max_chunk=1)
    assert spec.lane_bytes(2) == 512 * 2**20
    assert spec.lane_bytes(2, 4096) == spec.lane_bytes(2, 8192) == spec.lane_bytes(2)
    assert spec.lane_bytes(2, 2048) == spec.lane_bytes(2) // 2
    slack = CacheSpec.from_config(MistralConfig(), max_context=1_000_000, max_chunk=512)
    assert slack.lane_bytes(2) == spec.lane_bytes(2) * (4096 + 511) // 4096
    full = CacheSpec.from_config(MistralConfig(sliding_window=None), max_context=8192)
    assert full.lane_bytes(2) == 2 * full.lane_bytes(2, 4096) == 2 * 512 * 2**20


def test_capacity_doubles_up_to_the_ring() -> None:
    config = MistralConfig(num_hidden_layers=2, sliding_window=(400, None))
    caches = manager(config, max_context=1000, max_chunk=200)
    lane = caches.open()
    capacities = [[group.capacity for group in caches.plan([Chunk(lane, [0] * 200)]).groups] for _ in range(5)]
    assert capacities == [[256, 256], [512, 512], [599, 1000], [599, 1000], [599, 1000]]


def test_lanes_are_handed_out_lowest_first() -> None:
    caches = manager(max_lanes=3)
    assert [caches.open() for _ in range(3)] == [0, 1, 2]
    caches.close(1)
    assert caches.lanes == (0, 2)
    assert caches.open() == 1
    with pytest.raises(BusyError, match="all 3 lanes"):
        caches.open()


def test_rollback_docstring_example() -> None:
    caches = manager(max_chunk=2)
    lane = caches.open()
    advance(caches, lane, 10)
    with pytest.raises(CacheError, match="needs position 5"):
        caches.rollback(lane, 7)
    caches.rollback(lane, 8)
    assert caches.length(lane) == 8
    with pytest.raises(CacheError, match="cannot roll back from 8 to 9"):
        caches.rollback(lane, 9)
    with pytest.raises(CacheError, match="cannot roll back from 8 to -1"):
        caches.rollback(lane, -1)
    caches.rollback(lane, 0)
    assert caches.plan([Chunk(lane, [0])]).positions.tolist() == [0]


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
    with pytest.raises(CacheError, match=message):
        caches.plan(chunks)
    assert [caches.length(lane) for lane in caches.lanes] == [2, 4]


def test_a_token_that_is_no_int32_changes_nothing() -> None:
    caches = manager()
    lane = caches.open()
    with pytest.raises(OverflowError):
        caches.plan([Chunk(lane, [2**40])])
    assert caches.length(lane) == 0


def test_rows_come_once_and_ascending() -> None:
    caches = manager()
    a, b = caches.open(), caches.open()
    assert caches.plan([Chunk(a, [1, 2, 3], rows=[2, 0, 2]), Chunk(b, [4])]).logit_rows.tolist() == [0, 2]


@pytest.mark.parametrize("call", ["close", "length", "fork", "save"])
def test_every_call_refuses_a_lane_that_is_not_open(call: str) -> None:
    with pytest.raises(CacheError, match="lane 0 is not open"):
        getattr(manager(), call)(0)
    with pytest.raises(CacheError, match="lane 0 is not open"):
        manager().rollback(0, 0)


SAVED = {"length": 8, "high": 10, "slots.0": 4}


@pytest.mark.parametrize(
    "change",
    [
        {"length": 11},
        {"length": -1},
        {"high": 101, "length": 101},
        {"length": 7},  # needs position 5, which 9 has overwritten
        {"slots.0": 5},
        {"slots.0": None},
        {"length": "8"},
        {"high": 10.0},
    ],
)
def test_load_refuses_integers_that_cannot_belong_to_the_spec(change: dict[str, Any]) -> None:
    caches = manager(max_chunk=2)
    with pytest.raises(CacheError, match="saved lane"):
        caches.load(SAVED | change)
    assert caches.lanes == ()
    assert caches.length(caches.load(SAVED)) == 8


@pytest.mark.parametrize("name", SAVED)
def test_load_refuses_a_save_that_lacks_a_key(name: str) -> None:
    with pytest.raises(CacheError, match="saved lane"):
        manager(max_chunk=2).load({key: value for key, value in SAVED.items() if key != name})


def test_a_lane_moves_between_ring_sizes_while_nothing_has_wrapped() -> None:
    small, large = manager(max_chunk=2), manager(max_chunk=9)
    lane = small.open()
    advance(small, lane, 4)
    assert large.length(large.load(small.save(lane))) == 4
    advance(small, lane, 1)
    with pytest.raises(CacheError, match="max_chunk"):
        large.load(small.save(lane))
