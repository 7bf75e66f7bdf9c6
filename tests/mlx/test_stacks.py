"""Stacks: sequences that come together in one array, part again, and share pages."""

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_mlx.memory import Memory
from mistral_portable_mlx.stacks import room
from mlx_sessions import CONFIG, KV_CACHES, WIDE, Session, in_use, text

from mistral_portable.cache import Chunk
from mistral_portable.errors import CapacityError

pytestmark = pytest.mark.usefixtures("uncompiled")


@given(length=st.integers(1, 200_000), beyond=st.integers(0, 100_000))
def test_room(length: int, beyond: int) -> None:
    page_size = length + beyond
    found = room(length, page_size)
    assert length <= found <= page_size
    assert found <= max(1.125 * length, length + 1024)


@pytest.mark.parametrize("kv_cache", KV_CACHES)
def test_a_fork_shares_memory_until_it_is_written_to(kv_cache: str | None) -> None:
    session, alone = Session(kv_cache=kv_cache), Session(kv_cache=kv_cache)
    lane, _ = session.begin(text(30))
    before = session.program.cache_bytes
    fork = session.manager.fork(lane)
    for number, seed in ((fork, 1), (lane, 2)):  # the second one has the page to itself, and writes in place
        other, _ = alone.begin(text(30))
        for tail in (text(3, seed), text(5, seed)):
            np.testing.assert_array_equal(session.feed(number, tail), alone.feed(other, tail))
            assert session.program.cache_bytes == 2 * before


def refuse(memory: Memory, more: int, pages: int) -> None:
    raise CapacityError("the cache cannot be moved")


@settings(max_examples=15)  # each of them some 40 steps
@given(data=st.data(), kv_cache=st.sampled_from(KV_CACHES), window=st.sampled_from([3, 8, 20, None, (None, 5)]))
def test_sequences_that_join_leave_and_fork_have_the_logits_that_they_have_alone(
    data: st.DataObject, kv_cache: str | None, window: Any
) -> None:
    """Sequences of any lengths come together in one array, and part again; 70 tokens are read apart from others. Where
    there is no memory for copies, they go on in the arrays in which they are, unless a page must grow or begin."""
    config = CONFIG.with_window(window)
    session, alone = (Session(config, max_context=700, max_chunk=100, kv_cache=kv_cache) for _ in range(2))
    numbers = dict[int, int]()  # of a lane, that of the same text in the other program
    for step in range(8):
        if len(numbers) < 4:
            lane = session.manager.open() if not numbers or data.draw(st.booleans()) else -1
            if lane < 0:
                source = data.draw(st.sampled_from(sorted(numbers)))
                lane = session.manager.fork(source)
                numbers[lane] = alone.manager.fork(numbers[source])
            else:
                numbers[lane] = alone.manager.open()
        chosen = data.draw(st.lists(st.sampled_from(sorted(numbers)), min_size=1, unique=True))
        counts = data.draw(
            st.one_of(
                st.just([1] * len(chosen)),
                st.lists(st.sampled_from([1, 2, 9, 70]), min_size=len(chosen), max_size=len(chosen)),
            )
        )
        chunks = [
            Chunk(lane, text(count, 10 * step + lane), [count - 1])
            for lane, count in zip(chosen, counts, strict=True)
            if sum(counts) <= session.spec.max_chunk
        ] or [Chunk(chosen[0], text(1), [0])]
        try:
            with pytest.MonkeyPatch.context() as patch:
                if data.draw(st.booleans()):
                    patch.setattr(Memory, "require_copies", refuse)
                found = session.step(chunks)
        except CapacityError:
            found = session.step(chunks)
        for row, chunk in zip(found, chunks, strict=True):
            # The tolerance: sums of other shapes are added up in another order, in float32.
            expected = alone.step([chunk._replace(lane=numbers[chunk.lane])])
            np.testing.assert_allclose(row, expected[0], rtol=1e-4, atol=1e-4)
        if len(numbers) > 2 and data.draw(st.booleans()):
            ended = data.draw(st.sampled_from(sorted(numbers)))
            session.manager.close(ended)
            alone.manager.close(numbers.pop(ended))


def test_sequences_that_have_decoded_together_read_prompts_in_one_step() -> None:
    session, alone = (Session(config=CONFIG.with_window(300), max_chunk=200) for _ in range(2))
    lanes = [session.begin(text(20, lane))[0] for lane in range(3)]
    session.together(lanes)
    session.step([Chunk(lane, text(90, 10 + lane)) for lane in lanes[:2]])
    found = session.together(lanes, 2)
    for lane, row in zip(lanes, found, strict=True):
        more = text(90, 10 + lane) if lane < 2 else []
        expected = alone.begin([*text(20, lane), 1, *more, 2])[1][-1]
        # The tolerance: sums of other shapes are added up in another order, in float32.
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


def test_sequences_share_memory_as_long_as_they_decode_together() -> None:
    """Their arrays are joined, not kept twice, and parted when one of them starts anew."""
    session = Session(WIDE, max_context=9000, max_chunk=500)
    lanes = [session.begin(text(300, lane))[0] for lane in range(3)]
    held = session.program.cache_bytes
    for some in (lanes, lanes[:2], lanes, lanes[1:]):
        session.together(some)
        assert session.program.cache_bytes == held
    session.together(lanes)
    session.manager.close(lanes[1])
    session.begin([1])
    assert session.program.cache_bytes == held * (512 + 256 + 512) // (3 * 512)


def test_sequences_join_and_part_a_layer_at_a_time() -> None:
    """No more than one layer is in memory twice, which is what a step asks for before it begins."""
    config = replace(CONFIG.with_window(2000), head_dim=256, num_hidden_layers=4)
    session = Session(config, max_context=9000, max_chunk=100)
    lanes = [session.begin(text(300, lane))[0] for lane in range(3)]
    for some in (lanes, lanes[:2]):
        before = in_use()
        mx.reset_peak_memory()
        session.together(some)
        assert mx.get_peak_memory() - before < session.program.cache_bytes * 5 // 16  # beside values of the step


@pytest.mark.parametrize("kv_cache", KV_CACHES)
def test_sequences_that_leave_keep_no_arrays_of_those_that_go_on(kv_cache: str | None) -> None:
    session = Session(WIDE, max_context=9000, max_chunk=500, kv_cache=kv_cache)
    lanes = [session.begin(text(300, lane))[0] for lane in range(4)]
    held = in_use()
    for count in (4, 3, 2, 1):
        session.together(lanes[:count])
        assert in_use() - held < session.program.cache_bytes // 8  # half a page: one in vain would be twice as much


@pytest.mark.parametrize("done", [0, 1])
@pytest.mark.parametrize("kv_cache", KV_CACHES)
def test_a_join_that_is_interrupted_loses_nothing(
    kv_cache: str | None, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-C or for want of memory, behind the first layers."""
    interrupted, whole = (Session(config=CONFIG, kv_cache=kv_cache) for _ in range(2))
    for session in (interrupted, whole):
        lanes = [session.begin(text(20, lane))[0] for lane in range(2)]
    evaluate, calls = mx.eval, iter(range(CONFIG.num_hidden_layers))

    def evaluate_some(*arrays: Any) -> None:
        evaluate(*arrays)
        if arrays[0] and next(calls) == done:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mx, "eval", evaluate_some)
        with pytest.raises(KeyboardInterrupt):
            interrupted.together(lanes)
    found, expected = (session.together(lanes) for session in (interrupted, whole))
    np.testing.assert_array_equal(found, expected)
