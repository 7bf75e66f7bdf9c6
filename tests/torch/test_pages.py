"""Pages of lanes: no page has two owners, and a ring's table is its keys in order of time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mistral_portable_torch.pages import Pages
from mistral_portable_torch.reads import group_reads

from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig

WINDOWS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, None])


def grown(pages: Pages, lane: int, length: int) -> None:
    missing = pages.missing(lane, length)
    if more := pages.shortage(missing):
        pages.add(more)
    pages.take(lane, missing)


@given(
    slots=st.integers(1, 40),
    page=st.integers(1, 9),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), max_size=30),
)
def test_no_page_has_two_owners_and_lanes_are_as_long_as_they_must(
    slots: int, page: int, steps: list[tuple[int, int]]
) -> None:
    pages, lengths = Pages(slots, page), dict.fromkeys(range(5), 0)
    for lane, length in steps:
        if length == 0:
            pages.drop(lane)
        grown(pages, lane, length)
        lengths[lane] = max(lengths[lane], length) if length else 0
        owned = [number for owner in range(5) for number in pages.of(owner)]
        assert len(set(owned)) == len(owned)
        assert set(owned) <= set(range(pages.count))
        for owner, tokens in lengths.items():
            assert len(pages.of(owner)) == min(-(-tokens // page), -(-slots // page))


@given(count=st.integers(1, 3000), more=st.integers(1, 300))
def test_a_pool_grows_by_little_more_than_it_must(count: int, more: int) -> None:
    pages = Pages(10**6, 1)
    pages.add(count)
    pages.take(0, count)
    grown_by = pages.shortage(more)
    assert more <= grown_by
    assert count + grown_by <= 1.25 * (count + more)


@given(window=WINDOWS, page=st.integers(1, 6), lengths=st.lists(st.integers(1, 7), min_size=1, max_size=12))
def test_what_is_read_lies_where_it_was_written(window: int | None, page: int, lengths: list[int]) -> None:
    """Chunk after chunk: the slots that a chunk reads hold the positions that they should, by slot and by page."""
    config = MistralConfig(
        vocab_size=9, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=4, sliding_window=window,
    )  # fmt: skip
    spec = CacheSpec.from_config(config, max_context=sum(lengths), max_chunk=max(lengths), max_lanes=2)
    manager, pages = CacheManager(spec), Pages(spec.groups[0].slots, page)
    lanes = [manager.open(), manager.open()]
    held: dict[int, tuple[int, int]] = {}
    for count in lengths:
        plan = manager.plan([Chunk(lane, [0] * count) for lane in lanes])
        for lane in lanes:
            grown(pages, lane, manager.length(lane))
        reads = group_reads(plan, 0, spec.groups[0], pages)
        for slot, lane, position in zip(reads.slots, np.repeat(lanes, count), plan.positions, strict=True):
            held[int(slot)] = int(lane), int(position)
        for s, lane in enumerate(lanes):
            expected = [(lane, position) for position in range(int(reads.first[s]), int(reads.ends[s]))]
            assert [held[int(slot)] for slot in reads.read_slots(s)] == expected
            begin = int(reads.first[s]) % page
            by_page = [number * page + slot for number in reads.read_pages(s) for slot in range(page)]
            assert [held[slot] for slot in by_page[begin : begin + len(expected)]] == expected


@pytest.mark.parametrize(("window", "oldest"), [(None, [0, 0, 0]), (1, [4, 5, 6]), (3, [2, 3, 4]), (8, [0, 0, 0])])
def test_the_window(window: int | None, oldest: list[int]) -> None:
    config = MistralConfig(
        vocab_size=9, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=4, sliding_window=window,
    )  # fmt: skip
    spec = CacheSpec.from_config(config, max_context=20, max_chunk=4)
    manager, pages = CacheManager(spec), Pages(spec.groups[0].slots, 4)
    lane = manager.open()
    manager.plan([Chunk(lane, [0] * 4)])
    grown(pages, lane, 7)
    reads = group_reads(manager.plan([Chunk(lane, [0] * 3)]), 0, spec.groups[0], pages)
    assert reads.oldest.tolist() == oldest
