"""GroupReads: page tables and slots list the keys of their own sequence, in order of time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mistral_portable_torch.reads import GroupReads

from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig

WINDOWS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, None])


def spec(window: int | None, page: int, max_context: int, max_chunk: int) -> CacheSpec:
    config = MistralConfig(
        vocab_size=9, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=4, sliding_window=window,
    )  # fmt: skip
    return CacheSpec.from_config(config, max_context=max_context, page_size=page, max_chunk=max_chunk, max_lanes=2)


@given(
    window=WINDOWS,
    page=st.integers(1, 6),
    lengths=st.lists(st.just((1, 1)) | st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=12),
)
def test_reads_find_the_positions_that_were_written(
    window: int | None, page: int, lengths: list[tuple[int, int]]
) -> None:
    """Two texts in chunks: a sequence's slots and pages hold the positions that were written there."""
    own = spec(window, page, max_context=100, max_chunk=7)
    manager = CacheManager(own)
    lanes = [manager.open(), manager.open()]
    held: dict[int, tuple[int, int]] = {}
    for counts in lengths:
        plan = manager.plan([Chunk(lane, [0] * count) for lane, count in zip(lanes, counts, strict=True)])
        for slot, lane, position in zip(
            plan.groups[0].slot_mapping, np.repeat(lanes, counts), plan.positions, strict=True
        ):
            held[int(slot)] = int(lane), int(position)
        reads = GroupReads(plan, own, 0)
        for recorded in (False, max(counts) == 1):
            table = reads.table(recorded)
            for s, lane in enumerate(lanes):
                begin, first, end = int(reads.begins[s]), int(plan.groups[0].first[s]), int(plan.ends[s])
                assert (begin % page, begin + reads.hidden[s], begin + reads.keys[s]) == (0, first, end)
                expected = [(lane, position) for position in range(begin, end)]
                slots = [number * page + offset for number in table[s] for offset in range(page)]
                assert [held[slot] for slot in slots[: len(expected)]] == expected
                assert [held[int(slot)] for slot in reads.slots(s)] == expected[first - begin :]
                assert set(table[s]) == set(table[s, : reads.counts[s]])  # padding is its own page, too
                assert reads.columns(int(reads.counts[s]), recorded) <= table.shape[1]


@pytest.mark.parametrize(("window", "oldest"), [(None, [0, 0, 0]), (1, [4, 5, 6]), (3, [2, 3, 4]), (8, [0, 0, 0])])
def test_the_window_sets_the_oldest_visible_position(window: int | None, oldest: list[int]) -> None:
    own = spec(window, 4, max_context=20, max_chunk=4)
    manager = CacheManager(own)
    lane = manager.open()
    manager.plan([Chunk(lane, [0] * 4)])
    assert GroupReads(manager.plan([Chunk(lane, [0] * 3)]), own, 0).oldest.tolist() == oldest


@pytest.mark.parametrize(
    ("window", "page", "expected"), [(None, 4, {1, 2, 4, 8, 16, 32, 64}), (65, 4, {1, 2, 4, 8, 17})]
)
def test_a_table_of_recorded_steps_has_few_widths(window: int | None, page: int, expected: set[int]) -> None:
    """A text grows to 64 pages."""
    own = spec(window, page, max_context=64 * page, max_chunk=1)
    manager = CacheManager(own)
    lane = manager.open()
    found = set()
    for _ in range(64 * page):
        reads = GroupReads(manager.plan([Chunk(lane, [0])]), own, 0)
        found.add(reads.table(recorded=True).shape[1])
        assert reads.table(recorded=False).shape[1] == reads.counts[0]
    assert found == expected
